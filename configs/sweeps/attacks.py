"""The seven attacks, each with a victim of its own: what the paper's main table is made of.

    python -m refine_jax.sweep --config=configs/sweeps/attacks.py --workdir=runs/attacks
    python -m refine_jax.sweep --config=configs/sweeps/attacks.py:mini --workdir=runs/attacks_mini

One seed, of configs/cifar.py and of its ':mini'. --config.defense.names="('refine', 'NAME')" puts other defenses
beside REFINE, on the same victims; a run that has one defense already learns and measures the others alone.
"""

from refine_jax import attacks
from refine_jax.sweep import Sweep, base


def get_sweep(variant: str = "") -> Sweep:
    """Returns the sweep, or the small one for 'mini'."""
    config = base(__file__, variant, {"": "cifar.py", "mini": "cifar.py:mini"})
    return Sweep(config, {"attack.name": attacks.names()}, seeds=(0,))
