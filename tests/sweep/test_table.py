"""Means over seeds, with intervals, as Markdown, CSV and JSON."""

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats

from refine_jax.sweep import plan, table
from tests.sweep.fake import figures, make


def test_the_interval_is_that_of_a_t_test():
    values = [0.91, 0.935, 0.9, 0.96]
    found = table.mean_and_interval(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(found["interval"], [low, high])
    assert found["mean"] == pytest.approx(np.mean(values))
    assert table.mean_and_interval([0.5]) == {"mean": 0.5, "interval": None, "values": [0.5]}


def test_an_interval_stays_where_the_figure_can_be():
    assert table.mean_and_interval([0.0, 0.0, 0.99], most=1.0)["interval"] == [0.0, 1.0]
    low, high = table.mean_and_interval([10.0, 10.0, 700.0])["interval"]
    assert low == 0
    assert high > 700


def test_where_seeds_do_not_differ_the_interval_is_the_widest_of_their_own():
    own = [[0.0, 0.0095], None, [0.0, 0.0107]]
    assert table.mean_and_interval([0.0, 0.0, 0.0], 1.0, own)["interval"] == [0.0, 0.0107]
    by_rounding = [0.1 + 0.2, 0.3, 0.3]
    assert table.mean_and_interval(by_rounding, 1.0, [[0.2, 0.4]])["interval"] == [0.2, 0.4]
    assert table.mean_and_interval([0.0, 0.0], 1.0)["interval"] is None
    assert table.mean_and_interval([0.0, 0.01], 1.0, own)["interval"] == pytest.approx([0.0, 0.0685], abs=1e-4)


@pytest.fixture
def rows(tmp_path):
    runs = plan.expand(make({"defense.depth": (3, 4)}, seeds=(0, 1, 2)), tmp_path).runs
    costs = {"train_seconds": 2400.0, "milliseconds_per_image": 0.5}
    defended = [figures(0.5 + 0.1 * run.seed, 0.02) | costs for run in runs]
    defended[3]["ci95"] = {"ba": [0.4, 0.61]}  # what the run itself says, over its test images
    results = [{"no_defense": figures(0.9, 1.0), "defenses": {"refine": measured}} for measured in defended]
    return table.summarize([*zip(runs[:4], results[:4], strict=True), (runs[4], None), (runs[5], None)])


def test_rows_are_of_all_seeds_and_name_those_that_are_missing(rows):
    assert [(row["values"], row["seeds"], row["missing"]) for row in rows] == [
        ({"defense.depth": 3}, [0, 1, 2], []),
        ({"defense.depth": 4}, [0], [1, 2]),
    ]
    assert rows[0]["figures"]["ba"]["mean"] == pytest.approx(0.6)
    assert rows[0]["figures"]["mapped_asr"] is None
    json.dumps(rows)


def test_tables_are_read_by_people_and_programs(rows):
    lines = table.markdown(rows).splitlines()
    assert lines[0].startswith("| defense.depth | defense | seeds | BA, no defense |")
    assert "| 3 | refine | 3 | 90.00 | 100.00 | 60.00 [35.16, 84.84] | 2.00 | - |" in lines[2]
    assert lines[2].endswith("| 2,400 | 0.5 |")
    assert "| 4 | refine | 1 of 3 | 90.00 | 100.00 | 50.00 [40.00, 61.00] |" in lines[3]
    read = list(csv.DictReader(io.StringIO(table.comma_separated(rows))))
    assert [row["defense.depth"] for row in read] == ["3", "4"]
    assert float(read[0]["ba"]) == pytest.approx(0.6)
    assert read[1]["missing"] == "1 2"
    assert float(read[0]["ba_low"]) == pytest.approx(0.3516, abs=1e-4)
    assert (read[1]["ba_low"], read[1]["ba_high"]) == ("0.4", "0.61")
    assert read[1]["asr_low"] == ""
    assert float(read[0]["train_seconds"]) == 2400


def test_a_distance_stands_before_and_after(tmp_path):
    runs = plan.expand(make({"defense.depth": (3,)}, seeds=(0, 1)), tmp_path).runs
    results = [
        {
            "no_defense": figures(0.9, 1.0) | {"w1": 1.25},
            "defenses": {"refine": figures(0.9, 0.0) | {"w1": 0.25 + 0.5 * run.seed}},
        }
        for run in runs
    ]
    found = table.summarize([*zip(runs, results, strict=True)])
    lines = table.markdown(found).splitlines()
    assert "| DER | W1, no defense | W1 | training, s |" in lines[0]
    assert "| 1.250 | 0.500 [0.000, 1.414] |" in lines[2]  # and not 12.706 standard errors, of two seeds, both ways
    row = next(csv.DictReader(io.StringIO(table.comma_separated(found))))
    assert (float(row["w1_no_defense"]), float(row["w1"])) == (1.25, 0.5)
    of_one = table.markdown(table.summarize([(runs[0], results[0])])).splitlines()
    assert "| 1.250 | 0.250 |" in of_one[2]


def test_what_makes_a_run_doubtful_stands_below_the_table(tmp_path):
    runs = plan.expand(make({"defense.depth": (3, 4)}, seeds=(0, 1)), tmp_path).runs
    results = [{"no_defense": figures(0.9, 1.0), "defenses": {"refine": figures(0.5, 0.02)}} for _ in runs]
    results[2]["warnings"] = ["the attack did not take"]
    results[3]["warnings"] = ["the attack did not take", "refine has collapsed"]
    rows = table.summarize(zip(runs, results, strict=True))
    said = [line for line in table.markdown(rows).splitlines() if "WARNING" in line]
    wanted = "WARNING: of defense.depth=4, 2 of 2 runs are doubtful: the attack did not take; refine has collapsed"
    assert said == [wanted]
    read = list(csv.DictReader(io.StringIO(table.comma_separated(rows))))
    assert [row["doubtful"] for row in read] == ["", "0 1"]


def test_a_sign_that_parts_cells_is_escaped(rows):
    lines = table.markdown([{**rows[0], "values": {"dataset.root": "a|b"}}]).splitlines()
    assert lines[2].startswith(r"| a\|b | refine | 3 |")


def test_a_warning_is_of_the_defense_that_it_names(tmp_path):
    sweep = make({"defense.depth": (3,)}, seeds=(0,))
    sweep.base.defense.names = ("refine", "jpeg")
    (run,) = plan.expand(sweep, tmp_path).runs
    found = {"no_defense": figures(0.9, 1.0), "defenses": {name: figures(0.5, 0.02) for name in ("refine", "jpeg")}}
    found["warnings"] = ["refine has collapsed", "the victim has learned nothing"]
    of_refine, of_jpeg = table.summarize([(run, found)])
    assert of_refine["warnings"] == found["warnings"]
    assert of_jpeg["warnings"] == found["warnings"][1:]


def test_a_sweep_of_which_nothing_is_done_has_a_table_too(tmp_path):
    runs = plan.expand(make({"defense.depth": (3,)}), tmp_path).runs
    text = table.markdown(table.summarize([(run, None) for run in runs]))
    assert "| 3 | - | 0 of 2 | - |" in text


def test_a_defense_that_is_not_measured_yet_has_a_row_that_says_so(tmp_path):
    sweep = make({"attack.target": (0, 1)}, seeds=(0, 1))
    sweep.base.defense.names = ("jpeg", "refine", "shrinkpad")
    runs = plan.expand(sweep, tmp_path).runs
    refine, jpeg = {"refine": figures(0.7, 0.01)}, {"jpeg": figures(0.8, 0.9)}
    results = [{"no_defense": figures(0.9, 1.0), "defenses": defenses} for defenses in (refine | jpeg, refine)]
    rows = table.summarize(zip(runs, [*results, None, None], strict=True))
    assert [(row["values"]["attack.target"], row["defense"], row["seeds"], row["missing"]) for row in rows] == [
        (0, "jpeg", [0], [1]),
        (0, "refine", [0, 1], []),
        (0, "shrinkpad", [], [0, 1]),
        (1, None, [], [0, 1]),
    ]
    lines = table.markdown(rows).splitlines()
    assert "| 0 | shrinkpad | 0 of 2 | - | - | - |" in lines[4]


def test_a_defense_of_several_strengths_has_a_row_of_each(tmp_path):
    sweep = make({"attack.target": (0,)}, seeds=(0, 1))
    sweep.base.defense.names = ("shrinkpad",)
    runs = plan.expand(sweep, tmp_path).runs

    def results(ba):
        sweep = [{"settings": {"pad": pad}, "chosen": pad == 2, **figures(ba - 0.1 * pad, 0.5)} for pad in (1, 2, 4)]
        return {"no_defense": figures(0.9, 1.0), "defenses": {"shrinkpad": figures(ba - 0.2, 0.5) | {"sweep": sweep}}}

    rows = table.summarize([*zip(runs, (results(0.9), results(0.8)), strict=True)])
    found = [(row["defense"], round(row["figures"]["ba"]["mean"], 6), row["seeds"]) for row in rows]
    assert found == [
        ("shrinkpad", 0.65, [0, 1]),
        ("shrinkpad, pad 1", 0.75, [0, 1]),
        ("shrinkpad, pad 4", 0.45, [0, 1]),
    ]
