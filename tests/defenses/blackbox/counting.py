"""Victims that count what they are asked, and fail as they are told to."""

import numpy as np

K, SIDE = 4, 8


class Counting:
    """Says the band of an image that is brightest, with probabilities.

    Attributes:
        images: Asked, in calls that were answered.
        answered: Calls that were.
        calls: All of them.
        seen: Every image that was answered, as bytes.
    """

    def __init__(self, fails=lambda call: None, labels=False):
        self.images = self.answered = self.calls = 0
        self.seen = []
        self._fails, self._labels = fails, labels

    def __call__(self, images):
        self.calls += 1
        error = self._fails(self.calls)
        if error is not None:
            raise error
        self.answered += 1
        self.images += len(images)
        self.seen += [image.tobytes() for image in images]
        scale = 255 if images.dtype == np.uint8 else 1
        bands = 8 * (images / scale).reshape(len(images), K, -1).mean(axis=2)  # [n, K]
        exponentials = np.exp(bands - bands.max(axis=1, keepdims=True))
        return bands.argmax(axis=1) if self._labels else exponentials / exponentials.sum(axis=1, keepdims=True)


def one_in_five(call):
    """Every fifth call fails."""
    return ConnectionError("reset by peer") if call % 5 == 0 else None


def images(count, seed=0):
    """Images one band of which is brighter."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 90, (count, SIDE, SIDE, 3))
    for image, label in zip(made, rng.integers(0, K, count), strict=True):
        image[2 * label : 2 * label + 2] += 120
    return made.astype(np.uint8)
