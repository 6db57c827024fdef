"""A part of a data set's training images; the test set stays whole."""

import dataclasses

import jax
import numpy as np

from refine_jax.datasets.images import Dataset, Split
from refine_jax.errors import SettingError
from refine_jax.keys import named_key


def limit_training(dataset: Dataset, count: int | None) -> Dataset:
    """Returns the data set with `count` of its training images, in their order.

    Which ones is drawn by a fixed rule, whatever the seed of a run: it is the data set that is smaller.

    Args:
        dataset: Whole.
        count: None: all.

    Raises:
        SettingError: There are not so many, or none are asked for.
    """
    total = len(dataset.train.labels)
    if count is None or count == total:
        return dataset
    if not 1 <= count <= total:
        raise SettingError("dataset.train_images", count, f"1 to {total}, the training images of {dataset.name}")
    order = jax.random.permutation(named_key(0, "dataset/subset"), total)
    chosen = np.sort(np.asarray(order[:count]))
    return dataclasses.replace(
        dataset, train=Split(dataset.train.images.take(chosen, axis=0), dataset.train.labels[chosen])
    )
