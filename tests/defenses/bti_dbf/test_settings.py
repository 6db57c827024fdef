"""What BTI-DBF cannot be fitted with is refused before any work."""

import jax
import numpy as np
import pytest

from refine_jax import fields, pipeline
from refine_jax.classifier import Classifier
from refine_jax.defenses import registry
from refine_jax.defenses.bti_dbf import purification, unlearning
from refine_jax.errors import SettingError
from refine_jax.function_classifier import wrap
from refine_jax.settings import complete, default
from tests.defenses.bti_dbf.small import net_fixture, settings, split  # noqa: F401
from tests.small_defense import K, Linear, registered
from tests.small_run import config, tiny_fixture  # noqa: F401

BOTH = pytest.mark.parametrize("module", [purification, unlearning])


def usual(module):
    return {name: value for name, value in module.DEFAULTS.items() if name != registry.SWEEP}


@BOTH
def test_the_released_programs_settings_are_fine_for_its_images(module):
    module.check("defense.x", usual(module), 50_000, (32, 32))


@BOTH
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data_fraction": 0.0}, r"defense\.x\.data_fraction = 0\.0: allowed: above 0"),
        ({"data_fraction": 0.002}, r"defense\.x\.batch_size = 128: allowed: at most the 100 clean images"),
        ({"rounds": 0}, r"defense\.x\.rounds = 0: allowed: a whole number, 1 or more"),
        ({"mask_epochs": 2.5}, r"defense\.x\.mask_epochs = 2\.5: allowed: a whole number"),
        ({"pretraining_epochs": True}, r"defense\.x\.pretraining_epochs = True: allowed: a finite number"),
        ({"norm_bound": -0.1}, r"defense\.x\.norm_bound = -0\.1: allowed: above 0"),
        ({"learning_rate": float("inf")}, r"defense\.x\.learning_rate = inf: allowed: a finite number"),
        ({"noise": -1.0}, r"defense\.x\.noise = -1\.0: allowed: 0 or more"),
        ({"triggered_share": 1.5}, r"defense\.x\.triggered_share = 1\.5: allowed: above 0 and at most 1"),
        ({"crop_padding": 33}, r"defense\.x\.crop_padding = 33: allowed: at most a side"),
        ({"depth": 5}, r"defense\.x\.depth = 5: allowed: 1 to 4 for images of 32 x 40"),
    ],
)
def test_impossible_settings(module, changed, message):
    with pytest.raises(SettingError, match=message):
        module.check("defense.x", {**usual(module), **changed}, 50_000, (32, 40))


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (
            (1, 4),
            r"bti_dbf_p\.sweep = \(1, 4\): allowed: values of rounds, each at most the 3 of",
        ),
        ((0,), r"bti_dbf_p\.sweep = \(0,\): allowed: values of rounds, each a whole number, 1 or more"),
        ((1.5,), r"bti_dbf_p\.sweep = \(1\.5,\): allowed: values of rounds, each a whole number"),
    ],
)
def test_rounds_that_a_fit_does_not_come_by_are_refused(sweep, message, tmp_path, tiny):
    made = config(defense__names=("bti_dbf_p",))
    own = made.defense.bti_dbf_p
    own.rounds, own.sweep, own.depth, own.data_fraction, own.batch_size = 3, sweep, 3, 1.0, 32
    with pytest.raises(SettingError, match=message):
        pipeline.run(made, str(tmp_path / "work"))
    assert not (tmp_path / "work").exists()


def test_each_has_settings_of_its_own_in_a_configuration():
    config = default()
    config.defense.names = ("bti_dbf_u", "bti_dbf_p")
    config.defense.bti_dbf_p.rounds = 3
    section = complete(config)["defense"]
    assert (section["bti_dbf_p"]["rounds"], section["bti_dbf_u"]["rounds"]) == (3, 5)
    fields.check_field("defense.bti_dbf_p.purification_epochs", 1)
    with pytest.raises(SettingError, match=r"bti_dbf_u\.unlearning_epochs"):
        fields.check_field("defense.bti_dbf_u.purification_epochs", 1)


@BOTH
def test_a_classifier_whose_features_cannot_be_seen_is_refused(module, monkeypatch):
    for name in ("Phases", "Inversion"):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("work was begun"))
    weights = np.random.default_rng(0).normal(size=(8 * 8 * 3, K)).astype(np.float32)
    function = wrap(lambda images: images.reshape(len(images), -1) @ weights, (8, 8))
    with registered():
        linear = Classifier(
            "tiny", Linear(K).init(jax.random.key(0), np.zeros((1, 8, 8, 3))), K, (0.5,) * 3, (0.25,) * 3
        )
        for classifier in (function, linear):
            with pytest.raises(SettingError, match=r"classifier = .*'features' and 'head'"):
                module.fit(classifier, split(64, 0), settings(module), 0, K)
