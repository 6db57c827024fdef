"""Which images make up which batch: a new order every epoch, drawn from the seed alone."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax.datasets import stream
from refine_jax.keys import named_key


class Feed:
    """The order of a training's batches.

    The batch of a step depends on the key and the step only, so a training that is taken up again at any
    step goes on with the very batches that it would have had.

    Args:
        num_examples: Of the data set, at least `batch_size`.
        batch_size: Of every batch but perhaps the last of an epoch.
        key: A key of jax.random.
        keep_last: Whether what is left over at the end of an epoch makes a smaller batch or is left out.
        images: Those that every batch brings with it, see `stream.read_ahead`; None: they are on the device.
        workers: See `stream.read_ahead`.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        key: jax.Array,
        *,
        keep_last: bool,
        images: Any = None,
        workers: int = 0,
    ):
        if not 1 <= batch_size <= num_examples:
            raise ValueError(f"batch_size = {batch_size}: allowed: 1 to {num_examples}, the number of examples")
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch(num_examples, batch_size, keep_last=keep_last)
        self._key, self._images, self._workers = key, images, workers
        self._epoch, self._order = -1, np.empty(0, np.int32)

    def indices(self, step: int) -> np.ndarray:
        """Returns which examples step `step` (counted from 0) trains on.  int32 [B]"""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = jax.random.permutation(named_key(self._key, epoch), self.num_examples)
            self._epoch, self._order = epoch, np.asarray(order, np.int32)
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]

    def batches(self, first: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches of steps `first` to `stop` - 1 as a training step takes them, see `batch_images`."""
        if self._images is None:
            for step in range(first, stop):
                yield {"indices": self.indices(step)}
        else:
            plan = [self.indices(step) for step in range(first, stop)]
            yield from stream.read_ahead(self._images, plan, self._workers)


def batch_images(data: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the images of a batch as a network's training sees them.

    Args:
        data: Holds 'images' uint8 [N, H, W, 3] where a batch does not bring its own.
        batch: Holds 'indices' [B]; where images are streamed from the host, also 'images' uint8 [B, H, W, 3].

    Returns:
        float32 in [0, 1]. [B, H, W, 3]
    """
    images = batch["images"] if "images" in batch else data["images"][batch["indices"]]
    return images.astype(jnp.float32) / 255


def steps_per_epoch(num_examples: int, batch_size: int, *, keep_last: bool) -> int:
    """Returns how many batches an epoch has."""
    return -(-num_examples // batch_size) if keep_last else num_examples // batch_size
