import chex
import numpy as np
import pytest

from refine_jax.datasets import Dataset, Split


def split(count=4, size=(6, 8)):
    return Split(np.zeros((count, *size, 3), np.uint8), np.zeros(count, np.int32))


def test_a_dataset_says_its_size():
    data = Dataset("small", split(4), split(2), ("a", "b", "c"), (0.5,) * 3, (0.2,) * 3)
    assert data.num_classes == 3
    assert data.image_size == (6, 8)
    assert (len(data.train), len(data.test)) == (4, 2)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((4, 6, 8), np.uint8), np.zeros(4, np.int32)),
        (np.zeros((4, 6, 8, 1), np.uint8), np.zeros(4, np.int32)),
        (np.zeros((4, 6, 8, 3), np.float32), np.zeros(4, np.int32)),
        (np.zeros((4, 6, 8, 3), np.uint8), np.zeros(4, np.int64)),
        (np.zeros((4, 6, 8, 3), np.uint8), np.zeros(5, np.int32)),
        (np.zeros((4, 6, 8, 3), np.uint8), np.zeros((4, 1), np.int32)),
    ],
)
def test_what_is_no_split_is_refused(images, labels):
    with pytest.raises(AssertionError):
        Split(images, labels)


def test_splits_of_two_sizes_are_refused():
    with pytest.raises(AssertionError):
        Dataset("small", split(), split(size=(8, 8)), ("a", "b"), (0.5,) * 3, (0.2,) * 3)


def test_mapped_arrays_are_images_too(tmp_path):
    np.save(tmp_path / "images.npy", np.full((2, 6, 8, 3), 7, np.uint8))
    mapped = Split(np.load(tmp_path / "images.npy", mmap_mode="r"), np.zeros(2, np.int32))
    chex.assert_trees_all_equal(np.asarray(mapped.images[1]), np.full((6, 8, 3), 7, np.uint8))
