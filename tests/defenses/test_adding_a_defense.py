"""docs/adding_a_defense.md, done word for word."""

import importlib.util
import pathlib
import re

import jax
import numpy as np
import pytest

from refine_jax import fields, pipeline
from refine_jax.datasets.images import Split
from refine_jax.defenses import chance, registry
from refine_jax.errors import SettingError
from refine_jax.training.journal import Journal
from tests.small_run import config, tiny_fixture  # noqa: F401

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "adding_a_defense.md"


@pytest.fixture(autouse=True, name="noise")
def noise_fixture(tmp_path, monkeypatch):
    """The page's file as a module, and the page's line in the registry."""
    file, line = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    path = tmp_path / "gaussian_noise.py"
    path.write_text(file)
    spec = importlib.util.spec_from_file_location("gaussian_noise", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, entry in eval("{" + line + "}", {"gaussian_noise": module}).items():
        monkeypatch.setitem(registry.DEFENSES, name, entry)
    for cached in (fields._types, fields._open):
        cached.cache_clear()
    yield module
    for cached in (fields._types, fields._open):
        cached.cache_clear()


def test_it_is_a_defense_like_the_others(tmp_path, tiny):
    assert registry.names()[-1] == "gaussian_noise"
    alone = config(defense__names=("gaussian_noise",))
    alone.defense.gaussian_noise.sigma = 0.3
    alone.defense.gaussian_noise.sweep = (1.0,)
    results = pipeline.run(alone, str(tmp_path / "work"))
    figures = results["defenses"]["gaussian_noise"]
    assert figures["counts"]["ba"][1] == len(tiny.test)
    assert [entry["settings"]["sigma"] for entry in figures["sweep"]] == [0.3, 1.0]
    assert pipeline.run(alone, str(tmp_path / "work")) == results

    alone.defense.gaussian_noise.sweep = (1.5,)
    with pytest.raises(SettingError, match=r"defense\.gaussian_noise\.sweep = \(1\.5,\): .* above 0 and at most 1"):
        pipeline.run(alone, str(tmp_path / "work"))
    alone.defense.gaussian_noise.sigma = -1.0
    with pytest.raises(SettingError, match=r"defense\.gaussian_noise\.sigma = -1\.0"):
        pipeline.run(alone, str(tmp_path / "work"))


def test_it_keeps_its_promises(noise, tmp_path):
    images = np.full((64, 8, 8, 3), 100, np.uint8) + np.arange(64, dtype=np.uint8)[:, None, None, None]
    classifier = jax.tree_util.Partial(lambda images: images.mean(axis=(1, 2)))
    journal = Journal(tmp_path / "checkpoints", tmp_path / "metrics.jsonl", {}, 1, 1.0)
    settings = {"sigma": 0.05}
    fitted = noise.fit(classifier, Split.unlabeled(images), settings, 3, 3, journal).defended
    loaded = noise.load(journal.checkpoints, classifier, settings, (8, 8))
    inputs = images.astype(np.float32) / 255
    shown = np.asarray(fitted.transform(inputs))
    np.testing.assert_array_equal(loaded.transform(inputs), shown)
    np.testing.assert_array_equal(np.asarray(fitted.transform(inputs[::-1]))[::-1], shown)
    assert abs((shown - inputs).std() - 0.05) < 0.002
    np.testing.assert_array_equal(loaded.parts()["key"], chance.read_kept(journal.checkpoints))
