"""REFINE with clean images of another distribution: corrupted ones, and images of some classes only.

    python -m refine_jax.sweep --config=configs/sweeps/clean_data.py --workdir=runs/clean_data
    python -m refine_jax.sweep --config=configs/sweeps/clean_data.py:mini --workdir=runs/clean_data_mini

It is training images that are corrupted, and test images stay as they are: what is measured is of the distribution
that the victim was trained on. Classes are chosen by the data set's labels, and the defense sees none of them; 0 is
the attack's target. The victims are those of configs/cifar.py, one a seed; of ':mini', those of configs/digits.py.
What was seen is in docs/studies.md.
"""

from refine_jax.sweep import Sweep, base


def get_sweep(variant: str = "") -> Sweep:
    """Returns the sweep, or the small one for 'mini'."""
    config = base(__file__, variant, {"": "cifar.py", "mini": "digits.py"})
    ways = ("gaussian_noise", "gaussian_blur", "contrast", "pixelate")
    severities = (1, 5) if variant == "mini" else (1, 3, 5)
    corruptions = (("none", 3), *((way, severity) for way in ways for severity in severities))
    corrupted = {("defense.clean_corruption", "defense.clean_severity"): corruptions, "defense.clean_classes": (None,)}
    # All but the target's, half of them with the target's, half of them without.
    classes = (tuple(range(1, 10)), tuple(range(5)), tuple(range(5, 10)))
    some = {("defense.clean_corruption", "defense.clean_severity"): (("none", 3),), "defense.clean_classes": classes}
    return Sweep(config, corrupted, some)
