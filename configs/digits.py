"""The demo: REFINE on scikit-learn's 1,797 handwritten digits, 16 x 16, in minutes on two cores and without a network.

    python launch.py --config=configs/digits.py --workdir=runs/digits

What it gives, over three seeds, stands in results/digits/.
"""

import ml_collections

from refine_jax import settings


def get_config() -> ml_collections.ConfigDict:
    """Returns the setting."""
    config = settings.default()
    config.dataset.name = "digits"

    config.victim.width = 16
    config.victim.epochs = 18
    config.victim.batch_size = 64
    config.victim.schedule = "one_cycle"
    config.victim.learning_rate = 0.1
    # The attacker's U-Net, where there is one, is trained as the defender's.
    # With 1.0 the backdoor itself is not learned in so few steps (docs/studies.md).
    config.victim.adaptive.weight = 0.1
    config.victim.adaptive.width = 16
    config.victim.adaptive.optimizer = "adam"
    config.victim.adaptive.learning_rate = 0.003
    config.victim.adaptive.weight_decay = 0.0

    config.defense.width = 16
    config.defense.epochs = 30
    config.defense.batch_size = 64
    config.defense.optimizer = "adam"
    config.defense.schedule = "one_cycle"
    config.defense.learning_rate = 0.003
    config.defense.weight_decay = 0.0

    # What 4 and 1 pixels are at 32 x 32.
    config.defense.shrinkpad.pad = 2
    config.defense.gaussian_blur.sigma = 0.5

    # Of 1,352 images, 5 % would be 68. Fewer and larger steps than the released program's, for smaller generators.
    for inversion in (config.defense.bti_dbf_p, config.defense.bti_dbf_u):
        inversion.data_fraction = 0.2
        inversion.batch_size = 32
        inversion.width = 8
        inversion.depth = 3
        inversion.crop_padding = 2
        inversion.learning_rate = 0.002
        inversion.mask_learning_rate = 0.1
        inversion.pretraining_epochs = 8
        inversion.rounds = 2
        inversion.mask_epochs = 5
        inversion.inversion_epochs = 8
    config.defense.bti_dbf_p.purification_epochs = 8
    config.defense.bti_dbf_u.unlearning_epochs = 8
    config.defense.bti_dbf_u.unlearning_learning_rate = 0.001

    # Patches of 2 x 2 pixels, 64 of them, and a smaller autoencoder.
    config.defense.bdmae.width = 64
    config.defense.bdmae.depth = 3
    config.defense.bdmae.decoder_width = 32
    config.defense.bdmae.epochs = 60
    config.defense.bdmae.batch_size = 64
    config.defense.bdmae.learning_rate = 0.003

    # The copy is trained as the victim is, the U-Nets as REFINE's.
    for section in (config.defense.refine_substitute, config.defense.refine_zeroth_order):
        for field in ("width", "epochs", "batch_size", "optimizer", "schedule", "learning_rate", "weight_decay"):
            section[field] = config.defense[field]
    for field in ("width", "epochs", "batch_size", "schedule", "learning_rate"):
        config.defense.refine_substitute.copy[field] = config.victim[field]
    config.defense.refine_zeroth_order.block = 2
    return config
