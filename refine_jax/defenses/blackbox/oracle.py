"""The victim as a black box: a function that is asked, counted, tried again, and never asked the same twice."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refine_jax.defenses.blackbox.answer_cache import AnswerCache, digest_of
from refine_jax.errors import RefineError, SettingError, choose

logger = logging.getLogger(__name__)

ANSWERS = ("probabilities", "labels")
SHOWN = ("float", "uint8")
# How far from 1 the sum of probabilities may be: some services round to two or three digits.
_TOLERANCE = 0.02
# Longest wait before a function that has failed is tried again, and time between two lines of the log. In seconds.
_LONGEST_WAIT, _SAY = 60.0, 30.0
# Images that are hashed at once.
_HASHED = 1024


class RateLimited(Exception):  # noqa: N818 - a state
    """To be raised by a victim's function that has been told to come back later.

    Args:
        seconds: How much later.
    """

    def __init__(self, seconds: float):
        self.seconds = float(seconds)
        super().__init__(f"limited for {seconds} s")


class OracleError(RefineError):
    """The victim's function has failed for good, or its answers are none."""


class BudgetSpent(RefineError):  # noqa: N818 - a state
    """More would have to be asked than the budget has left; nothing of it was."""


class Oracle:
    """A victim that only answers.

    An image is asked once: what was answered is kept, on the disk too where a path is given, and is from then on no
    query. A function that fails is tried again, after `wait` seconds, twice that, and so on up to a minute, or after
    as long as a `RateLimited` says. Images that one call asks for are all answered or, where the budget does not
    reach, none is asked.

    Args:
        function: (images [n, H, W, 3]), n at most `batch_size`, RGB -> the answers: probabilities [n, K], or labels,
            integers [n]. It is called in the caller's thread, and may raise whatever it likes.
        num_classes: K.
        image_size: (H, W).
        answers: 'probabilities' or 'labels'.
        shown: What the function takes: 'float', float32 in [0, 1], or 'uint8', to which other images are rounded.
        batch_size: Images of a call, at most.
        budget: Images that may be asked, in this process and, with a cache, in those before; None: any number.
        retries: How often a call is tried again.
        wait: Seconds before the first of these.
        cache: File of the answers; one for each victim, since a function cannot be told from another.
        victim: What tells the victim from others, such as a version or a hash of its weights: kept in the cache, which
            is then refused to another one. None: nothing does.
        sleep: What waits.

    Raises:
        SettingError: An argument is impossible.
        WorkdirError: The cache is of another oracle, or in use.
        StorageError: The cache cannot be written.
    """

    def __init__(
        self,
        function: Callable[[np.ndarray], Any],
        num_classes: int,
        image_size: tuple[int, int],
        *,
        answers: str = "probabilities",
        shown: str = "float",
        batch_size: int = 64,
        budget: int | None = None,
        retries: int = 5,
        wait: float = 1.0,
        cache: str | os.PathLike[str] | None = None,
        victim: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.answers = choose("answers", answers, ANSWERS)
        self.shown = choose("shown", shown, SHOWN)
        if not callable(function):
            raise SettingError("function", function, f"a function: images [n, H, W, 3] -> {answers}")
        for field, value, least in (
            ("num_classes", num_classes, 2),
            ("batch_size", batch_size, 1),
            ("budget", 1 if budget is None else budget, 1),
            ("retries", retries, 0),
        ):
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
                raise SettingError(field, value, f"a whole number, {least} or more")
        if not 0 <= wait < np.inf:
            raise SettingError("wait", wait, "seconds, 0 or more")
        self.num_classes, self.image_size, self.budget = num_classes, (image_size[0], image_size[1]), budget
        self.batch_size, self.failures, self.served = batch_size, 0, 0
        self._function, self._retries, self._wait, self._sleep = function, retries, wait, sleep
        identity = {"answers": answers, "shown": shown, "num_classes": num_classes, "image_size": self.image_size}
        # Without one it is what it was before there was a choice, so that earlier caches stay known.
        identity |= {} if victim is None else {"victim": victim}
        self._cache = AnswerCache(cache, num_classes if answers == "probabilities" else 1, identity)

    @property
    def queries(self) -> int:
        """How many images were asked and answered, those of earlier processes with this cache included."""
        return len(self._cache)

    @property
    def calls(self) -> int:
        """In how many calls of the function; calls that failed are in `failures`, of this process alone."""
        return self._cache.calls

    @property
    def left(self) -> int | None:
        """How many images may be asked; None: any number."""
        return None if self.budget is None else max(0, self.budget - self.queries)

    def missing(self, images: Any) -> int:
        """Returns how many queries it takes to have these answered.  [N, H, W, 3]"""
        return len({digest for digest in self._digests(images) if digest not in self._cache})

    def affordable(self, images: Any, keep: int = 0) -> int:
        """Returns how many of these images, from the first on, the budget reaches for.

        Args:
            images: As in a call. [N, H, W, 3]
            keep: Queries that are set aside, if there are so many left.
        """
        if self.left is None:
            return len(images)
        most, unknown = max(0, self.left - keep), set()
        for place, digest in enumerate(self._digests(images)):
            if digest not in self._cache:
                unknown.add(digest)
            if len(unknown) > most:
                return place
        return len(images)

    def __call__(self, images: Any) -> np.ndarray:
        """Returns what the victim says of images.

        Args:
            images: RGB, uint8, or float in [0, 1]; read a part at a time. [N, H, W, 3]

        Returns:
            Probabilities, float32 [N, K]; or labels, int32 [N].

        Raises:
            SettingError: These are no such images.
            BudgetSpent: See `BudgetSpent`.
            OracleError: See `OracleError`; what was answered before is kept.
            StorageError: The cache cannot be written.
        """
        digests = [*self._digests(images)]
        unknown = {digest: place for place, digest in enumerate(digests) if digest not in self._cache}
        if self.left is not None and len(unknown) > self.left:
            raise BudgetSpent(
                f"{len(unknown)} images would have to be asked, and of the budget of {self.budget} there are "
                f"{self.left} left; {self.queries} answers are kept, and nothing was asked"
            )
        places, said = sorted(unknown.values()), time.monotonic()
        for start in range(0, len(places), self.batch_size):
            chosen = places[start : start + self.batch_size]
            self._cache.add([digests[place] for place in chosen], self._ask(self._prepare(images[np.asarray(chosen)])))
            if time.monotonic() - said > _SAY:
                said = time.monotonic()
                logger.info("victim: %d of %d images are answered", start + len(chosen), len(places))
        return self._as_answers(self._cache.get(digests))

    def serve(self, images: np.ndarray) -> np.ndarray:
        """Returns what the victim says of images, as a call does, but neither counted as queries nor kept.

        For a defended classifier at its work, whose images are in nobody's budget; they are counted in `served`.
        """
        prepared = self._prepare(images)
        parts = [np.empty((0, self.num_classes if self.answers == "probabilities" else 1), np.float32)]
        for start in range(0, len(prepared), self.batch_size):
            parts.append(self._ask(prepared[start : start + self.batch_size]))
            self.served += len(parts[-1])
        return self._as_answers(np.concatenate(parts))

    def close(self) -> None:
        """Lets go of the file of answers."""
        self._cache.close()

    def __enter__(self) -> "Oracle":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _digests(self, images: Any) -> Iterator[bytes]:
        """What each image is known by, as the function would be shown it."""
        for start in range(0, len(images), _HASHED):
            yield from map(digest_of, self._prepare(images[start : start + _HASHED]))

    def _prepare(self, images: Any) -> np.ndarray:
        """The images as the function takes them."""
        images = np.asarray(images)
        is_float = np.issubdtype(images.dtype, np.floating)
        if images.ndim != 4 or images.shape[1:] != (*self.image_size, 3) or not (is_float or images.dtype == np.uint8):
            height, width = self.image_size
            allowed = f"uint8, or float in [0, 1], [N, {height}, {width}, 3]"
            raise SettingError("images", f"{images.dtype} {list(images.shape)}", allowed)
        if is_float and images.size and not (images.min() >= 0 and images.max() <= 1):  # NaN is neither
            raise SettingError("images", f"floats from {images.min()} to {images.max()}", "floats in [0, 1]")
        if self.shown == "uint8":
            return np.rint(images * 255).astype(np.uint8) if is_float else images
        return images.astype(np.float32) if is_float else images / np.float32(255)

    def _ask(self, images: np.ndarray) -> np.ndarray:
        """Calls the function, again where it fails.  -> float32 [n, K or 1]"""
        for attempt in range(self._retries + 1):
            try:
                answered = self._function(images)
            except Exception as error:  # the function's own
                self.failures += 1
                if attempt == self._retries:
                    raise OracleError(
                        f"the victim's function has failed {attempt + 1} times in a row, last with "
                        f"{type(error).__name__}: {error!s:.200}; {self.queries} answers are kept"
                    ) from error
                limited = isinstance(error, RateLimited)
                seconds = error.seconds if isinstance(error, RateLimited) else self._wait * 2.0**attempt
                seconds = max(0.0, seconds) if limited else min(seconds, _LONGEST_WAIT)
                logger.info("victim: %s: %s; again in %.3g s", type(error).__name__, error, seconds)
                self._sleep(seconds)
            else:
                return self._checked(answered, len(images))
        raise AssertionError("unreachable")

    def _checked(self, answered: Any, count: int) -> np.ndarray:
        """What the function has answered, if it can be that."""
        answered = np.asarray(answered)
        shape = (count, self.num_classes) if self.answers == "probabilities" else (count,)
        wanted = f"{self.answers} {list(shape)}"
        if answered.shape != shape or answered.dtype.kind not in "fiu":
            raise OracleError(
                f"the victim's function gave {answered.dtype} {list(answered.shape)}: allowed: {wanted}; "
                f"{self.queries} answers are kept"
            )
        if self.answers == "labels":
            fine = (answered >= 0) & (answered < self.num_classes) & (answered == np.floor(answered))
            wanted += f", whole numbers from 0 to {self.num_classes - 1}"
        else:
            rows = answered.astype(np.float64)
            inside = (rows >= -1e-6) & (rows <= 1 + 1e-6)  # NaN is not
            fine = inside.all(axis=1) & (abs(rows.sum(axis=1) - 1) <= _TOLERANCE)
            wanted += f", each from 0 to 1 and in rows that add up to 1, to {_TOLERANCE}"
        if not fine.all():
            row = answered[np.flatnonzero(~fine)[0]].tolist()
            raise OracleError(
                f"the victim's function gave {row!r:.200}: allowed: {wanted}; {self.queries} answers are kept"
            )
        return answered.astype(np.float32).reshape(count, -1)

    def _as_answers(self, kept: np.ndarray) -> np.ndarray:
        return kept if self.answers == "probabilities" else kept[:, 0].astype(np.int32)
