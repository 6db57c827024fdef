"""What BDMAE cannot work with is refused before any work, by the name of its field."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from refine_jax.defenses.bdmae import defense
from refine_jax.errors import SettingError
from tests.defenses.bdmae import small


def refused(changed, message, image_size=(32, 24)):
    with pytest.raises(SettingError, match=message):
        defense.check("defense.bdmae", {**small.settings(), **changed}, 50, image_size)


@pytest.mark.parametrize("size", [(32, 32), (16, 24)])
def test_the_defaults_are_fine_for_small_images(size):
    defense.check("defense.bdmae", {**defense.DEFAULTS, "mae_checkpoint": None}, 128, size)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"patch_size": 3},
            r"defense\.bdmae\.patch_size = 3: allowed: 1, 2, 4, 8 for .* 32 x 24, .*checkpoint",
        ),
        ({"width": 10}, r"defense\.bdmae\.width = 10: allowed: a multiple of 4 and of its 2 heads"),
        ({"decoder_heads": 3}, r"defense\.bdmae\.decoder_width = 4: allowed: a multiple of 4 and of its 3 heads"),
        ({"batch_size": 51}, r"defense\.bdmae\.batch_size = 51: allowed: at most the 50 clean images"),
        ({"epochs": 0}, r"defense\.bdmae\.epochs = 0: allowed: a whole number, 1 or more"),
        ({"refinements": -1}, r"defense\.bdmae\.refinements = -1: allowed: a whole number, 0 or more"),
        ({"learning_rate": 0.0}, r"defense\.bdmae\.learning_rate = 0\.0: allowed: above 0"),
        ({"alpha": 1.5}, r"defense\.bdmae\.alpha = 1\.5: allowed: 0 to 1"),
        ({"alpha": float("nan")}, r"defense\.bdmae\.alpha = nan: allowed: a finite number"),
        ({"mask_ratio": 1.0}, r"defense\.bdmae\.mask_ratio = 1\.0: allowed: above 0 and below 1"),
        ({"mask_ratio": 0.001}, r"defense\.bdmae\.mask_ratio = 0\.001: allowed: what leaves some of 192 patches"),
        ({"mask_ratio": 0.1}, r"defense\.bdmae\.inner_repeats = 2: allowed: 11 or more with .*mask_ratio = 0\.1"),
        ({"restored_share": 0.0}, r"defense\.bdmae\.restored_share = 0\.0: allowed: above 0"),
        ({"thresholds": (0.4, 0.6)}, r"defense\.bdmae\.thresholds = \(0\.4, 0\.6\): allowed: .*each below"),
        ({"thresholds": ()}, r"defense\.bdmae\.thresholds = \(\): allowed: numbers between 0 and 1"),
    ],
)
def test_impossible_settings(changed, message):
    refused(changed, message)


def test_images_that_have_too_many_patches_are_refused():
    refused({}, r"patch_size = 2: allowed: 7, 8, 14, 16, .* for images of 224 x 224", (224, 224))


def test_a_checkpoint_that_is_missing_or_of_something_else_is_refused(tmp_path):
    field = r"defense\.bdmae\.mae_checkpoint = "
    refused({"mae_checkpoint": str(tmp_path / "mae.pth")}, field + r".*mae\.pth cannot be read: No such file")
    other = tmp_path / "resnet.safetensors"
    save_file({"conv1.weight": np.zeros((4, 3, 3, 3), np.float32)}, other)
    refused({"mae_checkpoint": str(other)}, field + r".*resnet\.safetensors: holds no decoder of a masked autoencoder")
