"""REFINE in front of other networks.

    python -m refine_jax.sweep --config=configs/sweeps/networks.py --workdir=runs/networks
    python -m refine_jax.sweep --config=configs/sweeps/networks.py:mini --workdir=runs/networks_mini

Every network is a victim of its own. ':mini' takes the ResNets of width 16 on configs/digits.py; vgg16 and densenet121
refuse images of 16 x 16. What was seen is in docs/studies.md.
"""

from refine_jax.sweep import Sweep, base


def get_sweep(variant: str = "") -> Sweep:
    """Returns the sweep, or the small one for 'mini'."""
    config = base(__file__, variant, {"": "cifar.py", "mini": "digits.py"})
    if variant == "mini":
        # With the 0.1 that suits a ResNet-18 the deeper ones do not learn the trigger in 18 epochs, and the
        # pre-activated one may learn nothing.
        config.victim.learning_rate = 0.02
    names = ("resnet18", "preact_resnet18", "resnet34", "resnet50")
    return Sweep(config, {"victim.name": names if variant == "mini" else (*names, "vgg16", "densenet121", "vit")})
