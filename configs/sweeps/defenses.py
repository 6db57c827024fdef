"""All defenses on the victims of the seven attacks, each victim the same for all: the comparison.

    python -m refine_jax.sweep --config=configs/sweeps/defenses.py --workdir=runs/defenses
    python -m refine_jax.sweep --config=configs/sweeps/defenses.py:mini --workdir=runs/defenses_mini

One seed, of configs/cifar.py and of its ':mini'. A run is one attack with its victim and all defenses: of ':mini'
three hours of a core and more. Runs can be done apart (--run=NAME) and their results.json brought together.
"""

from refine_jax import attacks
from refine_jax.sweep import Sweep, base

# The two for classifiers that only answer stand in docs/black_box.md: they see less than these.
_DEFENSES = ("refine", "bti_dbf_p", "bti_dbf_u", "bdmae", "shrinkpad", "gaussian_blur", "jpeg", "bit_depth")


def get_sweep(variant: str = "") -> Sweep:
    """Returns the sweep, or the small one for 'mini'."""
    config = base(__file__, variant, {"": "cifar.py", "mini": "cifar.py:mini"})
    config.defense.names = _DEFENSES
    return Sweep(config, {"attack.name": attacks.names()}, seeds=(0,))
