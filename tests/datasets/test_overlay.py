import chex
import numpy as np
import pytest

from refine_jax.datasets.overlay import Overlay


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (9, 4, 5, 3), np.uint8)


def test_it_reads_and_is_written_as_an_array_of_which_the_images_stay(images):
    before, wanted = images.copy(), images.copy()
    overlay = Overlay(images)
    rng = np.random.default_rng(1)
    for rows in ([2, 7], [7, 0, 5], [], slice(1, 9, 3)):
        new = rng.integers(0, 256, wanted[rows].shape, np.uint8)
        overlay[rows], wanted[rows] = new, new
    for rows in (slice(None), slice(2, 8), [7, 7, 1], np.array([0, 8, 2]), []):
        np.testing.assert_array_equal(overlay[rows], wanted[rows])
    np.testing.assert_array_equal(np.asarray(overlay), wanted)
    np.testing.assert_array_equal(images, before)
    chex.assert_shape(overlay, (9, 4, 5, 3))
    chex.assert_type(overlay, np.uint8)
    assert (len(overlay), overlay.nbytes) == (len(images), images.nbytes)


def test_what_is_read_belongs_to_who_reads_it(images):
    overlay = Overlay(images)
    overlay[[3]] = images[[4]]
    overlay[:][:] = 0
    np.testing.assert_array_equal(overlay[[3, 8]], images[[4, 8]])


def test_a_copy_goes_its_own_way(images):
    overlay = Overlay(images)
    overlay[[1]] = images[[0]]
    copy = overlay.copy()
    copy[[1, 2]] = images[[5, 6]]
    np.testing.assert_array_equal(overlay[[1, 2]], images[[0, 2]])
    np.testing.assert_array_equal(copy[[1, 2]], images[[5, 6]])
