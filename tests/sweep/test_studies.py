"""Tables of sweeps under results/: each is what its sweep's command makes of the results beside it."""

import pathlib
import shutil

import pytest

from refine_jax.sweep import __main__ as program

ROOT = pathlib.Path(__file__).parents[2]
STUDIES = ROOT / "results" / "digits_studies"
DEFENSES = ROOT / "results" / "cifar10_mini" / "defenses"
PURIFIERS = ROOT / "results" / "cifar10_mini" / "bti_dbf_p"
NAMES = sorted(path.parent.name for path in STUDIES.glob("*/runs"))


def check_table(kept, tmp_path, monkeypatch, *flags, status=0):
    monkeypatch.chdir(ROOT)
    shutil.copytree(kept / "runs", tmp_path / "runs")
    config = f"--config=configs/sweeps/{kept.name}.py:mini"
    assert program.main([config, f"--workdir={tmp_path}", *flags, "--table"]) == status
    for table in ("table.md", "table.csv", "table.json"):
        # Where it differs: run the command of the README beside it again.
        assert (tmp_path / table).read_text() == (kept / table).read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_a_study_is_that_of_its_runs(name, tmp_path, monkeypatch):
    check_table(STUDIES / name, tmp_path, monkeypatch, "--config.defense.epochs=15")


def test_every_study_is_among_them():
    page = (STUDIES / "README.md").read_text()
    assert len(NAMES) > 5
    assert all(f"({name}/table.md)" in page for name in NAMES)


def test_the_table_of_the_defenses_is_that_of_its_runs(tmp_path, monkeypatch):
    """As far as it goes: while anything is missing, the status says so."""
    check_table(DEFENSES, tmp_path, monkeypatch, status=2)


def test_the_table_of_purifiers_is_that_of_its_runs(tmp_path, monkeypatch):
    check_table(PURIFIERS, tmp_path, monkeypatch)
