"""The losses of BTI-DBF against numbers worked out by hand, and the released program's formulas in PyTorch."""

import numpy as np
import pytest

from refine_jax.defenses.bti_dbf import losses


def test_a_mask_lies_between_0_and_1():
    free = np.array([-50.0, 0.0, np.arctanh(0.5), 50.0], np.float32)
    np.testing.assert_allclose(losses.feature_mask(free), [0, 0.5, 0.75, 1], rtol=0, atol=1e-6)


def test_decoupling():
    """Logits (log 3, 0) say the first of two classes with 3/4."""
    kept = np.log(np.array([[3.0, 1.0]], np.float32))  # right: -log 3/4
    rest = np.log(np.array([[1.0, 7.0]], np.float32))  # wrong: -log 1/8
    got = losses.decoupling(kept, rest, np.array([0]))
    np.testing.assert_allclose(got, np.log(4 / 3) - np.log(8), rtol=1e-6)


# One image of two pixels, whose features are three; the mask keeps the first and half of the second.
MASK = np.array([1.0, 0.5, 0.0], np.float32)
FEATURES = (np.array([[1.0, 2.0, 3.0]], np.float32), np.array([[2.0, 4.0, 0.0]], np.float32))
# Masked differences are -1, -1, 0, the others 0, -1, 3.
BENIGN, BACKDOOR = 2 / 3, 10 / 3
INPUTS = (np.zeros((1, 1, 2, 1), np.float32), np.array([0.6, 0.8], np.float32).reshape(1, 1, 2, 1))
NORM = 0.5  # (0.36 + 0.64) / 2


@pytest.mark.parametrize(
    ("norm_bound", "feature_bound", "expected"),
    [
        (0.51, 0.67, -BACKDOOR + 0.01 * BENIGN),
        (0.49, 0.67, NORM),  # the images are too far apart
        (0.51, 0.66, NORM),  # the benign features are
    ],
)
def test_inversion(norm_bound, feature_bound, expected):
    loss, parts = losses.inversion(FEATURES, INPUTS, MASK, norm_bound, feature_bound)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose([parts["benign"], parts["backdoor"], parts["norm"]], [BENIGN, BACKDOOR, NORM], 1e-6)


@pytest.mark.parametrize(("bound", "weight"), [(0.49, 100), (0.51, 1)])
def test_purification(bound, weight):
    logits = np.log(np.array([[1.0, 4.0]], np.float32))  # -log 4/5
    loss, parts = losses.purification(FEATURES, INPUTS, logits, np.array([1]), bound)
    feature = (1 + 4 + 9) / 3
    np.testing.assert_allclose(loss, np.log(5 / 4) + feature + weight * NORM, rtol=1e-6)
    np.testing.assert_allclose(parts["feature"], feature, rtol=1e-6)


def test_unlearning():
    logits = np.log(np.array([[1.0, 4.0]], np.float32))
    loss, _ = losses.unlearning(FEATURES, logits, np.array([0]))
    np.testing.assert_allclose(loss, np.log(5) + 14 / 3, rtol=1e-6)


@pytest.mark.parametrize(("scale", "weight"), [(1.0, 100), (0.3, 0.01)])
def test_reconstruction_is_the_released_programs(scale, weight):
    """Which takes the clean image's probabilities for logits, and draws harder where the images are over 0.1 apart."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(3, 4)).astype(np.float32) for _ in range(2)]
    features = [rng.normal(size=(3, 5)).astype(np.float32) for _ in range(2)]
    inputs = [(scale * rng.normal(size=(3, 2, 2, 3)) / 2).astype(np.float32) for _ in range(2)]
    assert (np.mean((inputs[0] - inputs[1]) ** 2) > 0.1) == (weight == 100)
    loss, _ = losses.reconstruction(features, inputs, logits)

    softmax, mse = torch.nn.Softmax(dim=1), torch.nn.MSELoss()
    given = [[torch.from_numpy(part) for part in pair] for pair in (logits, features, inputs)]
    predicted = torch.nn.CrossEntropyLoss()(softmax(given[0][0]), softmax(given[0][1]))
    expected = predicted + mse(*given[1]) + weight * mse(*given[2])
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
