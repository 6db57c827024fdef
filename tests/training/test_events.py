import importlib.util
import struct

import pytest

from refine_jax.errors import SettingError
from refine_jax.training import events

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")


def records(folder):
    """The events of a folder's files, each a record of length, checksum, bytes, checksum."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            yield event_pb2.Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def scalars(folder):
    return [(each.step, value.tag, value.simple_value) for each in records(folder) for value in each.summary.value]


def test_each_number_of_a_row_is_a_scalar_at_its_step(tmp_path):
    log = events.EventLog(tmp_path / "victim", 0)
    log.append([{"step": 1, "epoch": 1, "loss": 2.5, "note": "text"}, {"step": 10, "epoch": 1, "loss": 0.5}])
    log.close()
    assert scalars(tmp_path / "victim") == [(1, "epoch", 1), (1, "loss", 2.5), (10, "epoch", 1), (10, "loss", 0.5)]


def test_what_lies_beyond_the_step_that_is_gone_on_from_is_purged_and_a_new_training_begins_anew(tmp_path):
    for step in (0, 4):
        log = events.EventLog(tmp_path, step)
        log.append([{"step": step + 1, "loss": 1.0}])
        log.close()
    starts = [each.step for each in records(tmp_path) if each.session_log.status == each.session_log.START]
    assert starts == [5]
    assert [step for step, _, _ in scalars(tmp_path)] == [1, 5]
    log = events.EventLog(tmp_path, 0)
    log.append([{"step": 1, "loss": 3.0}])
    log.close()
    assert scalars(tmp_path) == [(1, "loss", 3.0)]


def test_they_are_refused_where_the_package_is_missing(monkeypatch):
    events.check("run.tensorboard", True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    events.check("run.tensorboard", False)
    with pytest.raises(SettingError, match=r"run.tensorboard = True: allowed: with the package tensorboardX"):
        events.check("run.tensorboard", True)
