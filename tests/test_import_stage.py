"""What is said of an imported classifier, once it has been shown the clean images."""

import functools

import flax.linen as nn
import numpy as np

from refine_jax import import_stage, importing, networks
from refine_jax.classifier import Classifier
from refine_jax.datasets.images import NO_LABEL, Dataset, Split


def colorful(count=300):
    """Images whose class is their brightest channel."""
    labels = np.arange(count, dtype=np.int32) % 3
    images = np.full((count, 4, 4, 3), 50, np.uint8)
    images[np.arange(count), :, :, labels] = 200
    return Split(images, labels)


class Brightest(nn.Module):
    """Its logits are the channels of the first pixel, in an order."""

    num_classes: int
    order: tuple[int, ...] = (0, 1, 2)

    @nn.compact
    def __call__(self, images, train=False):
        return images[:, 0, 0][:, np.array(self.order)]


def doubts(monkeypatch, channels, *, accuracy=None, order=(0, 1, 2), split=None):
    """What is said of a classifier that was trained on RGB and is shown `channels`."""
    name = f"brightest{order}"  # compiled programs are told apart by the name
    monkeypatch.setitem(networks.registry.NETWORKS, name, functools.partial(Brightest, order=order))
    classifier = Classifier(name, {"params": {}}, 3, (0,) * 3, (1,) * 3, channels=channels)
    imported = importing.Imported(classifier, "state dict", {}, accuracy, None, ())
    split = split or colorful()
    data = Dataset("folder", split, split, tuple("rgb"), (0,) * 3, (1,) * 3)
    return import_stage.doubts(imported, data)


def test_a_classifier_that_is_as_good_as_its_file_says_raises_no_doubt(monkeypatch):
    figures, told = doubts(monkeypatch, "RGB", accuracy=1.0)
    assert (figures["ba"], told) == (1.0, [])


def test_channels_in_the_wrong_order_are_noticed_by_the_other_being_better(monkeypatch):
    figures, told = doubts(monkeypatch, "BGR")
    assert figures["counts"]["ba"] == [100, 300]  # green is in the middle either way
    assert any("set victim.channels=RGB" in sentence and "100.0%" in sentence for sentence in told)


def test_near_chance_and_far_under_the_claim_are_said(monkeypatch):
    _, told = doubts(monkeypatch, "RGB", order=(1, 2, 0))
    assert any("one class alone makes up 33.3%" in sentence and "victim.mean" in sentence for sentence in told)
    half = colorful()
    mixed = Split(half.images, np.where(np.arange(300) < 90, (half.labels + 1) % 3, half.labels).astype(np.int32))
    _, told = doubts(monkeypatch, "RGB", accuracy=0.95, split=mixed)
    assert len(told) == 1
    assert "far under the 95.0% that its file says" in told[0]
    assert doubts(monkeypatch, "RGB", accuracy=0.72, split=mixed)[1] == []


def test_without_labels_nothing_is_measured(monkeypatch):
    bare = Split(colorful().images, np.full(300, NO_LABEL, np.int32))
    assert doubts(monkeypatch, "BGR", split=bare) == (None, [])
