"""Several defenses of one victim: each with settings, figures and costs of its own."""

import dataclasses
import shutil
from typing import ClassVar

import jax
import numpy as np
import pytest

from refine_jax import evaluation, fields, pipeline
from refine_jax.datasets.images import NO_LABEL
from refine_jax.defenses import contract
from refine_jax.defenses import registry as defenses
from refine_jax.errors import SettingError, WorkdirError
from refine_jax.report.tables import text_table
from tests.small_run import EXPORT_DEFENSES, K, config, copied, done_fixture, folder_fixture, tiny_fixture  # noqa: F401


@dataclasses.dataclass(frozen=True)
class Dimmed:
    """A classifier that is shown darker images."""

    classifier: object
    factor: np.ndarray
    image_size: tuple[int, int]
    permutation = None

    def parts(self):
        return {"factor": self.factor}

    def __call__(self, images):
        return jax.nn.softmax(self.classifier(images * self.factor))


class Dimming:
    """A defense beside REFINE that says that it needs labels."""

    DEFAULTS: ClassVar = {"factor": 0.5}
    NEEDS = contract.Needs(gradients=False, labels=True, clean_images=True)

    def __init__(self):
        self.given = []

    def check(self, prefix, settings, num_images, image_size):
        if not settings["factor"] > 0:
            raise SettingError(f"{prefix}.factor", settings["factor"], "above 0")

    def fit(self, classifier, clean, settings, seed, num_classes, journal, execution):
        self.given.append(clean)
        defended = self.load(None, classifier, settings, clean.images.shape[1:3])
        return contract.Fitted(defended, findings={"classes": sorted({*clean.labels.tolist()})})

    def load(self, checkpoints, classifier, settings, image_size):
        return Dimmed(classifier, np.float32(settings["factor"]), image_size)


jax.tree_util.register_dataclass(Dimmed, ["classifier", "factor"], ["image_size"])


@pytest.fixture
def dimming(monkeypatch):
    made = Dimming()
    monkeypatch.setitem(defenses.DEFENSES, "dimming", made)
    for cached in (fields._types, fields._open):
        cached.cache_clear()
    yield made
    for cached in (fields._types, fields._open):
        cached.cache_clear()


def test_a_defense_is_added_to_a_run_and_the_others_are_not_measured_again(
    done, folder, tmp_path, dimming, tiny, monkeypatch
):
    work = copied(folder, tmp_path)
    measured = []
    count = evaluation.count
    monkeypatch.setattr(evaluation, "count", lambda *given: measured.append(given[3]) or count(*given))
    both = config(defense__names=("refine", "dimming"))
    results = pipeline.run(both, str(work))
    assert measured == [None]  # the new one alone, which has no permutation
    assert results["no_defense"] == done["no_defense"]
    assert results["defenses"]["refine"] == done["defenses"]["refine"]
    found = results["defenses"]["dimming"]
    assert found["needs"] == {"gradients": False, "labels": True, "clean_images": True}
    assert (found["mapped_asr"], found["train_seconds"], found["parameters"]) == (None, 0, 0)
    assert found["milliseconds_per_image"] > 0
    assert found["findings"] == {"classes": [*range(K)]}
    assert found["counts"]["ba"][1] == len(tiny.test)
    assert (dimming.given[0].labels == tiny.train.labels).all()
    assert results["settings"]["defense"]["dimming"] == {"factor": 0.5}
    assert "dimming" in text_table(results)


def test_a_defenses_settings_are_its_own(done, folder, tmp_path, dimming, monkeypatch):
    work = copied(folder, tmp_path)
    both = config(defense__names=("refine", "dimming"))
    pipeline.run(both, str(work))
    both.defense.dimming.factor = 0.25
    with pytest.raises(WorkdirError, match=r"'defend \(dimming\)'.*defense.factor: 0.5 -> 0.25"):
        pipeline.run(both, str(work))
    both.defense.dimming.factor = -1.0
    with pytest.raises(SettingError, match=r"defense\.dimming\.factor"):
        pipeline.run(both, str(work))
    alone = config(defense__names=("dimming",), defense__epochs=-3)  # REFINE's, which is not among them
    monkeypatch.setattr(pipeline, "export_defenses", EXPORT_DEFENSES)
    results = pipeline.run(alone, str(tmp_path / "alone"))
    assert [*results["defenses"]] == ["dimming"]
    assert not (tmp_path / "alone" / "export").exists()


def test_a_defense_with_other_settings_is_measured_anew_though_it_has_learned_the_same(dimming, tmp_path, monkeypatch):
    monkeypatch.setattr(Dimmed, "parts", lambda self: {})

    def answers(factor, **flags):
        given = config(defense__names=("dimming",))
        given.defense.dimming.factor = factor
        return pipeline.run(given, str(tmp_path), **flags)["defenses"]["dimming"]["answers"]

    assert max(answers(1.0)) < 50
    assert max(answers(1e-6, overwrite=True)) == 50  # black, so that all images are answered alike
    shutil.rmtree(tmp_path / "defense" / "dimming")  # by hand, which leaves what was measured
    assert max(answers(1.0)) < 50


def test_a_defense_without_labels_does_not_see_them(dimming, tmp_path, monkeypatch):
    monkeypatch.setattr(Dimming, "NEEDS", contract.Needs(gradients=False, labels=False, clean_images=True))
    pipeline.run(config(defense__names=("dimming",)), str(tmp_path), ("victim", "defend"))
    assert (dimming.given[0].labels == NO_LABEL).all()
