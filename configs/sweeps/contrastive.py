"""REFINE with other weights and temperatures of the contrastive loss; a weight of 0, an ablation, leaves it out.

    python -m refine_jax.sweep --config=configs/sweeps/contrastive.py --workdir=runs/contrastive
    python -m refine_jax.sweep --config=configs/sweeps/contrastive.py:mini --workdir=runs/contrastive_mini

The victims are those of configs/cifar.py, one a seed; of ':mini', those of configs/digits.py.
What was seen is in docs/studies.md.
"""

from refine_jax.sweep import Sweep, base


def get_sweep(variant: str = "") -> Sweep:
    """Returns the sweep, or the small one for 'mini'."""
    config = base(__file__, variant, {"": "cifar.py", "mini": "digits.py"})
    weights = {"defense.sup_weight": (0.0, 0.01, 0.1, 1.0), "defense.temperature": (0.1,)}
    temperatures = {"defense.sup_weight": (0.1,), "defense.temperature": (0.05, 0.1, 0.5)}
    return Sweep(config, weights, temperatures)
