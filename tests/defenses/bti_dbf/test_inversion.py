"""Parts of the inversion: the networks' halves, which images are triggered, devices, the target, the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refine_jax import networks
from refine_jax.defenses.bti_dbf import inversion, purification, unlearning
from refine_jax.defenses.bti_dbf.phases import Phases, fresh_state, training_step
from refine_jax.training.parallel import AXIS, ONE_DEVICE
from tests.defenses.bti_dbf import small
from tests.defenses.bti_dbf.small import net_fixture  # noqa: F401


@pytest.mark.parametrize("name", ["net", "vit"])  # BatchNorm in both halves, none
def test_halves_in_training_keep_all_statistics(name):
    network = networks.build(name, 5, **({"image_size": 32} if name == "vit" else {}))
    images, key = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32), jax.random.key(0)
    variables = jax.eval_shape(network.init, key, images)
    stats = variables.get("batch_stats", {})
    x = images
    for half in ("features", "head"):
        given = {"params": variables["params"], "batch_stats": stats}
        x, stats = jax.eval_shape(lambda v, x, h=half: inversion.half_training(network, h, v, x, key), given, x)
        assert stats == variables.get("batch_stats", {})
    assert x.shape == (2, 5)


def made(module):
    """An inversion whose classifier and generator have weights drawn at random."""
    shape = (small.SIDE, small.SIDE, 3)
    classifier = small.classifier(small.drawn(small.Net(small.K), shape, 1))
    settings = small.settings(module, triggered_share=0.3, crop_padding=2, noise=0.5)
    phases = Phases("test", small.split(64, 0), settings, 0, None, ONE_DEVICE)
    found = inversion.Inversion(phases, classifier, small.K)
    generators = [small.drawn(found.generator, shape, seed)["params"] for seed in range(2)]
    return settings, phases, classifier, found, generators


def test_a_share_of_the_images_is_triggered():
    _, _, _, found, generators = made(unlearning)
    inputs = np.random.default_rng(0).normal(size=(10, 8, 8, 3)).astype(np.float32)
    whole = np.asarray(jax.jit(found.generate, compiler_options=small.QUICK)(generators[0], inputs))
    trigger = jax.jit(found.trigger_some, compiler_options=small.QUICK)
    counts = []
    for seed in range(2):
        got = np.asarray(trigger(generators[0], inputs, jax.random.key(seed)))
        changed = np.asarray((got != inputs).any(axis=(1, 2, 3)))
        np.testing.assert_allclose(got[changed], whole[changed], rtol=0, atol=1e-5)
        counts.append(changed)
    assert [changed.sum() for changed in counts] == [4, 4]  # 0.3 of 10, and one
    assert (counts[0] != counts[1]).any()


@pytest.mark.parametrize("module", [purification, unlearning])
def test_a_step_on_several_devices_is_that_of_one(module):
    """Devices by vmap, which has axes and collectives too."""
    settings, phases, classifier, found, generators = made(module)
    variables = classifier.variables
    if module is purification:
        params, stats, objective = generators[1], {}, module._objective(found, settings)
    else:
        params, stats, objective = variables["params"], variables["batch_stats"], module._objective(found, classifier)
    tx = optax.sgd(0.1)  # Adam's first step is as long for a gradient that is nothing but rounding
    state = fresh_state(params, stats, tx.init(params))
    data = {
        "images": jnp.asarray(phases.images),
        "labels": jnp.asarray(phases.labels),
        "classifier": classifier,
        "generator": generators[0],
        "key": jax.random.key(5),
    }
    indices = jnp.arange(12)

    def run(axis_name, batch):
        step = training_step(objective(axis_name), tx, settings["crop_padding"], axis_name)
        if axis_name is not None:
            step = jax.vmap(step, in_axes=(None, None, 0), axis_name=axis_name)
        return jax.jit(step, compiler_options=small.QUICK)(state, data, {"indices": batch})

    alone, metrics = run(None, indices)
    shared, shared_metrics = run(AXIS, indices.reshape(3, 4))
    for device in range(3):
        of_device = jax.tree.map(lambda x, d=device: x[d], (shared.params, shared.batch_stats, shared_metrics))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
            of_device,
            (alone.params, alone.batch_stats, metrics),
        )


def test_the_target_is_the_class_that_most_triggered_images_have():
    assert inversion.found(np.array([3, 1, 12, 4])) == {"target_class": 2, "target_share": 0.6}


def test_every_image_is_looked_at_once():
    """Also those of the last batch, which is filled up."""
    _, _, classifier, found, generators = made(unlearning)
    found.state = fresh_state(generators[0], {}, None)
    images = found._phases.images / np.float32(255)
    assert len(images) % found._phases.settings["batch_size"] == 0
    found._phases.settings["batch_size"] = 24

    @jax.jit
    def predict(params, images):
        inputs = inversion.noisy(classifier.preprocess(images), images, KEY, 0.5)
        return classifier.logits(found.generator.apply({"params": params}, inputs)).argmax(axis=-1)

    expected = np.bincount(np.asarray(predict(generators[0], images)), minlength=small.K)
    np.testing.assert_array_equal(found.answers(classifier), expected)


KEY = inversion.named_key(0, "bti_dbf/detection")


def test_noise_is_an_images_own_and_as_wide_as_asked_for():
    images = np.random.default_rng(0).random((40, 8, 8, 3), np.float32)
    inputs = np.zeros((40, 8, 8, 3), np.float32)
    noise = np.asarray(inversion.noisy(inputs, images, KEY, 0.03))
    assert noise.std() == pytest.approx(0.03, rel=0.05)
    assert abs(noise.mean()) < 0.002
    np.testing.assert_array_equal(inversion.noisy(inputs[:3], images[5:8], KEY, 0.03), noise[5:8])
