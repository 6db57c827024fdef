"""The report of a run; tests/report has its parts."""

import json
import types

import pytest

from refine_jax import asking, pipeline, report_stage
from refine_jax.errors import WorkdirError
from refine_jax.evaluate_stage import NO_DEFENSE
from refine_jax.report import material, page
from refine_jax.workdir import Workdir
from tests.small_run import (  # noqa: F401
    SIDE,
    WRITE_REPORT,
    config,
    contents,
    copied,
    done_fixture,
    folder_fixture,
    tiny_fixture,
)


@pytest.fixture
def write(monkeypatch):
    """Runs the stage in a working directory."""
    monkeypatch.setattr(report_stage, "write", WRITE_REPORT)
    return lambda work, **changed: pipeline.run(config(**changed), str(work), ["report"])


def test_a_report_is_written_once_of_the_same_results_and_again_where_it_is_not_whole(
    done, folder, tmp_path, write, monkeypatch
):
    work = copied(folder, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(asking, "answer", None)  # what was answered is kept
        write(work)
    report = work / "report"
    assert {"index.html", "table.md", "table.csv", "table.tex", "flow_refine.png", "gallery.svg"} <= {
        path.name for path in report.iterdir()
    }
    text = (report / "index.html").read_text()
    assert f"{100 * done['defenses']['refine']['ba']:.2f}" in text
    assert "function without a method" in text  # the network has no features

    made = []
    monkeypatch.setattr(page, "write", lambda found, folder: made.append(found))
    before = contents(report)
    write(work)
    assert contents(report) == before
    assert made == []
    (report / "table.md").unlink()
    write(work)
    assert len(made) == 1


def test_answers_that_were_not_kept_are_asked_for(done, folder, tmp_path, write, monkeypatch, tiny):
    work = copied(folder, tmp_path)
    for path in (work / "evaluation").glob("*.npz"):
        path.unlink()
    made = []
    monkeypatch.setattr(page, "write", lambda found, folder: made.append(found))
    write(work)
    alone, refine = made[0].classifiers
    assert (alone.name, refine.name) == (material.NO_DEFENSE, "refine")
    assert alone.confusion.trace() == done["no_defense"]["counts"]["ba"][0]
    assert refine.destinations.sum(axis=0)[1] == done["defenses"]["refine"]["counts"]["asr"][0]
    assert refine.mapped_target not in (0, None)
    assert (work / "evaluation" / f"{NO_DEFENSE}.npz").exists()
    assert [*made[0].curves] == ["victim", "refine"]
    assert made[0].contact_sheet.startswith(b"\x89PNG")
    example = made[0].examples[0]
    assert example.cells["T(triggered)"].image.shape == (SIDE, SIDE, 3)
    assert (example.cells["clean"].image == tiny.test.images[example.number]).all()


def test_without_figures_there_is_no_report(folder, tmp_path, write, done):
    work = copied(folder, tmp_path)
    (work / "results.json").unlink()
    with pytest.raises(WorkdirError, match=r"results.json holds no figures of this run: stage 'evaluate' does that"):
        write(work)


def test_a_borrowed_victims_training_is_shown_too(tmp_path):
    for name, stages in (("own", ("refine",)), ("borrowed", ("victim", "benign", "refine"))):
        (tmp_path / name).mkdir()
        rows = [{"stage": stage, "step": 1, "loss": len(name)} for stage in stages]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"victim": {"workdir": str(tmp_path / "borrowed")}}
    found = report_stage._read_curves(types.SimpleNamespace(work=Workdir(tmp_path / "own"), settings=settings))
    assert {stage: curve["loss"].tolist() for stage, curve in found.items()} == {
        **{"victim": [8], "benign": [8]},
        "refine": [3],
    }
