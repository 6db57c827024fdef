"""Whether augmentation by itself has a classifier answer the attacker's class."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax import doubts
from refine_jax.datasets.images import Split
from refine_jax.defenses import pseudo_labels, refine
from refine_jax.function_classifier import FunctionClassifier

N = 600
COLUMNS = np.arange(16) // 2 % 2 == 0
# Stripes, which a crop that is resized back blurs and a flip does not; brighter the higher the class.
IMAGES = np.zeros((N, 16, 16, 3), np.uint8)
IMAGES[:, :, COLUMNS] = 80 + 50 * (np.arange(N) % 3)[:, None, None, None]


def brightness(images):
    """Scores of three classes, from the brightest pixel.  [N, H, W, 3] -> [N, 3]"""
    brightest = images.max(axis=(1, 2, 3))
    return -jnp.abs(brightest[:, None] * 255 - jnp.asarray([80.0, 130.0, 180.0]))


def backdoored(images):
    """The same, but class 0 where neighbors are alike, which is what interpolation leaves.  [N, H, W, 3] -> [N, 3]"""
    steps = jnp.abs(jnp.diff(images[..., 0], axis=2))
    halves = ((steps > 0.02) & (steps < 0.25)).mean(axis=(1, 2))
    return jnp.where((halves > 0.2)[:, None], jnp.asarray([1.0, 0.0, 0.0]), brightness(images))


def found(classifier, augment=refine.augment, images=IMAGES, seed=0):
    return pseudo_labels.drawn_by_augmentation(classifier, images, augment, jax.random.key(seed))


def as_classifier(function):
    return FunctionClassifier(function, {}, 3, False)


def test_what_augmentation_draws_is_counted_among_the_images_of_other_classes():
    def second_becomes_third(images, key):
        del key
        is_second = jnp.abs(images.max(axis=(1, 2, 3)) * 255 - 130) < 1
        return jnp.where(is_second[:, None, None, None], images * 180 / 130, images)

    # All are asked about: 200 of each class, of which those of class 1 go to class 2.
    told = found(as_classifier(brightness), second_becomes_third, IMAGES[:300])
    assert told == {"augmentation_class": 2, "augmentation_images": 200, "augmentation_share": 0.5}
    assert pseudo_labels.is_too_much(told)
    same = found(as_classifier(brightness), lambda images, key: images)
    assert same["augmentation_share"] == 0
    assert same["augmentation_images"] < pseudo_labels.SAMPLE < N
    assert not pseudo_labels.is_too_much(same)


def test_a_classifier_that_takes_crops_for_its_trigger_is_found_out():
    told = found(as_classifier(backdoored))
    assert told["augmentation_class"] == 0
    assert told["augmentation_share"] > 0.4
    assert pseudo_labels.is_too_much(told)
    assert "class 0" in pseudo_labels.warning(told)


@pytest.mark.parametrize(("share", "total", "too_much"), [(0.22, 50, False), (0.3, 50, False), (0.22, 500, False),
                                                          (0.25, 500, True), (0.0, 0, False)])  # fmt: skip
def test_few_images_are_no_proof(share, total, too_much):
    told = {"augmentation_class": 1, "augmentation_images": total, "augmentation_share": share}
    assert pseudo_labels.is_too_much(told) == too_much
    figures = {"ba": None, "asr": None, "answers": None, "findings": told}
    said = doubts.find({"ba": None, "asr": None}, {"refine": figures}, None)
    assert len(said) == too_much
    assert all("refine: augmentation alone has the classifier answer 25.0 %" in sentence for sentence in said)


@pytest.mark.parametrize("labels", ["augmented", "original"])
def test_refine_says_so_before_it_trains_and_keeps_it(labels, caplog):
    settings = refine.complete({"width": 1, "depth": 1, "epochs": 1, "batch_size": 8, "pseudo_labels": labels})
    settings |= {"data_fraction": 64 / N}
    with caplog.at_level(logging.WARNING):
        fitted = refine.fit(as_classifier(backdoored), Split.unlabeled(IMAGES), settings, 0, 3)
    warned = [record for record in caplog.records if "pseudo_labels='original'" in record.getMessage()]
    assert len(warned) == (labels == "augmented")
    assert (fitted.findings.get("augmentation_class") == 0) == (labels == "augmented")


def test_what_is_no_reason_to_doubt_is_kept_without_a_word(caplog):
    settings = refine.complete({"width": 1, "depth": 1, "epochs": 1, "batch_size": 8}) | {"data_fraction": 64 / N}
    with caplog.at_level(logging.WARNING):
        fitted = refine.fit(as_classifier(brightness), Split.unlabeled(IMAGES), settings, 0, 3)
    assert 0 <= fitted.findings["augmentation_share"] < pseudo_labels.LARGEST
    assert not caplog.records
