import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from refine_jax import asking, evaluation
from refine_jax.report import counts
from tests.report.material import ANSWERS, LABELS, PERMUTATION


def test_destinations_of_the_worked_example():
    after = counts.destinations(LABELS, ANSWERS["refine"].triggered, 0, int(PERMUTATION[0]), 4)
    # its class, the target, pi(target), elsewhere
    assert after.tolist() == [[0, 0, 0, 0], [2, 0, 1, 0], [2, 0, 0, 0], [1, 1, 1, 0]]
    before = counts.destinations(LABELS, ANSWERS["no defense"].triggered, 0, None, 4)
    assert before.tolist() == [[0, 0, 0, 0], [0, 3, 0, 0], [0, 2, 0, 0], [1, 2, 0, 0]]


def test_where_the_target_stays_what_it_is_there_is_no_place_of_its_own_for_it():
    assert counts.mapped_target(PERMUTATION, 0) == 2
    assert counts.mapped_target(np.arange(4), 0) is None
    assert counts.mapped_target(None, 0) is counts.mapped_target(PERMUTATION, None) is None


def test_sums_are_the_hits_of_the_figures():
    rng = np.random.default_rng(0)
    labels, clean, triggered = rng.integers(0, 5, (3, 400))
    permutation = np.array([3, 0, 1, 4, 2])
    figures = evaluation.count(asking.Answers(clean, triggered, 5), labels, 1, permutation, labels)["counts"]
    flow = counts.destinations(labels, triggered, 1, int(permutation[1]), 5)
    assert flow[:, 0].sum() == figures["ra"][0]
    assert flow[:, 1].sum() == figures["asr"][0]
    assert flow[:, 2].sum() == figures["mapped_asr"][0]
    assert flow.sum() == figures["asr"][1]
    confused = counts.confusion(labels, clean, 5)
    np.testing.assert_array_equal(confused, confusion_matrix(labels, clean))
    assert np.trace(confused) == figures["ba"][0]


def test_a_class_without_images_has_no_accuracy():
    found = counts.class_accuracies(np.array([[3, 1], [0, 0]]))
    assert found[0]["count"] == [3, 4]
    assert found[0]["share"] == pytest.approx(0.75)
    assert found[0]["ci95"][0] < 0.75 < found[0]["ci95"][1]
    assert found[1] is None


def test_the_largest_errors_come_first():
    confused = np.array([[9, 0, 2], [5, 9, 0], [2, 1, 9]])
    assert counts.largest_confusions(confused, 3) == [(1, 0, 5), (0, 2, 2), (2, 0, 2)]
    assert counts.largest_confusions(np.eye(3, dtype=int)) == []
