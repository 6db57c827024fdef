"""The U-Net against the outputs of the reference program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax.errors import SettingError
from refine_jax.interop import torch_weights
from refine_jax.networks import unet
from tests.goldens import rules


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


def golden_case(name):
    golden = rules.load(f"unet/{name}.npz")
    state_dict = rules.golden_weights(golden)
    module = unet.UNet(**torch_weights.infer_options("unet", state_dict))
    return golden, module, torch_weights.convert("unet", state_dict), rules.golden_inputs(golden)


@pytest.mark.parametrize(
    ("name", "width", "depth"),
    [
        ("unetlittle8", 8, 4),
        ("unetlittle8_odd", 8, 4),
        ("unetlittle64", 64, 4),
        ("unetlittle32_large", 32, 4),
        ("unet", 64, 4),
        ("unet3layer", 64, 3),
        ("unet5layer", 64, 5),
    ],
)
def test_inference(name, width, depth):
    golden, module, variables, images = golden_case(name)
    assert (module.width, module.depth) == (width, depth)
    out = jax.jit(module.apply)(variables, images)
    np.testing.assert_allclose(np.asarray(out).transpose(0, 3, 1, 2), golden["out_eval"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["unetlittle8", "unetlittle8_odd"])
def test_training(name):
    """Batch statistics, and the running ones after one pass, the odd sizes padded as the reference pads them."""
    golden, module, variables, images = golden_case(name)
    out, updates = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))(variables, images)
    np.testing.assert_allclose(np.asarray(out).transpose(0, 3, 1, 2), golden["out_train"], rtol=0, atol=2e-4)
    after = torch_weights.to_torch("unet", {**variables, **updates})
    expected = {key.removeprefix("after/"): value for key, value in golden.items() if key.startswith("after/")}
    assert set(expected) == {key for key in after if "running" in key}
    for key, value in expected.items():
        np.testing.assert_allclose(after[key], value, rtol=0, atol=5e-6, err_msg=key)


@pytest.mark.parametrize(("height", "width", "depth"), [(16, 16, 4), (17, 31, 4), (8, 9, 3), (2, 3, 1), (33, 64, 5)])
def test_sizes(height, width, depth):
    module = unet.UNet(width=2, depth=depth)
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    assert jax.eval_shape(module.apply, variables, images).shape == images.shape


def test_one_pixel_at_the_bottom():
    """Two images are enough to train on, and every gradient is finite."""
    module = unet.UNet(width=2, depth=2)
    images = np.random.default_rng(0).random((2, 4, 5, 3), dtype=np.float32)
    variables = rules.variables(module, images.shape)

    @jax.jit
    def gradient(params):
        def loss(params):
            out, _ = module.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.sum(out**2)

        return jax.grad(loss)(params)

    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient(variables["params"])))


@pytest.mark.parametrize("shape", [(1, 16, 15, 3), (1, 15, 16, 3), (1, 8, 8, 3)])
def test_too_small_for_its_depth(shape):
    height, width = shape[1:3]
    with pytest.raises(SettingError, match=f"{height} x {width}.*depth 4.*16 x 16"):
        jax.eval_shape(unet.UNet(depth=4).init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize("options", [{"width": 0}, {"depth": 0}, {"width": 8.0}])
def test_impossible_options(options):
    field = next(iter(options))
    with pytest.raises(SettingError, match=f"unet.{field}"):
        unet.UNet(**options)


def test_bfloat16_leaves_variables_and_output_in_float32():
    module = unet.UNet(width=2, depth=2, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    out, updates = jax.eval_shape(
        lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]), variables, images
    )
    assert {x.dtype for x in jax.tree.leaves((variables, out, updates))} == {jnp.dtype(jnp.float32)}
    inner = jax.make_jaxpr(module.apply)(variables, images)
    convolutions = [e for e in jax.tree.leaves(inner.eqns) if e.primitive.name == "conv_general_dilated"]
    assert {e.outvars[0].aval.dtype for e in convolutions} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (4, 3), (7, 16)])
def test_upsampling(height, width):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, height, width, 3)).astype(np.float32)
    upsample = torch.nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    expected = upsample(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy().transpose(0, 2, 3, 1)
    # PyTorch computes the positions themselves in float32.
    np.testing.assert_allclose(unet.double_bilinear(jnp.asarray(x)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("side", [1, 2, 7, 16])
def test_upsampling_keeps_a_single_color_in_types_of_few_digits_too(side, dtype):
    matrix = unet.interpolation_matrix(side, dtype)
    assert matrix.dtype == dtype
    np.testing.assert_array_equal(matrix.astype(np.float64).sum(axis=1), 1)


def test_padding_puts_the_odd_pixel_after():
    x = jnp.ones((1, 2, 2, 1))
    np.testing.assert_array_equal(
        unet.pad_to(x, 3, 5)[0, :, :, 0], [[0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    )
