"""REFINE with U-Nets of other depths and widths.

    python -m refine_jax.sweep --config=configs/sweeps/unet.py --workdir=runs/unet
    python -m refine_jax.sweep --config=configs/sweeps/unet.py:mini --workdir=runs/unet_mini

The victims are those of configs/cifar.py, one a seed; of ':mini', those of configs/digits.py, whose images of 16 x 16
allow a depth of 4 at most. What was seen is in docs/studies.md.
"""

from refine_jax.sweep import Sweep, base


def get_sweep(variant: str = "") -> Sweep:
    """Returns the sweep, or the small one for 'mini'."""
    config = base(__file__, variant, {"": "cifar.py", "mini": "digits.py"})
    depths, widths = ((2, 3, 4), (8, 16, 32)) if variant == "mini" else ((3, 4, 5), (16, 32, 64))
    alike = {"defense.depth": (config.defense.depth,), "defense.width": (config.defense.width,)}
    return Sweep(config, {**alike, "defense.depth": depths}, {**alike, "defense.width": widths})
