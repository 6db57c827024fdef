"""Many runs on one page. What its script does was tried in a browser; here the table without it is read."""

import csv
import io

import pytest

from refine_jax.errors import WorkdirError
from refine_jax.files import write_record
from refine_jax.report import __main__ as program
from refine_jax.report import compare
from tests.report.material import results
from tests.report.test_page import Reader


@pytest.fixture
def runs(tmp_path):
    """Two runs in a folder, the first with a report, and one beside it."""
    for number, name in enumerate(("sweep/a", "sweep/b", "alone")):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        found = results()
        found["settings"] = {**found["settings"], "seed": number}
        found["attack"]["name"] = ("badnets", "wanet", "<i>")[number]
        found["warnings"] = []
        if name == "alone":
            found["settings"]["victim"] = {**found["settings"]["victim"], "adaptive": {"knowledge": "known"}}
        write_record(folder / "results.json", found)
    (tmp_path / "sweep" / "a" / "report").mkdir()
    (tmp_path / "sweep" / "a" / "report" / "index.html").touch()
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
    assert filters == ["dataset", "network", "attack", "defense"]
    assert read.all("form")[0].keys() >= {"hidden"}  # without a script nothing could be filtered
    cells = next(attributes for attributes in read.all("td") if attributes.get("data-value") == "12.50")
    assert cells

    written = [*csv.DictReader(io.StringIO((runs / "out" / "table.csv").read_text()))]
    assert [(row["run"], row["seed"]) for row in written[::2]] == [("sweep/a", "0"), ("sweep/b", "1"), ("alone", "2")]
    assert float(written[1]["asr"]) == 0.125
    markdown = (runs / "out" / "table.md").read_text().splitlines()
    assert len(markdown) == 2 + 6 + 2
    assert (runs / "out" / "table.tex").read_text().count(r"\\") == 7

    program.main([str(runs / "sweep" / "a"), f"--output={runs / 'out'}"])  # replaces it
    assert (runs / "out" / "table.md").read_text().count("refine") == 1


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
