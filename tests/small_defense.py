"""A defended classifier that is compiled at once, and images for it."""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax.classifier import Classifier
from refine_jax.defenses import refine
from refine_jax.networks import registry
from refine_jax.networks.unet import UNet

K, SIDE = 4, 8


class Linear(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(self.num_classes)(images.reshape(images.shape[0], -1))


@contextlib.contextmanager
def registered():
    """Its classifier's network has a name as long as this lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.NETWORKS, "tiny", functools.partial(Linear))
        yield


def make(unet_input="unit", input_size=(12, 12), channels="BGR"):
    """A defended classifier nothing of which is as it would be by itself."""
    unet = UNet(width=2, depth=1)
    images = jnp.zeros((1, SIDE, SIDE, 3))
    keys = jax.random.split(jax.random.key(0), 3)
    variables = unet.init(keys[0], images)
    statistics = jax.tree.map(lambda x: x + jax.random.uniform(keys[1], x.shape), variables["batch_stats"])
    # What comes out of it lies around gray, so that clipping leaves something.
    params = {**variables["params"], "outc": {**variables["params"]["outc"], "bias": jnp.full(3, 0.5)}}
    variables = {"params": params, "batch_stats": statistics}
    weights = Linear(K).init(keys[2], jnp.zeros((1, *(input_size or (SIDE, SIDE)), 3)))
    permutation = jnp.array([2, 0, 3, 1], jnp.int32)
    wanted = refine.Objective.of({"unet_input": unet_input, "temperature": 0.2})

    def behind(bias):
        params = {"Dense_0": {**weights["params"]["Dense_0"], "bias": bias}}
        mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
        classifier = Classifier("tiny", {"params": params}, K, mean, std, channels=channels, input_size=input_size)
        return refine.Defended(classifier, variables, permutation, unet, wanted, (SIDE, SIDE))

    # No class is answered for all images: none is ahead of another over many.
    blind = behind(jnp.zeros(K))
    transformed = blind.transform(picture(50).astype(np.float32) / 255)
    return behind(-refine.transformed_logits(blind.classifier, transformed, wanted).mean(axis=0))


def picture(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def expected(defended, images):
    """What the defended classifier itself says of images, uint8."""
    return np.asarray(jax.jit(lambda d, x: d(x))(defended, images.astype(np.float32) / 255))
