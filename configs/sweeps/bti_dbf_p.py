"""BTI-DBF (P) with other settings than its released program's, on Blended's victim: the range beside the comparison.

    python -m refine_jax.sweep --config=configs/sweeps/bti_dbf_p.py --workdir=runs/bti_dbf_p
    python -m refine_jax.sweep --config=configs/sweeps/bti_dbf_p.py:mini --workdir=runs/bti_dbf_p_mini

Of ':mini' a run takes 43 to 75 minutes of a core, after 10 for the victim. Its own setting stands with
configs/sweeps/defenses.py:mini. What was seen is in docs/studies.md.
"""

from refine_jax.sweep import Sweep, base

_FIELDS = tuple(
    f"defense.bti_dbf_p.{name}"
    for name in ("learning_rate", "pretraining_epochs", "triggered_share", "purification_norm_bound", "rounds")
)


def get_sweep(variant: str = "") -> Sweep:
    """Returns the sweep, or the small one for 'mini'."""
    config = base(__file__, variant, {"": "cifar.py", "mini": "cifar.py:mini"})
    config.attack.name = "blended"
    config.defense.names = ("bti_dbf_p",)
    if variant == "mini":
        # The purifier may stray further from its images, or learns faster and longer, or so and sees more triggers.
        config.defense.bti_dbf_p.sweep = (2,)
        taken = ((0.001, 10, 0.1, 0.2, 2), (0.003, 20, 0.1, 0.05, 3), (0.003, 20, 0.5, 0.05, 2))
    else:
        config.defense.bti_dbf_p.sweep = (1, 2, 3, 4)
        rates = ((0.001, 50, 0.1, 0.05, 5), (0.003, 50, 0.1, 0.05, 5))
        taken = (*rates, (0.001, 50, 0.1, 0.2, 5), (0.003, 50, 0.5, 0.05, 5))
    return Sweep(config, {_FIELDS: taken}, seeds=(0,))
