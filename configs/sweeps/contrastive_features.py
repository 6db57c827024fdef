"""REFINE with a contrastive loss of other features: pixels of T(x), the classifier's last feature map, its logits.

    python -m refine_jax.sweep --config=configs/sweeps/contrastive_features.py --workdir=runs/contrastive_features
    python -m refine_jax.sweep --config=configs/sweeps/contrastive_features.py:mini --workdir=runs/features_mini

The victims are those of configs/cifar.py, one a seed; of ':mini', those of configs/digits.py.
What was seen is in docs/studies.md.
"""

from refine_jax.defenses.refine_settings import CONTRASTIVE_FEATURES
from refine_jax.sweep import Sweep, base


def get_sweep(variant: str = "") -> Sweep:
    """Returns the sweep, or the small one for 'mini'."""
    config = base(__file__, variant, {"": "cifar.py", "mini": "digits.py"})
    return Sweep(config, {"defense.contrastive_features": CONTRASTIVE_FEATURES})
