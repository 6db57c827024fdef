"""ShrinkPad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax import asking, pipeline
from refine_jax.datasets.images import Split
from refine_jax.defenses import chance, shrinkpad
from refine_jax.defenses.transformation import apply_operators
from refine_jax.errors import SettingError, WorkdirError
from tests.goldens import rules
from tests.small_run import config, tiny_fixture  # noqa: F401

IMAGES = np.random.default_rng(0).integers(0, 256, (200, 12, 10, 3), dtype=np.uint8)


def brightness(images):
    """A classifier, of three classes."""
    return images.mean(axis=(1, 2))


def defend(pad, seed=0, classifier=jax.tree_util.Partial(brightness)):  # noqa: B008
    clean = Split.unlabeled(IMAGES)
    return shrinkpad.fit(classifier, clean, {"pad": pad}, seed, 3).defended


@jax.jit
def show(defended, images):
    return defended.transform(images)


def transformed(defended, images):
    """What the classifier is shown, in batches of one size."""
    batches = images.astype(np.float32).reshape(-1, *IMAGES.shape) / 255
    return np.concatenate([show(defended, batch) for batch in batches])


def offsets(shown):
    """Top and left of what is not black.  [N, 2]"""
    lit = shown.max(axis=-1) > 0
    return np.stack([lit.any(axis=2).argmax(axis=1), lit.any(axis=1).argmax(axis=1)], axis=1)


def test_it_shrinks_and_places_as_the_reference_does():
    golden = rules.load("defenses/shrinkpad.npz")
    matrix = shrinkpad.shrinking(32, int(golden["pad"]))
    shrunk = apply_operators(jnp.asarray(golden["images"], jnp.float32) / 255, matrix, matrix)
    for (left, top), expected in zip(golden["offsets_left_top"], golden["out"], strict=True):
        place = jax.jit(shrinkpad.place)(shrunk, np.tile([top, left], (len(shrunk), 1)))
        np.testing.assert_allclose(place, expected, atol=1e-5)


def test_an_image_is_answered_alike_in_any_batch_and_after_any_call():
    defended = defend(4)
    everything = transformed(defended, IMAGES)
    np.testing.assert_array_equal(transformed(defended, IMAGES[::-1]), everything[::-1])
    among_others = np.concatenate([IMAGES[50:60], 255 - IMAGES[10:]])
    np.testing.assert_array_equal(transformed(defended, among_others)[:10], everything[50:60])
    np.testing.assert_array_equal(transformed(defend(4), IMAGES), everything)


def test_all_places_occur_equally_often_and_another_seed_has_others():
    images = np.random.default_rng(1).integers(50, 256, (2000, 12, 10, 3), dtype=np.uint8)
    found = offsets(transformed(defend(4), images))
    counts = np.bincount(found @ [5, 1], minlength=25)
    # Chi-squared of 24 degrees of freedom: above 51.2 in one of a thousand draws.
    assert ((counts - 80) ** 2 / 80).sum() < 51.2
    other = offsets(transformed(defend(4, seed=1), images))
    assert (other == found).all(axis=1).mean() < 0.1


def test_a_white_image_is_smaller_and_as_white():
    levels = 255 - np.arange(len(IMAGES))
    white = np.broadcast_to(levels[:, None, None, None], IMAGES.shape)
    for image, level in zip(transformed(defend(3), white), levels, strict=True):
        lit = image > 0
        assert lit.sum() == 9 * 7 * 3
        np.testing.assert_allclose(image[lit], level / 255, rtol=1e-6)


def test_one_program_serves_every_strength():
    count = 0

    def counted(images):
        nonlocal count
        count += 1  # while it is traced
        return brightness(images)

    classifier = jax.tree_util.Partial(counted)
    for pad in (1, 2, 5):
        asking.compiled(defend(pad, classifier=classifier))(IMAGES[:4].astype(np.float32) / 255)
    assert count == 1


@pytest.mark.parametrize("pad", [0, -1, 10])
def test_impossible_pads_are_refused(pad):
    with pytest.raises(SettingError, match=rf"defense\.shrinkpad\.pad = {pad}: allowed: 1 to 9 for images of 12 x 10"):
        shrinkpad.check("defense.shrinkpad", {"pad": pad}, 5, (12, 10))


def test_a_run_keeps_the_key_and_refuses_another(tmp_path, tiny, monkeypatch):
    alone = config(defense__names=("shrinkpad",))
    alone.defense.shrinkpad.pad = 2
    results = pipeline.run(alone, str(tmp_path))
    figures = results["defenses"]["shrinkpad"]
    assert figures["needs"] == {"gradients": False, "labels": False, "clean_images": False}
    assert (figures["parameters"], figures["train_seconds"], figures["mapped_asr"]) == (0, 0, None)
    assert figures["counts"]["ba"][1] == len(tiny.test)
    assert pipeline.run(alone, str(tmp_path)) == results

    kept = chance.read_kept(tmp_path / "defense" / "shrinkpad" / "checkpoints")
    monkeypatch.setattr(chance, "read_kept", lambda checkpoints: kept ^ 1)
    with pytest.raises(WorkdirError, match=r"the weights in .* are not those that were trained"):
        pipeline.run(alone, str(tmp_path))
