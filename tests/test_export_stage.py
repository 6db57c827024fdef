"""The stage that exports: what lies where, of one defense and of several, and when it is made again."""

import pytest

from refine_jax import artifacts, evaluation, export, pipeline
from refine_jax.attacks import kept
from tests.small_run import (  # noqa: F401
    EXPORT_DEFENSES,
    config,
    copied,
    done_fixture,
    folder_fixture,
    tiny_fixture,
)


def test_an_export_answers_as_the_run_and_is_made_once_for_its_figures(done, folder, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "export_defenses", EXPORT_DEFENSES)
    work = copied(folder, tmp_path)
    (work / "results.json").unlink()
    assert pipeline.run(config(), str(work), ["export"]) is None
    assert export.load(work / "export").manifest["figures"] is None

    assert pipeline.run(config(), str(work), ["evaluate", "export"])["hashes"] == done["hashes"]
    exported = export.load(work / "export")
    refine = done["defenses"]["refine"]
    assert exported.manifest["figures"]["defended"]["counts"] == refine["counts"]
    assert exported.manifest["hashes"] == done["hashes"]
    assert exported.manifest["settings"] == done["settings"]
    assert exported.manifest["class_names"] == list("abcd")
    triggered = kept.load(work / "attack").attack.trigger(tiny.test.images)
    figures = evaluation.measure(exported, tiny.test.images, tiny.test.labels, triggered, 0, exported.permutation)
    assert figures["counts"] == refine["counts"]

    monkeypatch.setattr(export, "save", None)
    pipeline.run(config(run__log_every=2), str(work), ["export"])
    (work / "export" / "weights.safetensors").write_bytes(b"")  # altered: made again
    with pytest.raises(TypeError):
        pipeline.run(config(), str(work), ["export"])
    pipeline.run(config(defense__sup_weight=0.2), str(work), ["victim"], overwrite=True)
    assert not (work / "export").exists()  # is of a defense that is not there any more


def test_exports_make_room_for_those_of_fewer_and_more_defenses(done, folder, tmp_path, monkeypatch):
    def save(defended, directory, **of):
        with artifacts.writing(directory, {"schema": export.SCHEMA, **of["record"]}) as part:
            (part / "weights").write_text("w")

    monkeypatch.setattr(export, "save", save)
    monkeypatch.setattr(pipeline, "export_defenses", EXPORT_DEFENSES)
    work = copied(folder, tmp_path)

    def exported(*names):
        pipeline.run(config(defense__names=names), str(work), ["defend", "export"])
        return {str(path.relative_to(work / "export")) for path in (work / "export").rglob("*") if path.is_file()}

    one, several = {"manifest.json", "weights"}, {"refine/manifest.json", "refine/weights"}
    assert exported("refine") == one
    assert exported("refine", "bit_depth") == several
    (work / "export" / ".refine.partial").mkdir()  # of a process that died
    assert exported("refine") == one
