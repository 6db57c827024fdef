"""Defenses measured at several strengths: the chosen one is the headline, the others stand below it."""

import shutil

import pytest

from refine_jax import answers, asking, pipeline, settings
from refine_jax.defenses import registry
from refine_jax.errors import SettingError
from refine_jax.report.tables import text_table
from tests.small_run import config, tiny_fixture  # noqa: F401


def with_bits(bits=3, sweep=(1, 5)):
    made = config(defense__names=("bit_depth",))
    made.defense.bit_depth.bits = bits
    made.defense.bit_depth.sweep = sweep
    return made


@pytest.fixture
def measured(monkeypatch):
    """What is measured, counted."""
    count = []
    answer = asking.answer
    monkeypatch.setattr(asking, "answer", lambda *given: count.append(1) or answer(*given))
    return count


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return tmp_path_factory.mktemp("strengths") / "work"


@pytest.fixture
def work(once, tmp_path, tiny):
    """A copy of a run that was measured at three strengths."""
    pipeline.run(with_bits(), str(once))
    return shutil.copytree(once, tmp_path / "work")


def bits_of(results):
    return [entry["settings"]["bits"] for entry in results["defenses"]["bit_depth"]["sweep"]]


def test_each_strength_has_the_figures_that_it_would_have_as_the_chosen_one(work, tmp_path):
    results = pipeline.run(with_bits(), str(work))
    headline = results["defenses"]["bit_depth"]
    assert bits_of(results) == [1, 3, 5]
    assert [entry["chosen"] for entry in headline["sweep"]] == [False, True, False]
    other = with_bits(bits=1, sweep=())
    other.victim.workdir = str(work)
    weaker = pipeline.run(other, str(tmp_path / "other"))["defenses"]["bit_depth"]
    assert weaker["sweep"] == []
    for entry, figures in zip(headline["sweep"], (weaker, headline), strict=False):
        assert {"ba", "asr", "asr_all", "mapped_asr", "ra", "der", "counts", "ci95"} <= {*entry}
        for name in {*entry} - {"settings", "chosen"}:
            assert entry[name] == figures[name], name
    assert headline["counts"]["ba"] != weaker["counts"]["ba"]
    assert "bits 3 *" in text_table(results)


def test_other_strengths_are_measured_without_the_rest_anew(work, measured):
    assert bits_of(pipeline.run(with_bits(sweep=(1, 4, 5)), str(work))) == [1, 3, 4, 5]
    assert len(measured) == 1
    assert bits_of(pipeline.run(with_bits(sweep=(3,)), str(work))) == [3]
    assert bits_of(pipeline.run(with_bits(sweep=()), str(work))) == []
    assert len(measured) == 1
    assert bits_of(pipeline.run(with_bits(sweep=None), str(work))) == [1, 2, 3, 4, 5]
    assert len(measured) == 2


def test_an_evaluation_that_was_cut_short_goes_on(work, measured, monkeypatch):
    shutil.rmtree(work / "evaluation")
    (work / "results.json").unlink()
    answer = asking.answer

    def cut_short(*given):
        if len(measured) == 3:
            raise KeyboardInterrupt
        return answer(*given)

    with monkeypatch.context() as patch:
        patch.setattr(asking, "answer", cut_short)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(with_bits(), str(work))
    assert bits_of(pipeline.run(with_bits(), str(work))) == [1, 3, 5]
    assert len(measured) == 4


def test_a_strength_that_is_cut_off_goes_on_within_its_images(work, monkeypatch):
    before = pipeline.run(with_bits(), str(work))["defenses"]["bit_depth"]["sweep"]
    (work / "evaluation" / "bit_depth" / "bits_5.json").unlink()
    (work / "results.json").unlink()
    monkeypatch.setattr(asking, "BATCH_SIZE", 10)
    monkeypatch.setattr(answers, "_INTERVAL", 0.0)
    compiled, asked = asking.compiled, []

    def counting(behind):
        predict = compiled(behind)

        def ask(images):
            if len(asked) == 7:  # of five batches of clean images and five of triggered ones
                raise KeyboardInterrupt
            asked.append(len(images))
            return predict(images)

        return ask

    monkeypatch.setattr(asking, "compiled", counting)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(with_bits(), str(work))
    unfinished = work / "evaluation" / "bit_depth" / "bits_5.unfinished.npz"
    assert unfinished.exists()
    asked[:] = [0] * 8
    after = pipeline.run(with_bits(), str(work))["defenses"]["bit_depth"]["sweep"]
    assert asked[8:] == [10] * 3
    assert [entry["counts"] for entry in after] == [entry["counts"] for entry in before]
    assert after[2]["w1"] == pytest.approx(before[2]["w1"], rel=1e-5)
    assert not unfinished.exists()


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ((3, 9), r"defense\.bit_depth\.sweep = \(3, 9\): allowed: values of bits, each 1 to 7"),
        (("3",), r"defense\.bit_depth\.sweep = \('3',\): allowed: values of bits, each a whole number"),
    ],
)
def test_impossible_strengths_are_refused_before_any_work(sweep, message, tmp_path, tiny):
    with pytest.raises(SettingError, match=message):
        pipeline.run(with_bits(sweep=sweep), str(tmp_path / "work"))
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("side", [16, 32, 224])
def test_usual_strengths_are_possible_and_several(side):
    section = settings.default().defense.to_dict()
    for name, module in registry.DEFENSES.items():
        found = registry.variants(name, section, (side, side))
        assert hasattr(module, "STRENGTH") == (registry.SWEEP in module.DEFAULTS)
        assert bool(found) == (hasattr(module, "STRENGTH") and bool(module.strengths((side, side))))
        for variant in found.values():
            module.check(name, variant, 100, (side, side))
        assert len(found) >= 3 or not found
        assert registry.settings_of(name, section) in found.values() or not found
