"""The losses against PyTorch's values and gradients, and against their definitions."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.extend.core import jaxprs_in_params

from refine_jax import losses
from refine_jax.defenses.mapping import remap
from tests.goldens import rules

SUPCON = rules.load("losses/supcon.npz")
BCE = rules.load("losses/bce.npz")
IDENTITY = np.arange(10)

# Compiled: operation by operation, every shape costs a hundred small compilations.
mapped_cross_entropy = jax.jit(jax.value_and_grad(losses.mapped_cross_entropy))
mapped_binary_cross_entropy = jax.jit(jax.value_and_grad(losses.mapped_binary_cross_entropy))


@functools.partial(jax.jit, static_argnames="repeats")
def supervised_contrastive(features, labels, temperature, base_temperature=None, *, repeats=1):
    """Value and gradient."""
    return jax.value_and_grad(losses.supervised_contrastive)(
        features, labels, temperature, base_temperature, repeats=repeats
    )


def contrastive_by_definition(features, labels, temperature):
    """Equation 2 of Khosla et al., one anchor after another, in float64."""
    anchors = np.concatenate(np.moveaxis(np.asarray(features, np.float64), 1, 0))
    labels = np.tile(labels, features.shape[1])
    total = 0.0
    for i, anchor in enumerate(anchors):
        others = [a for a in range(len(anchors)) if a != i]
        similarities = np.array([anchor @ anchors[a] / temperature for a in others])
        positives = similarities[labels[others] == labels[i]]
        if len(positives):
            largest = similarities.max()
            total -= (positives - largest - np.log(np.exp(similarities - largest).sum())).mean()
    return total / len(anchors)


def unit_features(*shape, seed=0):
    features = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def arrays_inside(function, *args):
    """Shapes of everything that a function computes on its way."""
    shapes = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            shapes.extend(variable.aval.shape for variable in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                visit(inner)

    visit(jax.make_jaxpr(function)(*args).jaxpr)
    return shapes


@pytest.mark.parametrize("case", json.loads(str(SUPCON["cases"])))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_contrastive_is_the_references(case, dtype):
    golden = {key.removeprefix(f"{case}/"): value for key, value in SUPCON.items() if key.startswith(f"{case}/")}
    temperature, base = float(golden["tau_f64"]), float(golden["base_temperature_f64"])
    with jax.enable_x64(dtype == np.float64):
        features = golden["features"].astype(dtype)
        value, gradient = supervised_contrastive(features, golden["labels"], temperature, base)
        assert value.dtype == gradient.dtype == dtype
        expected, tolerance = (golden["value_f64"], 1e-12) if dtype == np.float64 else (golden["value"], 2e-5)
        np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance)
        without_factor, _ = supervised_contrastive(features, golden["labels"], temperature)
        np.testing.assert_allclose(without_factor, golden["value_base_eq_tau"], rtol=0, atol=2e-5)
        # There is no double-precision gradient.
        np.testing.assert_allclose(gradient, golden["grad"], rtol=0, atol=5e-6)


@pytest.mark.parametrize(("n", "views", "dim"), [(5, 3, 4), (1, 4, 3), (33, 2, 5)])
@pytest.mark.parametrize("length", [1.0, 40.0])
def test_contrastive_is_its_definition(n, views, dim, length):
    """Also where features are so long that all but the likeliest neighbors underflow."""
    features = length * unit_features(n, views, dim)
    labels = np.random.default_rng(1).integers(0, 3, n)
    expected = contrastive_by_definition(features, labels, 0.1)
    value, _ = supervised_contrastive(features, labels, 0.1)
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=2e-6 * length**2)


@pytest.mark.parametrize(("n", "views", "repeats"), [(4, 1, 2), (3, 2, 3), (1, 1, 5)])
def test_repeats_are_views_given_again(n, views, repeats):
    features, labels = unit_features(n, views, 6), np.array([0, 1, 0, 2])[:n]
    value, gradient = supervised_contrastive(features, labels, 0.1, 0.07, repeats=repeats)
    expected, by_view = supervised_contrastive(np.tile(features, (1, repeats, 1)), labels, 0.1, 0.07)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=2e-6)
    by_view = by_view.reshape(n, repeats, views, -1).sum(axis=1)
    np.testing.assert_allclose(gradient, by_view, rtol=1e-5, atol=2e-6)


def test_identical_views_are_not_copied():
    """Neither value nor gradient holds more than the similarities of one view, however often it is repeated."""
    n, dim, repeats = 6, 5, 4

    def loss(features):
        return losses.supervised_contrastive(features, np.arange(n) % 3, 0.1, repeats=repeats)

    shapes = arrays_inside(jax.value_and_grad(loss), unit_features(n, 1, dim))
    assert (n, n) in shapes
    assert max(np.prod(shape) for shape in shapes) == n * n


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (np.zeros((4, 2, 3)), [0, 0, 1, 2]),
        (unit_features(4, 2, 3), [1, 1, 1, 1]),
        (unit_features(4, 1, 3), [0, 1, 2, 3]),
        (unit_features(1, 1, 3), [0]),
        (unit_features(1, 2, 3), [0]),
        (1e6 * unit_features(4, 2, 3), [0, 0, 1, 2]),
        (np.ones((4, 2, 3)), [0, 0, 1, 2]),
    ],
    ids=["zeros", "one label", "singletons", "one image", "one image twice", "long", "equal"],
)
def test_contrastive_is_finite(features, labels, repeats):
    value, gradient = supervised_contrastive(features.astype(np.float32), np.array(labels), 0.07, repeats=repeats)
    chex.assert_tree_all_finite((value, gradient))
    if features.shape[:2] == (1, 1):  # Nobody but its own repeats: all positives, all equal.
        np.testing.assert_allclose(value, 0, atol=2e-6)


def test_the_order_of_the_batch_does_not_matter():
    features, labels = unit_features(8, 2, 5), np.array([0, 1, 2, 0, 1, 2, 3, 3])
    logits, permutation = 3 * unit_features(8, 4, seed=1), np.array([2, 3, 1, 0])
    order = np.random.default_rng(2).permutation(8)
    for loss in (
        lambda o: supervised_contrastive(features[o], labels[o], 0.1),
        lambda o: mapped_cross_entropy(logits[o], labels[o], permutation),
        lambda o: mapped_binary_cross_entropy(logits[o], labels[o], permutation),
    ):
        value, gradient = loss(np.arange(8))
        chex.assert_trees_all_close(loss(order), (value, gradient[order]), rtol=1e-5, atol=1e-6)


class Variants(chex.TestCase):
    """Compiled and not."""

    @chex.variants(with_jit=True, without_jit=True)
    def test_contrastive(self):
        features, labels = unit_features(6, 2, 5), np.array([0, 1, 1, 2, 0, 0])
        loss = self.variant(lambda f, labels: losses.supervised_contrastive(f, labels, 0.1))
        np.testing.assert_allclose(
            loss(features, labels), contrastive_by_definition(features, labels, 0.1), rtol=1e-5, atol=1e-6
        )

    @chex.variants(with_jit=True, without_jit=True)
    def test_mapped(self):
        logits, labels, permutation = 3 * unit_features(5, 4), np.array([0, 1, 3, 2, 0]), np.array([2, 3, 1, 0])
        q = np.asarray(remap(jax.nn.softmax(logits), permutation))
        picked = q[np.arange(5), labels]
        np.testing.assert_allclose(
            self.variant(losses.mapped_cross_entropy)(logits, labels, permutation),
            -np.log(picked).mean(),
            rtol=1e-5,
        )
        one_hot = np.eye(4)[labels]
        np.testing.assert_allclose(
            self.variant(losses.mapped_binary_cross_entropy)(logits, labels, permutation),
            -(one_hot * np.log(q) + (1 - one_hot) * np.log1p(-q)).mean(),
            rtol=1e-5,
        )

    @chex.variants(with_jit=True, without_jit=True)
    def test_l2_normalize(self):
        x = 7 * unit_features(3, 4)
        np.testing.assert_allclose(self.variant(losses.l2_normalize)(x), x / 7, rtol=1e-6)


@jax.jit
def by_row(logits, labels, permutation):
    """The loss of each row by itself."""
    return jax.vmap(lambda row, label: losses.mapped_binary_cross_entropy(row[None], label[None], permutation))(
        logits, labels
    )


def exact_row_losses(logits, labels):
    """Binary cross-entropy of the softmax in extended precision: log(1 - q) from the sum of all others."""
    logits = logits.astype(np.longdouble)
    total = np.logaddexp.reduce(logits, axis=1)
    result = np.zeros(len(logits), np.longdouble)
    for k in range(logits.shape[1]):
        others = np.logaddexp.reduce(np.delete(logits, k, axis=1), axis=1) - total
        result -= np.maximum(np.where(labels == k, logits[:, k] - total, others), -100)
    return (result / logits.shape[1]).astype(np.float64)


def test_binary_cross_entropy_is_the_references_in_float32():
    logits, labels, safe = BCE["logits"], BCE["logits_yhat"], BCE["logits_f32_safe"]
    values = by_row(logits, labels, IDENTITY)
    _, gradient = mapped_binary_cross_entropy(logits, labels, IDENTITY)
    np.testing.assert_allclose(values[safe], BCE["logits_row_loss"][safe], rtol=0, atol=1e-5)
    np.testing.assert_allclose(gradient[safe], BCE["logits_grad"][safe], rtol=0, atol=1e-6)
    # Where float32 fails PyTorch, it does not fail here: the gradient is that of double precision.
    np.testing.assert_allclose(values, exact_row_losses(logits, labels), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gradient, BCE["logits_grad_f64"], rtol=0, atol=1e-6)


def test_binary_cross_entropy_is_the_references_in_float64():
    labels = BCE["logits_yhat"]
    with jax.enable_x64(True):
        logits = BCE["logits"].astype(np.float64)
        values = by_row(logits, labels, IDENTITY)
        _, gradient = mapped_binary_cross_entropy(logits, labels, IDENTITY)
    assert values.dtype == gradient.dtype == np.float64
    np.testing.assert_allclose(values, exact_row_losses(logits, labels), rtol=1e-13, atol=1e-13)
    # PyTorch takes 1 - q of a rounded q, in double precision too.
    exact = (scipy.special.softmax(logits, axis=1).max(axis=1) < 1 - 1e-5) | (BCE["logits_row_loss_f64"] < 1e-5)
    assert exact.sum() >= 16
    np.testing.assert_allclose(values[exact], BCE["logits_row_loss_f64"][exact], rtol=0, atol=1e-12)
    np.testing.assert_allclose(gradient[exact], BCE["logits_grad_f64"][exact], rtol=0, atol=1e-12)


def test_probabilities_of_exactly_0_and_1():
    q, labels = BCE["q"], BCE["yhat"]
    logits = np.where(q > 0, np.log(np.maximum(q, 1e-45)), -1e4).astype(np.float32)
    # Left out: a wrong class that only rounds to 1, which PyTorch takes for certain.
    rounded = (q.max(axis=1) == 1) & (q.argmax(axis=1) != labels) & ((q > 0).sum(axis=1) > 1)
    assert rounded.sum() == 1
    expected = BCE["elementwise"].mean(axis=1)
    np.testing.assert_allclose(by_row(logits, labels, IDENTITY)[~rounded], expected[~rounded], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", [mapped_cross_entropy, mapped_binary_cross_entropy])
@pytest.mark.parametrize("scale", [0.0, 1e3, 1e30])
def test_extreme_logits_are_finite(loss, scale):
    logits, labels = scale * unit_features(6, 5), np.array([0, 1, 2, 3, 4, 4])
    chex.assert_tree_all_finite(loss(logits, labels, np.array([4, 3, 0, 1, 2])))


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_mapped_losses_are_pytorchs(num_classes):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(num_classes)
    logits = 4 * rng.standard_normal((7, num_classes))
    labels, permutation = rng.integers(0, num_classes, 7), rng.permutation(num_classes)

    theirs = torch.from_numpy(logits).requires_grad_()
    p = theirs.softmax(dim=1)
    q = torch.zeros_like(p)
    q[:, torch.from_numpy(permutation)] = p
    target = torch.from_numpy(labels)
    one_hot = torch.nn.functional.one_hot(target, num_classes).double()
    for loss, expected in (
        (mapped_cross_entropy, torch.nn.functional.nll_loss(q.log(), target)),
        (mapped_binary_cross_entropy, torch.nn.functional.binary_cross_entropy(q, one_hot)),
    ):
        (expected_gradient,) = torch.autograd.grad(expected, theirs, retain_graph=True)
        with jax.enable_x64(True):
            value, gradient = loss(logits, labels, permutation)
        np.testing.assert_allclose(value, expected.item(), rtol=1e-12)
        np.testing.assert_allclose(gradient, expected_gradient.numpy(), rtol=1e-9, atol=1e-14)
        chex.assert_trees_all_close(
            loss(logits.astype(np.float32), labels, permutation),
            (value.astype(np.float32), gradient.astype(np.float32)),
            rtol=1e-5,
            atol=1e-7,
        )


def test_bfloat16_is_only_the_inputs():
    logits, labels = jnp.asarray(3 * unit_features(5, 4), jnp.bfloat16), np.array([0, 1, 3, 2, 0])
    for loss in (losses.mapped_cross_entropy, losses.mapped_binary_cross_entropy):
        got = loss(logits, labels, np.array([1, 0, 3, 2]))
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, loss(logits.astype(jnp.float32), labels, np.array([1, 0, 3, 2])), rtol=1e-6)
    assert losses.supervised_contrastive(logits[:, None], labels, 0.1).dtype == jnp.float32


@pytest.mark.parametrize(
    ("loss", "args"),
    [
        (losses.mapped_cross_entropy, ((4, 3), (4,), (2,))),
        (losses.mapped_cross_entropy, ((4, 3), (3,), (3,))),
        (losses.mapped_binary_cross_entropy, ((4, 3), (4, 3), (3,))),
        (lambda f, y: losses.supervised_contrastive(f, y, 0.1), ((4, 3), (4,))),
        (lambda f, y: losses.supervised_contrastive(f, y, 0.1), ((4, 2, 3), (8,))),
        (losses.l2_normalize, ((2, 3, 4),)),
    ],
)
def test_other_shapes_are_refused(loss, args):
    first, *rest = args
    with pytest.raises(AssertionError):
        loss(jnp.ones(first), *(jnp.zeros(shape, jnp.int32) for shape in rest))


def test_l2_normalize_is_pytorchs():
    """Also of a row of zeros, one too short to be scaled to unit length, and a long one."""
    torch = pytest.importorskip("torch")
    rows, weights = unit_features(4, 6), unit_features(4, 6, seed=1)
    rows *= np.array([[1.0], [0.0], [1e-14], [1e6]], np.float32)
    theirs = torch.from_numpy(rows).requires_grad_()
    expected = torch.nn.functional.normalize(theirs, dim=1)
    (expected * torch.from_numpy(weights)).sum().backward()
    got, gradient = losses.l2_normalize(rows), jax.grad(lambda x: (losses.l2_normalize(x) * weights).sum())(rows)
    np.testing.assert_allclose(got, expected.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-5, atol=1e-12)
    with jax.enable_x64(True):
        wide = losses.l2_normalize(rows.astype(np.float64))
        assert wide.dtype == np.float64
        np.testing.assert_allclose(
            np.asarray(wide)[[0, 3]], rows[[0, 3]].astype(np.float64) / [[1.0], [1e6]], rtol=1e-6
        )
