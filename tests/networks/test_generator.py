"""The generator of BTI-DBF against the same network, written out anew with PyTorch's layers."""

import jax
import numpy as np
import pytest

from refine_jax.errors import SettingError
from refine_jax.networks.generator import Generator


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


def random_params(module, side):
    """Weights nothing of which is as it would be by itself, numpy."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 3), np.float32))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0.1, 0.3, x.shape).astype(np.float32), shapes["params"])


def as_torch(params, images):
    """What PyTorch makes of images [N, H, W, 3] with these weights."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    weights = jax.tree.map(torch.from_numpy, params)

    def double_conv(x, own):
        for i in (1, 2):
            conv, norm = own[f"conv{i}"], own[f"norm{i}"]
            x = F.conv2d(x, conv["kernel"].permute(3, 2, 0, 1), conv["bias"], padding=1)
            x = F.leaky_relu(F.instance_norm(x, weight=norm["scale"], bias=norm["bias"]))
        return x

    depth = sum(name.startswith("down") for name in params)
    x, skips = torch.from_numpy(images.transpose(0, 3, 1, 2)), []
    for i in range(1, depth + 1):
        x = double_conv(x, weights[f"down{i}"])
        skips.append(x)
        x = F.max_pool2d(x, 2)
    x = double_conv(x, weights["bottom"])
    for i in range(1, depth + 1):
        double = weights[f"double{i}"]
        # A transposed convolution of PyTorch's is the gradient of a convolution: its kernel is turned around.
        kernel = double["kernel"].flip(0, 1).permute(2, 3, 0, 1)
        x = F.leaky_relu(F.conv_transpose2d(x, kernel, double["bias"], stride=2, padding=1, output_padding=1))
        x = double_conv(torch.cat([x, skips[-i]], dim=1), weights[f"up{i}"])
    x = F.conv2d(x, weights["outc"]["kernel"].permute(3, 2, 0, 1), weights["outc"]["bias"])
    return x.numpy().transpose(0, 2, 3, 1)


def test_it_is_the_reference_network():
    module = Generator(width=3, depth=2)
    params = random_params(module, 16)
    images = np.random.default_rng(1).normal(size=(2, 16, 24, 3)).astype(np.float32)
    got = jax.jit(module.apply)({"params": params}, images)
    np.testing.assert_allclose(got, as_torch(params, images), rtol=0, atol=2e-4)


def test_its_parameters_are_as_many_as_the_reference_networks():
    """Those of models/unet_model.py with width 32 and depth 4, but for convolutions there that are never called."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    def double_conv(before, features):
        pairs = [(before, features), (features, features)]
        return [part for a, b in pairs for part in (nn.Conv2d(a, b, 3), nn.InstanceNorm2d(b, affine=True))]

    parts, before = [nn.Conv2d(32, 3, 1)], 3
    for features in (32, 64, 128, 256, 512):
        parts += double_conv(before, features)
        before = features
    for features in (256, 128, 64, 32):
        parts += [nn.ConvTranspose2d(before, before, 3), *double_conv(before + features, features)]
        before = features
    expected = sum(weight.numel() for part in parts for weight in part.parameters())
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(Generator().init, jax.random.key(0), images)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == expected


@pytest.mark.parametrize(("height", "width", "depth"), [(16, 16, 3), (17, 31, 3), (4, 5, 1)])
def test_it_takes_sizes_that_cannot_be_halved_evenly(height, width, depth):
    module = Generator(width=2, depth=depth)
    images = jax.ShapeDtypeStruct((2, height, width, 3), np.float32)
    outputs, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
    assert (outputs.shape, outputs.dtype) == (images.shape, np.float32)


def test_images_that_halving_leaves_no_two_pixels_of_are_refused():
    images = jax.ShapeDtypeStruct((2, 15, 16, 3), np.float32)
    with pytest.raises(SettingError, match=r"15 x 16.*depth 3 needs at least 16 x 16"):
        jax.eval_shape(Generator(width=2, depth=3).init, jax.random.key(0), images)


def test_an_image_is_changed_whatever_is_beside_it():
    module = Generator(width=2, depth=1)
    params = random_params(module, 8)
    images = np.random.default_rng(2).normal(size=(3, 8, 8, 3)).astype(np.float32)
    apply = jax.jit(module.apply)
    alone = np.concatenate([apply({"params": params}, image[None]) for image in images])
    np.testing.assert_allclose(apply({"params": params}, images), alone, rtol=0, atol=1e-5)
