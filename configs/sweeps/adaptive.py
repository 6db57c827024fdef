"""Attackers who know REFINE: of its mapping nothing, one of their own, or the one that the defender will draw.

    python -m refine_jax.sweep --config=configs/sweeps/adaptive.py --workdir=runs/adaptive
    python -m refine_jax.sweep --config=configs/sweeps/adaptive.py:mini --workdir=runs/adaptive_mini

'None' is the attacker who knows of no defense. Each knowledge is a victim of its own for every seed, of
configs/cifar.py; of ':mini', of configs/digits.py. What the three mean is in docs/attacks.md.
"""

from refine_jax import adaptive
from refine_jax.sweep import Sweep, base


def get_sweep(variant: str = "") -> Sweep:
    """Returns the sweep, or the small one for 'mini'."""
    config = base(__file__, variant, {"": "cifar.py", "mini": "digits.py"})
    return Sweep(config, {"victim.adaptive.knowledge": (None, *adaptive.KNOWLEDGE)})
