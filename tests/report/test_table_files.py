import csv
import io
import re

import numpy as np
import pytest

from refine_jax import doubts
from refine_jax.report import page, table_files
from tests.report.material import results


@pytest.fixture(scope="module")
def found():
    return results()


def test_markdown_has_a_row_for_each_classifier_and_a_dash_for_what_is_not_known(found):
    lines = table_files.markdown(*table_files.headline(found)).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert cells[0] == ["", "BA", "ASR", "mapped ASR", "RA", "DER"]
    assert cells[1] == ["---"] * 6
    assert [row[0] for row in cells[2:]] == ["no defense", "refine"]
    assert cells[2][3] == cells[2][5] == "-"
    assert cells[3][1].startswith("80.00 [")
    assert cells[3][2].startswith("12.50 [2.2")  # 1 of 8, as docs/metrics.md has it


def test_figures_that_no_classifier_has_have_no_column(found):
    alone = {**found, "defenses": {}}
    assert table_files.headline(alone)[0] == ["", "BA", "ASR", "RA"]


def test_a_distance_is_no_percentage_and_has_no_interval(found):
    measured = {**found, "no_defense": {**found["no_defense"], "w1": 1.23456, "w1_images": 10}}
    header, rows = table_files.headline(measured)
    assert header[-1] == "W1"
    assert [row[-1] for row in rows] == ["1.235", "-"]
    cells = table_files.cells(measured["no_defense"])
    assert (cells["w1"], cells["w1_images"]) == (1.23456, 10)
    assert page.cell(measured["no_defense"], "w1") == {"value": "1.235", "low": None, "high": None, "count": None}


def test_csv_has_shares_counts_and_intervals(found):
    rows = {row["classifier"]: row for row in csv.DictReader(io.StringIO(table_files.comma_separated(found)))}
    refine = found["defenses"]["refine"]
    assert float(rows["refine"]["asr"]) == refine["asr"] == 0.125
    assert (rows["refine"]["asr_hits"], rows["refine"]["asr_images"]) == ("1", "8")
    assert [float(rows["refine"][f"asr_{end}"]) for end in ("low", "high")] == refine["ci95"]["asr"]
    assert rows["no defense"]["mapped_asr"] == rows["no defense"]["mapped_asr_hits"] == ""
    assert rows["refine"]["milliseconds_per_image"] == "1.25"


def test_what_is_doubtful_stands_below_in_comments_and_beside_what_it_is_about(found):
    assert "warnings" not in table_files.comma_separated({**found, "warnings": []}).splitlines()[0]
    other = {**found["defenses"], "refine_other": found["defenses"]["refine"]}
    told = {**found, "defenses": other, "warnings": ["the attack did not take: why", "refine: a", "refine_other b"]}
    rows = [*csv.DictReader(io.StringIO(table_files.comma_separated(told)))]
    assert [(row["classifier"], row["warnings"]) for row in rows] == [
        ("no defense", "the attack did not take: why"),
        ("refine", "the attack did not take: why; refine: a"),
        ("refine_other", "the attack did not take: why; refine_other b"),
    ]
    assert table_files.markdown(["a"], [["b"]], doubts=["c", "d"]).endswith("\n\nWARNING: c\n\nWARNING: d\n")
    lines = table_files.latex(["a"], [["b"]], doubts=["c\nd"]).splitlines()
    assert lines[1:3] == ["% WARNING: c d", r"\begin{tabular}{l}"]


def test_whose_a_warning_is_can_be_told_of_every_kind_that_there_is():
    victim = {"ba": 0.5, "asr": 0.1, "ci95": {"ba": [0.4, 0.6]}}
    fine = {"ba": 0.9, "ci95": {"ba": [0.8, 1.0]}, "answers": [5, 5]}
    drawn = {"augmentation_class": 0, "augmentation_images": 100, "augmentation_share": 0.9}
    defenses = {
        "a": {**fine, "answers": [10, 0]},
        "a_b": {**fine, "ba": 0.5, "ci95": victim["ci95"]},
        "c": {**fine, "findings": drawn},
        "fine": fine,
    }
    warnings = doubts.find(victim, defenses, np.arange(10) % 2)
    assert len(warnings) == 5
    results = {"no_defense": victim, "defenses": defenses, "warnings": warnings}
    general = warnings[:2]
    assert table_files.doubts_of(results, "no defense") == table_files.doubts_of(results, "fine") == general
    for name, own in zip(("a", "a_b", "c"), warnings[2:], strict=True):
        assert table_files.doubts_of(results, name) == [*general, own]


def test_latex_is_a_tabular_with_as_many_cells_a_row_as_columns_and_nothing_that_tex_would_take_amiss():
    rows = [["a_b & 50 % \\ {x}", "1.00 [0.50, 2.00]"], ["[c]", "-"]]
    lines = table_files.latex(["", "50 #"], rows).splitlines()
    assert lines[1] == r"\begin{tabular}{lr}"
    assert lines[-1] == r"\end{tabular}"
    assert lines[5] == r"a\_b \& 50 \% \textbackslash{} \{x\} & 1.00 {\scriptsize [0.50, 2.00]} \\"
    assert lines[6] == r"{[c]} & - \\"
    body = [line for line in lines if line.endswith(r"\\")]
    assert all(len(re.findall(r"(?<!\\)&", line)) == 1 for line in body)
