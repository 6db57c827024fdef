"""Ctrl-C and SIGTERM: in a training a request to stop after the step under way, elsewhere the end; no blow in either.

Python looks at signals between two of its instructions. While it waits for a compiler or a device there are none for
minutes, so a second signal is heard by a thread, which ends the process at once.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from refine_jax.errors import RefineError

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Seconds within which two signals are one: timeout(1) and some schedulers send theirs to the process and to its group.
_ECHO = 0.5

# Whether a signal has come that `ended_by_signals` caught. Python drops what is raised in a callback of its garbage
# collector, of which JAX has one: the training that then begins knows of it from here.
_ending = False


class Interrupted(RefineError):  # noqa: N818 - no error
    """A training was asked to stop and did; the message says what was saved where."""


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets `requested`; a second one ends the process at once.

    It is set from the beginning where a signal has come before and what it raised was lost.

    Raises:
        Interrupted: At the end, where a request came too late for anyone to act on it.
    """

    def __init__(self):
        self.requested = _ending
        self._signals = contextlib.ExitStack()

    def __enter__(self) -> "StopRequest":
        self._signals.enter_context(
            _caught(self._handle, b"\nstopping after this step; a second time stops at once\n")
        )
        return self

    def __exit__(self, error_type, *_) -> None:
        self._signals.close()
        if self.requested and error_type is None:
            raise Interrupted("stopped; the same command goes on from here")

    def _handle(self) -> None:
        self.requested = True


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """While entered, and no `StopRequest` within, SIGTERM raises KeyboardInterrupt as SIGINT does.

    A second one of either ends the process at once.
    """

    def end() -> None:
        global _ending
        _ending = True
        raise KeyboardInterrupt

    global _ending
    try:
        with _caught(end, b"\nstopping; a second time stops at once\n"):
            yield
    finally:
        _ending = False


@contextlib.contextmanager
def _caught(handle: Callable[[], None], notice: bytes) -> Iterator[None]:
    """Catches SIGINT and SIGTERM: the first one calls `handle`, the second ends the process.

    Args:
        handle: Called in the main thread, between two instructions.
        notice: Said at once, to the standard error.
    """
    # Python delivers signals to the main thread alone, and lets only that one ask for them.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    listener = threading.Thread(target=_listen, args=(reading, notice), daemon=True)
    listener.start()
    previous = {number: signal.signal(number, lambda *_: handle()) for number in SIGNALS}
    descriptor = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(writing)
        listener.join()
        os.close(reading)


def _listen(reading: int, notice: bytes) -> None:
    """Reads the numbers of the signals that come; at the second one ends the process with the status of its death."""
    first = None
    while numbers := os.read(reading, 1):
        if numbers[0] not in SIGNALS:
            continue
        if first is None:
            first = time.monotonic()
            os.write(2, notice)  # not through sys.stderr, which may be in the middle of a write
        elif time.monotonic() - first > _ECHO:
            os._exit(128 + numbers[0])
