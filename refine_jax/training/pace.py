"""How fast a training is, without what its programs took to be compiled."""

import time
from collections.abc import Sequence


class Pace:
    """A stopwatch of calls of a training's step; stands until `go_on`.

    The first call with as many batches of such sizes compiles a program. It is to be taken while the watch stands.
    """

    def __init__(self) -> None:
        self._known: set[tuple[int, ...]] = set()
        self._seconds = 0.0  # until the watch was last stopped
        self._since: float | None = None  # when it was last started
        self._steps = self._images = 0

    def is_new(self, sizes: Sequence[int]) -> bool:
        """Returns whether there was no call yet with batches of these numbers of images; notes that there is now."""
        new = tuple(sizes) not in self._known
        self._known.add(tuple(sizes))
        return new

    def stand(self) -> None:
        """Stops the watch, if it runs."""
        self._seconds, self._since = self.seconds, None

    def go_on(self) -> None:
        """Starts the watch."""
        self._since = time.monotonic()

    def count(self, sizes: Sequence[int]) -> None:
        """Counts a call that was taken while the watch ran."""
        self._steps += len(sizes)
        self._images += sum(sizes)

    @property
    def seconds(self) -> float:
        """What the watch shows."""
        return self._seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    @property
    def images_per_second(self) -> float | None:
        """Of what was counted; None where nothing was."""
        return self._images / max(self.seconds, 1e-9) if self._images else None

    def seconds_for(self, steps: int) -> float | None:
        """Returns how long so many more steps will take, if they compile nothing; None where that is not known."""
        return steps * self.seconds / self._steps if self._steps else None
