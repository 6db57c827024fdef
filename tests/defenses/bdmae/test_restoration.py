"""The whole search, held to the released program's, and what is restored."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax.defenses.bdmae import restoration
from refine_jax.defenses.bdmae.restoration import ImageDraws
from tests.defenses.bdmae import small
from tests.goldens import rules

QUICK = {"xla_backend_optimization_level": 0}


def quarters(images):
    """A classifier with a backdoor: which quarter is bright; the last class where the lower right corner is white."""
    means = [images[:, a : a + 16, b : b + 16].mean(axis=(1, 2, 3)) for a in (0, 16) for b in (0, 16)]
    return jnp.stack([*means, 20 * (images[:, 28:31, 28:31].mean(axis=(1, 2, 3)) - 0.8)], axis=1)


class Replayed:
    """The draws of an image; of which image, stands in `drawn`."""

    def __init__(self, masks, local):
        self._masks, self._local = masks, local

    def masks(self, search, patches):
        return self._masks

    def local(self, kind, refinement, number, patches):
        return self._local[kind, refinement, number][None]


def drawn(image, most=90):
    """What the released program was given in place of chance, as `Replayed` takes it."""
    draw = lambda *where: np.random.default_rng([image, *where]).random(196, np.float32).astype(float)  # noqa: E731
    masks = np.reshape([draw(0, 0, i) for i in range(25)], (1, 5, 5, 196))
    return masks, np.array([[[draw(1 + k, n, i) for i in range(most)] for n in range(10)] for k in range(2)])


def test_scores_and_images_are_those_of_the_released_program():
    """Its `forward_mae` on one image at a time, with `small.Smooth` for autoencoder and `quarters` for classifier."""
    golden = rules.load("defenses/bdmae.npz")
    with jax.enable_x64(True):
        search = small.search()

        @functools.partial(jax.jit, compiler_options=QUICK)
        def both(image, masks, local):
            restorer = small.restorer(small.Smooth(16), (224, 224))
            classify = lambda images: quarters(images).argmax(axis=-1)  # noqa: E731
            given = (image, classify(image), Replayed(masks, local), search)
            scores = restoration.suspicion(restorer, classify, *given)
            levels = restoration.thresholds(scores, search)
            return scores, levels, restoration.restore_suspicious(restorer, image, scores, search)

        for number, image in enumerate(golden["images"]):
            image = image[None] / 255.0
            scores, levels, shown = both(image, *drawn(number))
            expected = (golden["by_image"][number] + golden["by_label"][number]) / 2
            np.testing.assert_allclose(scores[0], expected, atol=1e-6)
            np.testing.assert_allclose(levels[0], golden["thresholds"][number], atol=1e-9)
            np.testing.assert_allclose(shown[0], golden["shown"][number], atol=1e-6)
            answers = [int(quarters(x).argmax()) for x in (image, np.asarray(shown))]
            assert answers == ([4, number] if number % 2 == 0 else [number, number])


def test_thresholds_rise_until_most_of_the_image_stays():
    search = small.search(thresholds=(0.6, 0.4), restored_share=0.5)
    scores = jnp.array([[0.9, 0.1, 0.0, 0.0], [0.9, 0.405, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    found = jax.jit(restoration.thresholds, static_argnums=1)(scores, search)
    # Of the second image half is above 0.4, and no longer above 1 - 0.6 * 0.99; of the third it always is.
    expected = [[0.6, 0.4], [1 - 0.4 * 0.99, 1 - 0.6 * 0.99], [1 - 0.4 * 0.99**200, 1 - 0.6 * 0.99**200]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_is_suspicious_is_the_mean_of_its_restorations_and_all_else_as_it_was():
    images = np.random.default_rng(0).uniform(0.4, 1, (1, 4, 6, 3)).astype(np.float32)
    restorer = small.restorer(small.Smooth(2), (4, 6))
    scores = jnp.array([[0.0, 0.7, 0.3, 0.0, 0.1, 0.5]])  # patch 1 by both thresholds, patch 5 by the lower
    search = small.search(thresholds=(0.6, 0.4), restored_share=1.0)
    restored = jax.jit(lambda scores: restoration.restore_suspicious(restorer, images, scores, search))
    found = np.asarray(restored(scores))[0]
    restore = jax.jit(restorer.of(images))
    both = (np.array([[0, 1, 0, 0, 0, last]], bool) for last in (0, 1))
    first, second = (np.asarray(restore(hidden))[0] for hidden in both)
    assert np.abs(first - second)[:2, 2:4].max() > 1e-3
    np.testing.assert_allclose(found[:2, 2:4], (first + second)[:2, 2:4] / 2, atol=1e-6)
    np.testing.assert_allclose(found[2:, 4:], second[2:, 4:], atol=1e-6)
    touched = np.zeros((4, 6), bool)
    touched[:2, 2:4] = touched[2:, 4:] = True
    np.testing.assert_array_equal(found[~touched], images[0][~touched])


def test_an_image_is_restored_alike_in_any_batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 8, 8, 3)).astype(np.float32) / 255
    restorer = small.restorer(small.Smooth(2), (8, 8))
    search = small.search(outer_repeats=2, inner_repeats=2, refinements=2)
    classify = lambda images: images[:, :4].mean(axis=(1, 2)) - images[:, 4:].mean(axis=(1, 2))  # noqa: E731

    @functools.partial(jax.jit, compiler_options=QUICK)
    def show(images):
        return restoration.purify(restorer, classify, images, ImageDraws(jax.random.key(3), images), search)

    found = np.asarray(show(images))
    assert (found != images).any()
    np.testing.assert_array_equal(show(images[::-1]), found[::-1])
    others = np.concatenate([images[:2], 1 - images[:4]])
    np.testing.assert_array_equal(show(others)[:2], found[:2])
