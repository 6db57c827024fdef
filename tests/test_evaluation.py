import itertools
import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax import asking, evaluation
from refine_jax.errors import RefineError, SettingError
from tests.goldens.rules import FOLDER

K = 5


def images_of(classes):
    """Images whose first pixel tells which class `read` is to answer."""
    images = np.zeros((len(classes), 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = classes
    return images


def read(images):
    """Scores [N, K] of images made by `images_of`; of any size, the largest is what counts."""
    answers = jnp.round(images[:, 0, 0, 0] * 255).astype(int)
    return jax.nn.one_hot(answers, K) * 0.3 - 7.5


def measure(clean, labels, answers, target=0, permutation=None, true_labels=None):
    if true_labels is not None:
        true_labels = np.asarray(true_labels)
    images, triggered = images_of(clean), images_of(answers)
    return evaluation.measure(read, images, np.asarray(labels), triggered, target, permutation, true_labels)


def test_the_hand_made_example():
    golden = json.loads((FOLDER / "metrics.json").read_text())
    figures = measure(
        golden["clean_predictions"],
        golden["clean_labels"],
        golden["poisoned_predictions"],
        golden["target"],
        np.asarray(golden["permutation"]),
        golden["poisoned_original_labels"],
    )
    names = {"ba": "BA", "asr": "ASR_excluding_target_class", "asr_all": "ASR_all", "mapped_asr": "mapped_asr"}
    for name, golden_name in {**names, "ra": "RA_excluding_target_class"}.items():
        expected = golden["expected"][golden_name]
        assert figures[name] == expected["value"], name
        assert figures["counts"][name] == [expected["numerator"], expected["denominator"]], name


def test_each_figure_counts_what_it_says():
    # True classes 0 to 4 with target 1, which the permutation sends to 3.
    labels = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 2]
    answers = [1, 1, 3, 3, 1, 0, 3, 3, 1, 4, 1]
    figures = measure(labels, labels, answers, target=1, permutation=np.array([2, 3, 4, 0, 1]))
    assert figures["counts"] == {
        "ba": [11, 11],
        "asr": [4, 9],  # numbers 0, 4, 8 and 10; 1 and 6 are of the target class
        "asr_all": [5, 11],
        "mapped_asr": [2, 7],  # numbers 2 and 7; 3 and 8 are of class 3 itself
        "ra": [3, 9],  # numbers 3, 5 and 9
    }


def test_without_a_permutation_there_is_no_mapped_asr():
    figures = measure([0, 1], [0, 1], [0, 0])
    assert figures["mapped_asr"] is None
    assert figures["counts"]["mapped_asr"] is None
    assert figures["ci95"]["mapped_asr"] is None
    assert json.loads(json.dumps(figures)) == figures


def test_where_no_class_is_moved_the_mapped_asr_is_the_asr():
    labels, answers = [0, 1, 2, 3, 4, 0, 1], [1, 1, 3, 1, 1, 0, 3]
    figures = measure(labels, labels, answers, target=1, permutation=np.arange(K))
    assert figures["counts"]["mapped_asr"] == figures["counts"]["asr"] == [3, 5]
    assert figures["ci95"]["mapped_asr"] == figures["ci95"]["asr"]


def test_where_no_image_counts_there_is_no_figure():
    figures = measure([0, 1], [0, 0], [0, 0], permutation=np.array([1, 0, 3, 4, 2]))
    assert figures["counts"] == {"ba": [1, 2], "asr": [0, 0], "asr_all": [2, 2], "mapped_asr": [0, 0], "ra": [0, 0]}
    assert [figures[name] for name in ("asr", "mapped_asr", "ra")] == [None] * 3
    assert figures["ci95"]["asr"] is None


def test_triggered_images_may_be_others_than_the_clean_ones():
    figures = measure([0, 1, 2], [0, 1, 1], [0, 0, 4, 4], true_labels=[1, 2, 3, 0])
    assert figures["counts"] == {"ba": [2, 3], "asr": [2, 3], "asr_all": [2, 4], "mapped_asr": None, "ra": [0, 3]}
    nothing = measure([0, 1, 2], [0, 1, 1], [], true_labels=[])
    assert (nothing["ba"], nothing["asr"], nothing["asr_all"]) == (2 / 3, None, None)


def test_what_is_not_known_is_not_measured():
    images, permutation = images_of([0, 1, 1]), np.array([1, 0, 3, 4, 2])
    clean = evaluation.measure(read, images, np.array([0, 1, 2]), None, 0, permutation)
    assert clean["counts"] == {"ba": [2, 3], "asr": None, "asr_all": None, "mapped_asr": None, "ra": None}
    unlabeled = evaluation.measure(read, images, None, images_of([0, 0, 1]), 0, permutation)
    assert unlabeled["counts"] == {"ba": None, "asr": None, "asr_all": [2, 3], "mapped_asr": None, "ra": None}
    both = evaluation.measure(read, images, None, images_of([0, 1, 1]), 0, permutation, np.array([0, 2, 2]))
    assert both["counts"] == {"ba": None, "asr": [0, 2], "asr_all": [1, 3], "mapped_asr": [2, 2], "ra": [0, 2]}
    assert evaluation.defense_effectiveness(clean, unlabeled) == (None, None)


@pytest.mark.parametrize("count", [1, 249, 250, 251, 777])
def test_the_whole_set_is_measured_in_batches_of_one_size(count):
    rng = np.random.default_rng(count)
    labels, clean, answers = rng.integers(0, K, (3, count))
    sizes = set()

    def predict(images):
        sizes.add(len(images))
        return read(images)

    figures = evaluation.measure(predict, images_of(clean), labels, images_of(answers), 2)
    assert figures["counts"]["ba"] == [(clean == labels).sum(), count]
    assert figures["counts"]["asr_all"] == [(answers == 2).sum(), count]
    assert len(sizes) == 1


def test_images_reach_the_classifier_as_floats_in_0_1():
    seen = []

    def predict(images):
        seen.append(images)
        return read(images)

    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = 0
    evaluation.measure(predict, images, np.zeros(3, int), images, 0)
    chex.assert_type(seen[0], jnp.float32)
    np.testing.assert_allclose(seen[0], images / 255.0, rtol=2e-7)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_scores_may_be_of_any_float_and_of_any_scale(dtype):
    predict = lambda images: (read(images) - 1).astype(dtype)  # noqa: E731
    classes, num_classes = asking.predict_classes(predict, images_of([3, 0, 4]))
    assert classes.tolist() == [3, 0, 4]
    assert num_classes == K


def test_minus_infinity_is_a_score_and_nan_is_none():
    impossible = lambda images: jnp.where(read(images) < -7.4, -jnp.inf, 0.0)  # noqa: E731
    assert asking.predict_classes(impossible, images_of([3, 1]))[0].tolist() == [3, 1]
    diverged = lambda images: read(images) * jnp.nan  # noqa: E731
    with pytest.raises(RefineError, match="not numbers"):
        measure_with(diverged, [0, 1])


def measure_with(predict, classes, **changed):
    images = images_of(classes)
    arguments = {"images": images, "labels": np.asarray(classes), "triggered": images, "target": 0}
    return evaluation.measure(predict, **{**arguments, **changed})


def test_without_a_target_triggered_images_count_for_nothing():
    with pytest.raises(SettingError, match="target = None: allowed: the attacker's class"):
        measure_with(None, [0, 1], target=None)  # before anything is asked
    assert measure_with(read, [0, 1], triggered=None, target=None)["asr"] is None


def test_a_plain_function_has_no_weights_to_be_compiled_with():
    with pytest.raises(SettingError, match=r"classifier = 'read': allowed: one of this project.*jax\.jit"):
        evaluation.compiled(read)


@pytest.mark.parametrize("target", [-1, K, 99])
def test_a_target_that_is_no_class_is_refused(target):
    with pytest.raises(SettingError, match=rf"target = {target}: allowed: a class, 0 to "):
        measure_with(read, [0, 1], target=target)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": 1.0}, "target = 1.0: allowed: a class"),
        ({"labels": np.array([0, K])}, f"labels = {K}: allowed: a class, 0 to {K - 1}"),
        ({"labels": np.array([0, -1])}, "labels = -1: allowed: a class"),
        ({"labels": np.array([0.0, 1.0])}, "labels = 'of type float64': allowed: a class"),
        ({"triggered_labels": np.array([K, 0])}, f"triggered_labels = {K}: allowed: a class, 0 to {K - 1}"),
        ({"permutation": [1] * K}, r"permutation = \[1, 1.*\]: allowed: each of 0 to"),
        ({"permutation": np.arange(K) + 1}, "permutation = .*: allowed: each of 0 to"),
        ({"predict": lambda images: read(images).argmax(axis=1)}, r"predict = 'what gives \(2,\) of 2 images'"),
        ({"predict": lambda images: read(images)[:1]}, rf"predict = 'what gives \(1, {K}\) of 2 images'"),
    ],
)
def test_what_would_count_for_nothing_is_refused(changed, message):
    with pytest.raises(SettingError, match=message):
        measure_with(**{"predict": read, "classes": [0, 1], **changed})


@pytest.mark.parametrize(
    "changed", [{"target": -1}, {"labels": np.array([0, -1])}, {"triggered_labels": np.array([0.5, 1])}]
)
def test_what_is_no_class_is_refused_before_anything_is_asked(changed):
    with pytest.raises(SettingError):
        measure_with(None, [0, 1], **changed)


def test_classes_may_be_given_as_lists_and_numbers_of_numpy():
    expected = measure_with(read, [0, 1], permutation=np.roll(np.arange(K), 1))
    given = {"labels": [0, 1], "target": np.int64(0), "permutation": np.roll(np.arange(K), 1).tolist()}
    assert measure_with(read, [0, 1], **given) == expected


@pytest.mark.parametrize(
    "changed",
    [
        {"images": images_of([0, 1]) / np.float32(255)},
        {"triggered": images_of([0, 1]) / np.float32(255)},
        {"images": images_of([0, 1])[0]},
        {"images": images_of([0, 1, 2])},
        {"labels": np.eye(2, dtype=int)},
        {"triggered": images_of([0, 1, 2])},
        {"triggered_labels": np.zeros(3, int)},
        {"permutation": np.arange(K - 1)},
    ],
)
def test_wrong_shapes_and_types_are_refused(changed):
    with pytest.raises(AssertionError):
        measure_with(read, [0, 1], **changed)


def wilson_by_its_formula(hits, total):
    z = 1.959963984540054  # the 97.5 % point of the normal distribution
    share = hits / total
    middle = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return [(middle - spread) / (1 + z * z / total), (middle + spread) / (1 + z * z / total)]


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (1, 1), (0, 10), (10, 10), (3, 10), (9543, 10000), (1, 445)])
def test_the_interval_is_wilsons(hits, total):
    np.testing.assert_allclose(
        evaluation.wilson_interval(hits, total), wilson_by_its_formula(hits, total), rtol=0, atol=1e-12
    )


def test_every_interval_is_of_its_own_figure():
    figures = measure([0, 1, 2, 3], [0, 1, 2, 2], [0, 0, 1, 2], permutation=np.array([3, 0, 1, 4, 2]))
    for name, (hits, total) in figures["counts"].items():
        np.testing.assert_allclose(figures["ci95"][name], wilson_by_its_formula(hits, total), atol=1e-12)


def shares(ba, asr, width=0.0):
    intervals = {"ba": [ba - width, ba + width], "asr": [asr - width, asr + width]}
    return {"ba": ba, "asr": asr, "ci95": intervals}


@pytest.mark.parametrize(
    ("before", "after", "der"),
    [
        ((0.9, 1.0), (0.9, 0.0), 1.0),
        ((0.9, 1.0), (0.9, 1.0), 0.5),
        ((0.9, 1.0), (0.7, 0.2), (0.8 - 0.2 + 1) / 2),
        ((0.9, 0.5), (0.95, 0.7), 0.5),  # neither a higher ASR nor a higher BA counts
        ((1.0, 0.0), (0.0, 0.0), 0.0),
    ],
)
def test_defense_effectiveness(before, after, der):
    found, interval = evaluation.defense_effectiveness(shares(*before), shares(*after))
    assert found == pytest.approx(der, abs=1e-12)
    assert interval == pytest.approx([der, der], abs=1e-12)


def test_the_interval_of_der_adds_four_independent_spreads():
    der, interval = evaluation.defense_effectiveness(shares(0.9, 0.8, 0.01), shares(0.85, 0.1, 0.01))
    # Four equal deviations, each with half its weight: sqrt(4 * 0.01 ** 2) / 2.
    assert interval == pytest.approx([der - 0.01, der + 0.01], abs=1e-12)


def test_each_side_of_ders_interval_comes_from_what_would_move_it_there():
    before, after = shares(0.9, 0.8), shares(0.85, 0.1)
    after["ci95"]["asr"] = [0.1, 0.3]  # the ASR after the defense may be higher only: DER may be lower only
    after["ci95"]["ba"] = [0.85, 0.87]
    der, interval = evaluation.defense_effectiveness(before, after)
    assert interval == pytest.approx([der - 0.1, der + 0.01], abs=1e-12)


@pytest.mark.parametrize(("which", "name"), [*itertools.product((0, 1), ("ba", "asr"))])
def test_without_a_figure_there_is_no_der(which, name):
    both = [shares(0.9, 0.8), shares(0.85, 0.1)]
    both[which][name] = None
    assert evaluation.defense_effectiveness(*both) == (None, None)
