import io
import itertools
import json
import re

import pytest

from refine_jax.training import log
from refine_jax.training.log import MetricsLog, Progress, format_seconds, read_metrics


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def lines(self):
        """What a person sees: a carriage return goes back to the start of the line and writes over it."""
        screen = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for part in line.split("\r"):
                shown = part + shown[len(part) :]
            screen.append(shown.rstrip())
        return screen


@pytest.fixture
def clock(monkeypatch):
    """Seconds of time.monotonic, set by hand."""
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    return now


def rows(*steps):
    return [{"step": step, "epoch": step // 10, "loss": 1 / step} for step in steps]


def steps_in(path, stage):
    return [row["step"] for row in read_metrics(path) if row["stage"] == stage]


def test_a_row_is_a_line_with_stage_and_time(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, "victim", 0).append(rows(1, 2))
    MetricsLog(path, "refine", 0).append(rows(5))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    times = [line.pop("time") for line in lines]
    assert lines == [
        {"stage": "victim", "step": 1, "epoch": 0, "loss": 1.0},
        {"stage": "victim", "step": 2, "epoch": 0, "loss": 0.5},
        {"stage": "refine", "step": 5, "epoch": 0, "loss": 0.2},
    ]
    assert times == sorted(times)
    assert times[0] > 1.7e9


def test_going_on_takes_out_the_rows_beyond_of_this_stage_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, "victim", 0).append(rows(1, 2, 3, 4))
    MetricsLog(path, "refine", 0).append(rows(1, 2, 3))
    MetricsLog(path, "victim", 2).append(rows(3))
    assert steps_in(path, "victim") == [1, 2, 3]
    assert steps_in(path, "refine") == [1, 2, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    "rest", ['{"stage": "vic', '{"stage": "victim", "step": 2', "{", "\x00\x00", "[1]", "3", "{}"]
)
def test_a_last_line_cut_off_by_a_kill_is_passed_over_and_does_not_spoil_the_next(tmp_path, caplog, rest):
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, "victim", 0).append(rows(1))
    with path.open("a") as file:
        file.write(rest)
    MetricsLog(path, "victim", 1).append(rows(2))
    assert steps_in(path, "victim") == [1, 2]
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert "not whole" in caplog.text


def test_bytes_that_are_no_text_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\xff\xfe\n" + json.dumps({"stage": "victim", "step": 1}).encode() + b"\n")
    assert steps_in(path, "victim") == [1]


def test_there_may_be_no_file_yet(tmp_path):
    assert read_metrics(tmp_path / "none") == []


def test_on_a_terminal_there_is_one_line_that_is_written_over(clock):
    terminal = Terminal()
    progress = Progress("victim", 20, terminal)
    progress.show(0.5, 123456.789, 0.1, 12345.6, 4000)
    assert terminal.lines() == ["victim  epoch 0.5/20  loss 123456.7890  lr 0.1  12,346 images/s  1:06:40 left"]
    clock[0] += 1
    progress.show(20, 0.25, 1e-4, 900.4, 0, last=True)
    assert terminal.lines() == ["victim  epoch 20/20  loss 0.2500  lr 0.0001  900 images/s  0:00 left", ""]


def test_elsewhere_there_are_plain_lines(clock):
    stream = io.StringIO()
    progress = Progress("victim", 2, stream)
    progress.show(1, 1.5, 0.1, 1000, 60)
    clock[0] += 100
    progress.show(2, 1.25, 0.1, 1000, 0, last=True)
    assert stream.getvalue() == (
        "victim  epoch 1/2  loss 1.5000  lr 0.1  1,000 images/s  1:00 left\n"
        "victim  epoch 2/2  loss 1.2500  lr 0.1  1,000 images/s  0:00 left\n"
    )


def test_what_is_not_known_yet_is_not_shown(clock):
    stream = io.StringIO()
    Progress("victim", 2, stream).show(0.5, 1.5, 0.1, None, None)
    assert stream.getvalue() == "victim  epoch 0.5/2  loss 1.5000  lr 0.1\n"


@pytest.mark.parametrize(("stream", "seconds"), [(Terminal, 0.2), (io.StringIO, 15)])
def test_it_is_shown_no_more_often_than_can_be_read(clock, stream, seconds):
    shown = stream()
    progress = Progress("victim", 10, shown)
    losses = lambda: re.findall(r"loss (\d+)", shown.getvalue())  # noqa: E731
    for loss, passed in itertools.product(range(3), (0, 0.9 * seconds)):
        clock[0] = loss * seconds * 1.01 + passed
        progress.show(1, loss if passed == 0 else 9, 0.1, 1, 1)
    assert losses() == ["0", "1", "2"]
    progress.show(10, 7, 0.1, 1, 0, last=True)
    assert losses()[-1] == "7"


def test_the_first_line_comes_at_once_even_on_a_machine_just_started(clock):
    stream = io.StringIO()
    Progress("victim", 10, stream).show(1, 1, 0.1, 1, 1)
    assert stream.getvalue()


def test_leaving_the_live_line_begins_a_new_one(clock):
    terminal, plain = Terminal(), io.StringIO()
    for stream in (terminal, plain):
        progress = Progress("victim", 10, stream)
        progress.end_line()
        assert stream.getvalue() == ""
        progress.show(1, 1, 0.1, 1, 1)
        progress.end_line()
        assert stream.getvalue().count("\n") == 1
        assert stream.getvalue().endswith("\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (61, "1:01"), (3599.7, "1:00:00"), (36000 + 62, "10:01:02")],
)
def test_seconds_are_written_as_a_clock_does(seconds, text):
    assert format_seconds(seconds) == text
