"""Many runs on one page, read as it is without its script; test_browser.py tries that."""

import csv
import io
import pathlib

import pytest

from refine_jax.errors import WorkdirError
from refine_jax.report import __main__ as program
from refine_jax.report import compare
from tests.report.material import write_runs
from tests.report.test_page import Reader


@pytest.fixture
def runs(tmp_path):
    write_runs(tmp_path)
    return tmp_path


def test_every_classifier_of_every_run_has_a_row_in_page_and_tables(runs):
    page = program.main([str(runs / "sweep"), str(runs / "alone"), f"--output={runs / 'out'}"])
    read = Reader(page.read_text())
    rows = [attributes for attributes in read.all("tr") if "data-run" in attributes]
    assert [(row["data-run"], row["data-attack"], row["data-defense"]) for row in rows] == [
        (run, attack, defense)
        for run, attack in (("sweep/a", "badnets"), ("sweep/b", "wanet"), ("alone", "<i>, adaptive (known)"))
        for defense in ("no defense", "refine")
    ]
    assert {link["href"] for link in read.all("a")} == {"#main", "../sweep/a/report/index.html"}
    assert not any("src" in attributes for _, attributes, _ in read.elements)
    assert read.all("i") == []
    filters = [select["data-key"] for select in read.all("select")]
    assert filters == ["attack", "defense"]  # of the others there is one value
    titles = [title.strip() for title in read.texts if title.strip() in compare.KEYS.values()]
    assert titles == ["attack", "defense", "run", "attack", "seed", "defense"]  # the filters, and the table's head
    assert "All: data set made, network resnet18, target 0." in read.texts
    assert read.all("form")[0].keys() >= {"hidden"}  # without a script nothing could be filtered
    cells = next(attributes for attributes in read.all("td") if attributes.get("data-value") == "12.50")
    assert cells

    written = [*csv.DictReader(io.StringIO((runs / "out" / "table.csv").read_text()))]
    assert [(row["run"], row["seed"]) for row in written[::2]] == [("sweep/a", "2"), ("sweep/b", "10"), ("alone", "1")]
    assert float(written[1]["asr"]) == 0.125
    assert {row["network"] for row in written} == {"resnet18"}
    markdown = (runs / "out" / "table.md").read_text().splitlines()
    assert len(markdown) == 2 + 6 + 2 + 2
    assert markdown[0] == "| run | attack | seed | defense | BA | ASR | mapped ASR | RA | DER |"
    assert markdown[-3].endswith("DER from 0 to 100. Of one run each. All: data set made, network resnet18, target 0.")
    assert (runs / "out" / "table.tex").read_text().count(r"\\") == 7
    # What is doubtful of one defense is said of it alone.
    assert [row["warnings"] for row in written] == [*5 * [""], "refine has collapsed"]
    assert read.texts.count("doubtful: refine has collapsed") == 1
    assert markdown[-1] == "WARNING: of alone, refine has collapsed"
    assert "\n% WARNING: of alone, refine has collapsed\n" in (runs / "out" / "table.tex").read_text()

    program.main([str(runs / "sweep" / "a"), f"--output={runs / 'out'}"])  # replaces it
    assert (runs / "out" / "table.md").read_text().count("refine") == 1


def test_the_attacks_on_cifar10_stand_beside_each_other_as_they_were_measured(tmp_path):
    results = pathlib.Path(__file__).parents[2] / "results" / "cifar10_mini"
    program.main([str(results), f"--output={tmp_path / 'made'}"])
    made, kept = (
        {path.name: path.read_text() for path in folder.iterdir()}
        for folder in (tmp_path / "made", results / "comparison")
    )
    # Where they differ: run the command of results/cifar10_mini/README.md again.
    assert [name for name in sorted({*made, *kept}) if made.get(name) != kept.get(name)] == []


def test_a_sweep_is_taken_by_its_working_directory_too(runs):
    (runs / "study").mkdir()
    (runs / "sweep").rename(runs / "study" / "runs")
    assert compare.find([runs / "study"]) == [runs / "study" / "runs" / name for name in ("a", "b")]


def test_what_is_no_run_is_named(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(WorkdirError, match=r"empty is no working directory with a results.json"):
        compare.find([tmp_path / "empty"])
    (runs / "alone" / "results.json").write_text("{}")
    with pytest.raises(WorkdirError, match=r"results.json is damaged"):
        compare.read([runs / "alone"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(WorkdirError, match="not of this program"):
        program.main([str(runs / "sweep"), f"--output={tmp_path / 'mine'}"])
