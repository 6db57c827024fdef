import json

import numpy as np

from refine_jax.report import curves


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_each_point_is_a_mean_over_as_many_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"stage": "victim", "step": i, "epoch": i / 2, "loss": float(i), "time": 9.0} for i in range(6)]
    write(path, [*rows, {"stage": "refine", "step": 1, "epoch": 1, "loss": 0.5, "agreement": 1.0}])
    found = curves.read(path, points=3)
    assert {*found["victim"]} == {"step", "epoch", "loss"}
    np.testing.assert_allclose(found["victim"]["loss"], [0.5, 2.5, 4.5])
    np.testing.assert_allclose(found["victim"]["epoch"], [0.25, 1.25, 2.25])
    assert found["refine"]["agreement"].tolist() == [1.0]
    assert {*curves.read(path, ("refine",))} == {"refine"}


def test_what_not_all_rows_have_is_left_out_and_no_file_is_no_curve(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"stage": "s", "step": 1, "epoch": 1, "loss": 1.0, "old": 2.0}, {"stage": "s", "step": 2, "epoch": 2}]
    write(path, rows)
    assert {*curves.read(path)["s"]} == {"step", "epoch"}
    assert curves.read(tmp_path / "none.jsonl") == {}
