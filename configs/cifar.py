"""REFINE on CIFAR-10 with a ResNet-18, by the paper's settings (Chen et al., ICLR 2025, section 5 and appendix).

    python launch.py --config=configs/cifar.py --workdir=runs/cifar
    python launch.py --config=configs/cifar.py:mini --workdir=runs/cifar_mini

Expected of the full setting: an attack success rate under about 3 %, a benign accuracy at most about 3 points under
the victim's (the paper's abstract and reviews). Cost: 150 epochs for each of the two trainings; meant for a GPU.

':mini' is the same method on the same whole test set, made small enough for a 2-core CPU: networks of width 16
instead of 64, and few epochs under a one-cycle learning rate. Measured with BadNets: BA 73.2 -> 69.8 %, ASR 96.0 ->
1.9 %, mapped ASR 3.8 %; counts, intervals and cost stand in results/cifar10_mini/.
"""

import ml_collections

from refine_jax import settings
from refine_jax.errors import SettingError


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the paper's setting, or the small one for 'mini'."""
    config = settings.default()
    if variant == "mini":
        _make_small(config)
    elif variant:
        raise SettingError("config", f"configs/cifar.py:{variant}", "configs/cifar.py and configs/cifar.py:mini")
    return config


def _make_small(config: ml_collections.ConfigDict) -> None:
    # Small batches: with few epochs it is the number of steps that is short.
    config.victim.width = 16
    config.victim.epochs = 2
    config.victim.batch_size = 64
    config.victim.schedule = "one_cycle"
    config.victim.learning_rate = 0.05
    config.victim.adaptive.width = 16
    config.victim.adaptive.optimizer = "adam"
    config.victim.adaptive.learning_rate = 0.002
    config.victim.adaptive.weight_decay = 0.0
    # What these attacks need for a victim that falls to them: the others are learned in two epochs.
    settings.vary_by_attack(
        config, "victim.epochs", {"wanet": 6, "physical": 6, "label_consistent": 4, "adaptive_patch": 6}
    )
    settings.vary_by_attack(config, "attack.rate", {"label_consistent": 0.8, "adaptive_patch": 0.03})
    settings.vary_by_attack(config, "attack.adaptive_patch.cover_rate", {"adaptive_patch": 0.06})
    config.defense.width = 16
    config.defense.epochs = 5
    config.defense.batch_size = 32
    config.defense.schedule = "one_cycle"
    config.defense.optimizer = "adam"
    config.defense.learning_rate = 0.002
    config.defense.weight_decay = 0.0
    # Of 2,500 images, as in the released program: fewer rounds and epochs, with smaller generators, and of twice as
    # many steps an epoch.
    for inversion in (config.defense.bti_dbf_p, config.defense.bti_dbf_u):
        inversion.batch_size = 64
        inversion.width = 16
        inversion.pretraining_epochs = 10
        inversion.rounds = 2
        inversion.mask_epochs = 10
        inversion.inversion_epochs = 8
    config.defense.bti_dbf_p.purification_epochs = 10
    config.defense.bti_dbf_u.unlearning_epochs = 10
    # A smaller autoencoder, of 8 x 8 patches; how it looks for a trigger is the released program's.
    # Three epochs take five minutes of a core, and cost 18 and 19 points of BA: results/cifar10_mini/.
    config.defense.bdmae.patch_size = 4
    config.defense.bdmae.width = 64
    config.defense.bdmae.depth = 3
    config.defense.bdmae.decoder_width = 32
    config.defense.bdmae.epochs = 3
    config.defense.bdmae.batch_size = 64
    config.defense.bdmae.learning_rate = 0.002
