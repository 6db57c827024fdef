"""REFINE with a share of the clean images: 1 % to all of them.

    python -m refine_jax.sweep --config=configs/sweeps/data_fraction.py --workdir=runs/data_fraction
    python -m refine_jax.sweep --config=configs/sweeps/data_fraction.py:mini --workdir=runs/data_fraction_mini

Epochs are as many as ever, so that a small share also means few steps. The victims are those of configs/cifar.py, one
a seed; of ':mini', those of configs/digits.py, from a share of 5 % on, since its batches are of 64 images.
What was seen is in docs/studies.md.
"""

from refine_jax.sweep import Sweep, base


def get_sweep(variant: str = "") -> Sweep:
    """Returns the sweep, or the small one for 'mini'."""
    config = base(__file__, variant, {"": "cifar.py", "mini": "digits.py"})
    shares = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
    return Sweep(config, {"defense.data_fraction": shares[1:] if variant == "mini" else shares})
