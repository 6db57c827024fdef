"""Ctrl-C and SIGTERM: a request to stop after the step under way, not a blow."""

import os
import signal
import threading

from refine_jax.errors import RefineError


class Interrupted(RefineError):  # noqa: N818 - no error
    """A training was asked to stop and did; the message says what was saved where."""


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets `requested`; a second one ends the process at once.

    Raises:
        Interrupted: At the end, where a request came too late for anyone to act on it.
    """

    _signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.requested = False
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        # Python delivers signals to the main thread alone, and lets only that one ask for them.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in self._signals}
        return self

    def __exit__(self, error_type, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.requested and error_type is None:
            raise Interrupted("stopped; the same command goes on from here")

    def _handle(self, number, frame) -> None:
        self.requested = True
        for number in self._previous:
            signal.signal(number, signal.SIG_DFL)
        # The step under way may be a long one. Not through sys.stderr, which may be in the middle of a write.
        os.write(2, b"\nstopping after this step; a second time stops at once\n")
