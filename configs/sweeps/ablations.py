"""REFINE whole, without the contrastive loss, without the output mapping, and without both.

    python -m refine_jax.sweep --config=configs/sweeps/ablations.py --workdir=runs/ablations
    python -m refine_jax.sweep --config=configs/sweeps/ablations.py:mini --workdir=runs/ablations_mini

Without the mapping every class keeps its place, so that the U-Net is asked for what the classifier says already. The
victims are those of configs/cifar.py, one a seed; of ':mini', those of configs/digits.py.
What was seen is in docs/studies.md.
"""

from refine_jax.sweep import Sweep, base


def get_sweep(variant: str = "") -> Sweep:
    """Returns the sweep, or the small one for 'mini'."""
    config = base(__file__, variant, {"": "cifar.py", "mini": "digits.py"})
    return Sweep(config, {"defense.mapping": ("derangement", "identity"), "defense.sup_weight": (0.1, 0.0)})
