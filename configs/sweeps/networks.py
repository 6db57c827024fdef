"""REFINE in front of other networks.

    python -m refine_jax.sweep --config=configs/sweeps/networks.py --workdir=runs/networks
    python -m refine_jax.sweep --config=configs/sweeps/networks.py:mini --workdir=runs/networks_mini

Every network is a victim of its own. ':mini' takes the ResNets of width 16 on configs/digits.py; vgg16 and densenet121
refuse images of 16 x 16. Nothing was measured yet.
"""

from refine_jax.sweep import Sweep, base


def get_sweep(variant: str = "") -> Sweep:
    """Returns the sweep, or the small one for 'mini'."""
    config = base(__file__, variant, {"": "cifar.py", "mini": "digits.py"})
    names = ("resnet18", "preact_resnet18", "resnet34", "resnet50")
    return Sweep(config, {"victim.name": names if variant == "mini" else (*names, "vgg16", "densenet121", "vit")})
