"""What holds of every registered network."""

import functools
import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from refine_jax import networks
from refine_jax.errors import SettingError
from refine_jax.networks import registry
from tests.goldens import rules

# Trainable parameters by network and number of classes: of the published PyTorch models, which have 10 or 1000.
PARAMETERS = {
    "resnet18": (10, 11_173_962),
    "resnet34": (10, 21_282_122),
    "resnet50": (10, 23_520_842),
    "imagenet_resnet18": (1000, 11_689_512),
    "imagenet_resnet34": (1000, 21_797_672),
    "imagenet_resnet50": (1000, 25_557_032),
    "preact_resnet18": (10, 11_171_146),
    "vgg16": (10, 14_719_818),
    "densenet121": (1000, 7_978_856),
    "vit": (10, 9_622_512),
}
GOLDEN_FILES = {
    "resnet18": "resnet18_cifar",
    "resnet50": "resnet50_cifar",
    "imagenet_resnet18": "torchvision_resnet18",
    "imagenet_resnet50": "torchvision_resnet50",
    "preact_resnet18": "preact_resnet18",
    "vgg16": "vgg16_cifar",
    "densenet121": "torchvision_densenet121",
    "vit": "vit_cifar",
}


@functools.cache
def variables(name, num_classes, **options):
    module = networks.build(name, num_classes, **options)
    return jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))


def parameters(name, num_classes, **options):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(variables(name, num_classes, **options)["params"]))


def test_the_table_has_every_network():
    assert tuple(PARAMETERS) == networks.names()


@pytest.mark.parametrize("name", networks.names())
def test_parameter_count(name):
    num_classes, count = PARAMETERS[name]
    assert parameters(name, num_classes) == count


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_parameter_count_is_the_goldens(name):
    golden = rules.load(f"models/{GOLDEN_FILES[name]}.npz")
    entries = json.loads(str(golden["state_dict_json"]))
    count = sum(math.prod(shape) for key, shape in entries if "running" not in key and "num_batches" not in key)
    assert parameters(name, golden["logits"].shape[1]) == count


def test_unet_parameter_count():
    entries = json.loads(str(rules.load("unet/unetlittle64.npz")["state_dict_json"]))
    count = sum(math.prod(shape) for key, shape in entries if "running" not in key and "num_batches" not in key)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(networks.unet.UNet(width=64, depth=4).init, jax.random.key(0), images)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes["params"])) == count == 17_267_523


@pytest.mark.parametrize("name", networks.names())
def test_contract(name):
    """Shapes and types of the whole and its halves, in training and bfloat16 too; nothing is computed."""
    module = networks.build(name, 7, dtype="bfloat16")
    state = variables(name, 7)
    (any_number,) = export.symbolic_shape("N")  # as a program for images in any number has it

    def apply(x, train=False, method="__call__"):
        def run(state, x):
            rngs = {"dropout": jax.random.key(0)}
            return module.apply(state, x, train=train, method=method, mutable=["batch_stats"], rngs=rngs)

        return jax.eval_shape(run, state, x)

    for train, count in ((False, any_number), (True, 2)):
        images = jax.ShapeDtypeStruct((count, 32, 32, 3), jnp.float32)
        logits, updates = apply(images, train)
        features, _ = apply(images, train, "features")
        assert features.dtype == jnp.bfloat16
        for out in (logits, apply(features, train, "head")[0]):
            assert (out.shape, out.dtype) == ((count, 7), jnp.float32)
        # Statistics keep shape and type, so that a training step can be compiled once.
        if train:
            assert updates.get("batch_stats", {}) == state.get("batch_stats", {})
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", [name for name in networks.names() if "resnet" in name])
def test_resnets_have_a_width_and_take_small_images(name):
    module = networks.build(name, 3, width=8)
    images = jax.ShapeDtypeStruct((2, 16, 20, 3), jnp.float32)
    state = jax.eval_shape(module.init, jax.random.key(0), images)
    assert state["params"]["conv1"]["kernel"].shape[-1] == 8
    assert jax.eval_shape(module.apply, state, images).shape == (2, 3)


def test_features_and_head_make_the_whole():
    module = networks.build("resnet18", 3, width=2)
    images = np.random.default_rng(0).random((2, 8, 8, 3), dtype=np.float32)
    state = rules.variables(module, images.shape)

    @jax.jit
    def both(state, images):
        out, _ = module.apply(state, images, train=True, mutable=["batch_stats"])
        features, _ = module.apply(state, images, train=True, method="features", mutable=["batch_stats"])
        return out, module.apply(state, features, train=True, method="head")

    np.testing.assert_allclose(*both(state, images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["vgg16", "densenet121"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (31, 32)])
def test_small_images_are_refused(name, height, width):
    module = networks.build(name, 10)
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    with pytest.raises(SettingError, match=f"{height} x {width}.*{name}.*32 x 32"):
        jax.eval_shape(module.apply, variables(name, 10), images)


def test_unknown_network():
    with pytest.raises(SettingError, match=r"vgg16.*did you mean 'resnet18'"):
        networks.build("resnet8", 10)


def test_unknown_option():
    with pytest.raises(SettingError, match=r"resnet18\.widht = 32.*width, dtype, axis_name.*did you mean 'width'"):
        networks.build("resnet18", 10, widht=32)
    with pytest.raises(SettingError, match=r"vgg16\.width"):
        networks.build("vgg16", 10, width=32)


@pytest.mark.parametrize(
    ("name", "num_classes", "options", "field"),
    [
        ("resnet18", 0, {}, "num_classes"),
        ("resnet18", 10, {"width": 0}, "resnet18.width"),
        ("resnet18", 10, {"width": "64"}, "resnet18.width"),
        ("vit", 10, {"image_size": 30}, "vit.image_size"),
        ("vit", 10, {"patch_size": 5}, "vit.patch_size"),
        ("vit", 10, {"dropout": 1.0}, "vit.dropout"),
    ],
)
def test_impossible_options(name, num_classes, options, field):
    with pytest.raises(SettingError, match=field):
        networks.build(name, num_classes, **options)


@pytest.mark.parametrize(
    ("name", "path", "spread"),
    [
        # Kaiming's normal rule over outputs: sqrt(2 / (7 * 7 * 64)).
        ("imagenet_resnet18", ("conv1", "kernel"), 0.02525),
        # PyTorch's default: uniform within 1 / sqrt(3 * 3 * 3).
        ("resnet18", ("conv1", "kernel"), 0.11111),
        ("preact_resnet18", ("conv1", "kernel"), 0.11111),
        # Normal, sqrt(2 / (3 * 3 * 64)), and 0.01 in the head.
        ("vgg16", ("conv0", "kernel"), 0.05893),
        ("vgg16", ("linear", "kernel"), 0.01),
        # Kaiming's normal rule over inputs: sqrt(2 / (7 * 7 * 3)).
        ("densenet121", ("conv0", "kernel"), 0.11664),
        ("vit", ("pos_embedding",), 1.0),
    ],
)
def test_initialization_is_the_references(name, path, spread):
    module = networks.build(name, 10)

    def one(key):
        leaf = module.init(key, jnp.zeros((1, 32, 32, 3)))["params"]
        for part in path:
            leaf = leaf[part]
        return leaf

    # Only the wanted parameter is computed: the compiler drops the rest.
    assert np.std(jax.jit(one)(jax.random.key(0))) == pytest.approx(spread, rel=0.05)


SMALL = {
    "resnet18": {"width": 2, "stages": (1, 1)},
    "densenet121": {"growth": 2, "blocks": (1, 1)},
    "vit": {"dim": 8, "depth": 1, "heads": 1, "dim_head": 4, "mlp_dim": 8},
    "unet": {"width": 2, "depth": 1},
}


@pytest.mark.parametrize("name", SMALL)
def test_a_rematerialized_network_has_the_same_variables_values_and_gradients(name):
    make = networks.unet.UNet if name == "unet" else functools.partial(registry.NETWORKS[name], num_classes=3)
    plain, rematerialized = (make(**SMALL[name], remat=remat) for remat in (False, True))
    images = np.random.default_rng(0).random((2, 32, 32, 3), dtype=np.float32)
    state = rules.variables(plain, images.shape)

    def train_loss(module, params):
        rngs, given = {"dropout": jax.random.key(0)}, {**state, "params": params}
        out, changed = module.apply(given, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), (out, changed)

    def kept(module):
        """Bytes that are kept of the way forward for the gradient."""
        loss = lambda params: train_loss(module, params)[0]  # noqa: E731
        backward = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], state["params"])
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))

    assert kept(rematerialized) < 0.9 * kept(plain)
    quickly = {"xla_backend_optimization_level": 0}
    expected, got = (
        jax.jit(jax.grad(functools.partial(train_loss, module), has_aux=True), compiler_options=quickly)(
            state["params"]
        )
        for module in (plain, rematerialized)
    )
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-4)
