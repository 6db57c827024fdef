r"""Defends a classifier that you were given, on clean images of your own: docs/defend_your_model.md.

    python launch.py --config=configs/defend.py --workdir=runs/mine --config.dataset.root=DIR \
        --config.victim.checkpoint=FILE --config.victim.name=resnet18

The defense is trained as the paper has it, which is meant for a GPU. ':mini' trains a narrow one for 30 epochs, as the
demo does, for two cores and small pictures.
"""

import ml_collections

from refine_jax import settings
from refine_jax.errors import SettingError


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the setting, or the small one for 'mini'."""
    if variant not in ("", "mini"):
        raise SettingError("config", f"configs/defend.py:{variant}", "configs/defend.py and configs/defend.py:mini")
    config = settings.default()
    config.dataset.name = "folder"
    config.attack.name = settings.NO_ATTACK
    if variant == "mini":
        config.defense.width = 16
        config.defense.epochs = 30
        config.defense.batch_size = 64
        config.defense.optimizer = "adam"
        config.defense.schedule = "one_cycle"
        config.defense.learning_rate = 0.003
        config.defense.weight_decay = 0.0
    return config
