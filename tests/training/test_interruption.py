import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from refine_jax.training.interruption import SIGNALS, Interrupted, StopRequest, ended_by_signals

# Works until it is asked to stop, and then a little longer than anyone would wait.
PROGRAM = """
import ctypes, sys, time
from refine_jax.training.interruption import StopRequest
try:
    with StopRequest() as stop:
        print("working", flush=True)
        while not stop.requested:
            time.sleep(0.01)
        print("asked", flush=True)
        if sys.argv[1] == "long":
            time.sleep(60)
        if sys.argv[1] == "deaf":  # as in a compiler: no instruction of Python for a minute, threads can run
            ctypes.CDLL(None).sleep(60)
        raise SystemExit(7)
finally:
    print("cleaned up", flush=True)
"""


def start(length):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, length], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "working\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request(number):
    process = start("short")
    process.send_signal(number)
    said, told = process.communicate(timeout=30)
    assert said == "asked\ncleaned up\n"
    assert process.returncode == 7
    assert told.strip() == "stopping after this step; a second time stops at once"


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("length", ["long", "deaf"])
def test_the_second_signal_ends_the_process_at_once(second, length):
    process = start(length)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked\n"
    time.sleep(0.6)
    process.send_signal(second)
    said, _ = process.communicate(timeout=30)
    assert said == ""
    assert process.returncode == 128 + second


def test_a_signal_that_comes_twice_in_a_moment_is_one():
    process = start("short")
    for _ in range(2):  # as timeout(1) sends it
        process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert said == "asked\ncleaned up\n"
    assert process.returncode == 7


# What is raised while an object is given up is lost, as in a callback of the garbage collector.
LOST = """
import signal
from refine_jax.training.interruption import StopRequest, ended_by_signals

class Last:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

with ended_by_signals():
    Last()
    with StopRequest() as stop:
        print(stop.requested, flush=True)
        raise SystemExit(7)
"""


def test_a_request_that_was_lost_stops_the_next_training():
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=60)
    assert "Exception ignored" in done.stderr
    assert (done.stdout, done.returncode) == ("True\n", 7)


@pytest.fixture
def handlers():
    """Handlers of this test's own, instead of those that end it."""
    received = []
    previous = {number: signal.signal(number, lambda n, _: received.append(n)) for number in SIGNALS}
    yield received
    for number, handler in previous.items():
        signal.signal(number, handler)


def test_afterwards_signals_mean_again_what_they_meant(handlers):
    with pytest.raises(Interrupted), StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.requested
    assert handlers == []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(number)
    assert handlers == [signal.SIGINT, signal.SIGTERM]


def test_nobody_asked(handlers):
    with StopRequest() as stop:
        assert not stop.requested


def test_a_request_that_nobody_acted_on_is_not_lost(handlers):
    with pytest.raises(Interrupted, match="the same command goes on"), StopRequest():
        signal.raise_signal(signal.SIGINT)


def test_an_error_on_the_way_stays_what_it_is(handlers):
    def fail():
        signal.raise_signal(signal.SIGINT)
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"), StopRequest():
        fail()


def test_one_inside_another_keeps_the_signals_for_itself(handlers):
    with StopRequest() as outer:
        with pytest.raises(Interrupted), StopRequest():
            signal.raise_signal(signal.SIGINT)
        assert not outer.requested
    assert handlers == []


def test_in_another_thread_signals_are_left_alone(handlers):
    found, before = [], signal.getsignal(signal.SIGINT)

    def work():
        with StopRequest():
            found.append(signal.getsignal(signal.SIGINT) == before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]


def test_the_notice_goes_to_the_standard_error(handlers, capfd):
    with pytest.raises(Interrupted), StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
    assert "stopping after this step" in capfd.readouterr().err


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_of_a_training_either_signal_is_an_exception(handlers, capfd, number):
    with pytest.raises(KeyboardInterrupt), ended_by_signals():
        signal.raise_signal(number)
    assert "stopping; a second time" in capfd.readouterr().err
    signal.raise_signal(number)
    assert handlers == [number]


def test_a_training_within_has_the_signals_to_itself(handlers):
    with ended_by_signals():
        with pytest.raises(Interrupted), StopRequest() as stop:
            signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
