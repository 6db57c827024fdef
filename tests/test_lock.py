import json
import multiprocessing
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from refine_jax import lock
from refine_jax.errors import WorkdirError

# Holds a lock until it is killed, without the seconds that importing the package takes.
OWNER = """
import importlib.util, pathlib, sys, types
errors = types.ModuleType("refine_jax.errors")
errors.WorkdirError = type("WorkdirError", (Exception,), {})
sys.modules |= {"refine_jax": types.ModuleType("refine_jax"), "refine_jax.errors": errors}
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
try:
    with lock.hold(pathlib.Path(sys.argv[2])):
        print("held", flush=True)
        sys.stdin.read()
except errors.WorkdirError as error:
    print(error)
"""


@pytest.fixture
def owner(tmp_path):
    """Starts another process that holds the lock; the test ends it."""
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, lock.__file__, str(tmp_path / "lock")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_while_it_is_held_the_owner_stands_in_it_and_afterwards_it_is_gone(tmp_path):
    with lock.hold(tmp_path / "lock"):
        written = json.loads((tmp_path / "lock").read_text())
        assert (written["pid"], written["host"]) == (os.getpid(), socket.gethostname())
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}", written["started"])
    assert os.listdir(tmp_path) == []
    with pytest.raises(ZeroDivisionError), lock.hold(tmp_path / "lock"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_a_second_process_is_refused_by_the_name_of_the_first(tmp_path, owner):
    process, said = owner()
    assert said == "held"
    written = (tmp_path / "lock").read_text()
    with pytest.raises(WorkdirError) as caught, lock.hold(tmp_path / "lock"):
        pytest.fail("two hold it")
    message = str(caught.value)
    assert message.startswith(
        f"{tmp_path} is in use by process {process.pid} on {socket.gethostname()}, started at 20"
    )
    assert re.search(r"last heard of \d+ s ago: wait for its end, or use another --workdir; if", message)
    assert (tmp_path / "lock").read_text() == written


def test_an_owner_that_was_killed_is_no_obstacle(tmp_path, owner, caplog):
    process, _ = owner()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "lock").exists()
    with lock.hold(tmp_path / "lock"):
        assert f"in use by process {process.pid}" in caplog.text
        assert "it is gone, and this run takes over" in caplog.text
        _, said = owner()
        assert f"process {os.getpid()} " in said


def test_what_an_owner_has_forked_does_not_keep_the_lock(tmp_path, owner):
    with lock.hold(tmp_path / "lock"):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
    try:
        assert owner()[1] == "held"
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize(("age", "refused"), [(30, True), (590, True), (610, False)])
def test_an_owner_on_another_machine_is_gone_when_it_was_not_heard_of_for_long(tmp_path, age, refused):
    path = tmp_path / "lock"
    path.write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere", "started": "yesterday"}))
    os.utime(path, (time.time() - age,) * 2)
    if refused:
        with (
            pytest.raises(WorkdirError, match=f"on elsewhere, started at yesterday, last heard of {age}"),
            lock.hold(path),
        ):
            pytest.fail("two hold it")
        assert json.loads(path.read_text())["host"] == "elsewhere"
    else:
        with lock.hold(path):
            assert json.loads(path.read_text())["host"] == socket.gethostname()


def test_an_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_TOUCH", 0.01)
    with lock.hold(tmp_path / "lock"):
        os.utime(tmp_path / "lock", (0, 0))
        for _ in range(500):
            if (tmp_path / "lock").stat().st_mtime > time.time() - 60:
                return
            time.sleep(0.01)
    pytest.fail("not touched")


def test_where_the_file_system_knows_no_locks_the_age_alone_tells(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "lockf", unknown)
    path = tmp_path / "lock"
    with lock.hold(path):
        with pytest.raises(WorkdirError, match=f"process {os.getpid()} "), lock.hold(path):
            pytest.fail("two hold it")
        assert path.exists()
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 4000])
def test_a_lock_in_which_nobody_stands_is_free(tmp_path, content):
    (tmp_path / "lock").write_bytes(content)
    with lock.hold(tmp_path / "lock"):
        assert json.loads((tmp_path / "lock").read_bytes())["pid"] == os.getpid()


def test_a_lock_that_was_deleted_while_one_waited_for_it_is_taken_at_its_place(tmp_path, monkeypatch):
    path, taken = tmp_path / "lock", []

    def deleted_meanwhile(file):
        if not taken:
            pathlib.Path(path).unlink()
        taken.append(file)
        return True

    monkeypatch.setattr(lock, "_lock", deleted_meanwhile)
    with lock.hold(path):
        assert path.exists()
    assert len(taken) == 2
