"""results/digits_studies/: every table is what its sweep's command makes of the results beside it."""

import pathlib
import shutil

import pytest

from refine_jax.sweep import __main__ as program

ROOT = pathlib.Path(__file__).parents[2]
STUDIES = ROOT / "results" / "digits_studies"
NAMES = sorted(path.parent.name for path in STUDIES.glob("*/runs"))


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_a_study_is_that_of_its_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    shutil.copytree(STUDIES / name / "runs", tmp_path / "runs")
    config = f"--config=configs/sweeps/{name}.py:mini"
    assert program.main([config, f"--workdir={tmp_path}", "--config.defense.epochs=15", "--table"]) == 0
    for table in ("table.md", "table.csv", "table.json"):
        # Where it differs: run the command of results/digits_studies/README.md again.
        assert (tmp_path / table).read_text() == (STUDIES / name / table).read_text()


def test_every_study_is_among_them():
    page = (STUDIES / "README.md").read_text()
    assert len(NAMES) > 5
    assert all(f"({name}/table.md)" in page for name in NAMES)
