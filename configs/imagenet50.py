"""REFINE on ImageNet-50 at 224 x 224 with a ResNet-18, by the paper's settings (Chen et al., ICLR 2025).

    python launch.py --config=configs/imagenet50.py --workdir=runs/imagenet50 --config.dataset.root=PATH
    python launch.py --config=configs/imagenet50.py:mini --workdir=runs/imagenet10_mini --config.dataset.root=PATH

PATH is ImageNet as you have it, which docs/imagenet50.md describes; once the data set is built it can be left out.
The paper does not name its 50 classes: these are the project's own draw. Cost: 150 epochs of 25,000 images for each of
the two trainings; meant for a GPU. No figures were measured yet at this size, nor the time that it takes.

':mini' takes ten classes, such as those of Imagenette, images of half the side, narrow networks and few epochs, for a
2-core CPU: 4 and 22 minutes for the two trainings. Measured, on one core and on two: BA 68.2 and 70.4 %, behind REFINE
61.6 and 61.4 %; ASR 90.3 and 89.8 %, behind REFINE 1.3 and 2.8 %; see results/imagenet10_mini/.
"""

import ml_collections

from refine_jax import settings
from refine_jax.errors import SettingError


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the paper's setting, or the small one for 'mini'."""
    config = settings.default()
    config.dataset.name = "imagenet50"
    config.victim.name = "imagenet_resnet18"
    config.victim.batch_size = 128
    config.victim.adaptive.width = 32
    config.defense.width = 32
    config.defense.batch_size = 64
    # What 4 and 1 pixels are at 32 x 32.
    config.defense.shrinkpad.pad = 28
    config.defense.bdmae.patch_size = 16
    config.defense.gaussian_blur.sigma = 7.0
    if variant == "mini":
        _make_small(config)
    elif variant:
        raise SettingError(
            "config", f"configs/imagenet50.py:{variant}", "configs/imagenet50.py and configs/imagenet50.py:mini"
        )
    return config


def _make_small(config: ml_collections.ConfigDict) -> None:
    config.dataset.classes = (10,)
    config.dataset.image_size = 112
    # Small batches: with few epochs it is the number of steps that is short.
    config.victim.width = 16
    config.victim.epochs = 12
    config.victim.batch_size = 32
    config.victim.schedule = "one_cycle"
    config.victim.learning_rate = 0.05
    # The attacker's U-Net, where there is one, is trained as the defender's.
    config.victim.adaptive.width = 8
    config.victim.adaptive.optimizer = "adam"
    config.victim.adaptive.learning_rate = 0.002
    config.victim.adaptive.weight_decay = 0.0
    config.defense.shrinkpad.pad = 14
    config.defense.bdmae.patch_size = 8
    config.defense.gaussian_blur.sigma = 3.5
    config.defense.width = 8
    config.defense.epochs = 12
    config.defense.batch_size = 16
    config.defense.schedule = "one_cycle"
    config.defense.optimizer = "adam"
    config.defense.learning_rate = 0.002
    config.defense.weight_decay = 0.0
