import collections

import chex
import numpy as np
import pytest
from sklearn.datasets import load_digits

from refine_jax.datasets import digits


@pytest.fixture(scope="module")
def data():
    return digits.load()


def test_sizes_and_names(data):
    chex.assert_shape(data.train.images, (1352, 16, 16, 3))
    chex.assert_shape(data.test.images, (445, 16, 16, 3))
    assert data.class_names == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")


def test_every_fourth_of_a_class_is_a_test_image(data):
    originals = load_digits()
    seen = collections.Counter()
    train = zip(data.train.images, data.train.labels, strict=True)
    test = zip(data.test.images, data.test.labels, strict=True)
    for ink, label in zip(originals.images, originals.target, strict=True):
        seen[label] += 1
        image, found = next(test if seen[label] % 4 == 0 else train)
        assert found == label
        chex.assert_trees_all_close(image[..., 0].astype(float), enlarged(ink), atol=1.01)
    assert next(train, None) is None
    assert next(test, None) is None


def enlarged(ink):
    """Bilinear, twice as large: each new pixel lies a quarter of a pixel from its old one."""
    for axis in (0, 1):
        ink = np.moveaxis(ink, axis, 0)
        before = np.concatenate([ink[:1], ink[:-1]])
        after = np.concatenate([ink[1:], ink[-1:]])
        ink = np.stack([0.75 * ink + 0.25 * before, 0.75 * ink + 0.25 * after], axis=1).reshape(-1, *ink.shape[1:])
        ink = np.moveaxis(ink, 0, axis)
    return ink * 255 / 16


def test_gray_as_three_equal_channels(data):
    chex.assert_trees_all_equal(data.train.images[..., 0], data.train.images[..., 1], data.train.images[..., 2])
    assert data.train.images.min() == 0
    assert data.train.images.max() == 255


def test_mean_and_deviation_are_those_of_the_training_images(data):
    unit = data.train.images / 255
    chex.assert_trees_all_close(unit.mean(axis=(0, 1, 2)), np.asarray(data.mean), atol=5e-5)
    chex.assert_trees_all_close(unit.std(axis=(0, 1, 2)), np.asarray(data.std), atol=5e-5)
