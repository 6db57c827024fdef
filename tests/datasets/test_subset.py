import numpy as np
import pytest

from refine_jax import datasets
from refine_jax.datasets.images import Dataset, Split
from refine_jax.errors import SettingError


def made(count):
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    split = Split(images, np.arange(count, dtype=np.int32) % 4)
    return Dataset("made", split, split, tuple("abcd"), (0.5,) * 3, (0.2,) * 3)


@pytest.mark.parametrize("count", [None, 200])
def test_all_images_are_the_data_set_itself(count):
    whole = made(200)
    assert datasets.limit_training(whole, count) is whole


def test_images_and_labels_stay_together_and_in_order():
    part = datasets.limit_training(made(200), 60)
    numbers = part.train.images[:, 0, 0, 0]
    assert len(set(numbers.tolist())) == 60
    assert (np.diff(numbers) > 0).all()
    np.testing.assert_array_equal(part.train.labels, numbers % 4)


def test_the_test_set_stays_whole():
    whole = made(200)
    assert datasets.limit_training(whole, 60).test is whole.test


def test_a_smaller_part_is_a_part_of_a_larger_one():
    small, large = (set(datasets.limit_training(made(200), count).train.images[:, 0, 0, 0]) for count in (20, 60))
    assert small < large


def test_the_part_is_not_just_the_beginning():
    assert datasets.limit_training(made(200), 60).train.images.max() > 150


@pytest.mark.parametrize("count", [0, -5, 201])
def test_more_than_there_is_and_nothing_at_all_are_refused(count):
    with pytest.raises(SettingError, match=rf"dataset\.train_images = {count}: allowed: 1 to 200"):
        datasets.limit_training(made(200), count)
