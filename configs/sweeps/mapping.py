"""REFINE with other output mappings: five derangements, of ':mini' three, the shift by one class, and none.

    python -m refine_jax.sweep --config=configs/sweeps/mapping.py --workdir=runs/mapping
    python -m refine_jax.sweep --config=configs/sweeps/mapping.py:mini --workdir=runs/mapping_mini

The derangements are drawn from seeds of their own: all else that is drawn is as with the others of a seed. The victims
are those of configs/cifar.py, one a seed; of ':mini', those of configs/digits.py. What was seen is in docs/studies.md.
"""

from refine_jax.sweep import Sweep, base


def get_sweep(variant: str = "") -> Sweep:
    """Returns the sweep, or the small one for 'mini'."""
    config = base(__file__, variant, {"": "cifar.py", "mini": "digits.py"})
    drawn = tuple(("derangement", seed) for seed in range(100, 103 if variant == "mini" else 105))
    return Sweep(config, {("defense.mapping", "defense.mapping_seed"): (*drawn, ("shift", None), ("identity", None))})
