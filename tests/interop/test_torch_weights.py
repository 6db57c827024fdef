"""State dicts to variables and back. That the values land in the right places, the golden outputs show."""

from collections import OrderedDict

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax import networks
from refine_jax.errors import DataError, SettingError
from refine_jax.interop import torch_weights
from tests.goldens import rules
from tests.networks.test_registry import GOLDEN_FILES


def golden_state_dict(name):
    """The golden entries of a network, each filled with numbers of its own."""
    folder = "unet/unetlittle8" if name == "unet" else f"models/{GOLDEN_FILES[name]}"
    state_dict, start = OrderedDict(), 0
    for key, shape in rules.shapes(rules.load(f"{folder}.npz")["state_dict_json"]):
        size = int(np.prod(shape))
        if key.endswith("num_batches_tracked"):
            state_dict[key] = np.zeros(shape, np.int64)
        else:
            state_dict[key] = (start + np.arange(size, dtype=np.float32)).reshape(shape)
            start += 1
    return state_dict


def unet_state_dict():
    module = networks.unet.UNet(width=2, depth=2)
    return torch_weights.to_torch("unet", rules.variables(module, (1, 4, 4, 3)))


def assert_same(got, expected):
    assert set(got) == set(expected)
    for key, value in expected.items():
        assert (got[key].shape, got[key].dtype) == (value.shape, value.dtype), key
        np.testing.assert_array_equal(got[key], value, err_msg=key)


@pytest.mark.parametrize("name", [*GOLDEN_FILES, "unet"])
def test_round_trip(name):
    state_dict = golden_state_dict(name)
    assert_same(torch_weights.to_torch(name, torch_weights.convert(name, state_dict)), state_dict)


def test_every_network_has_names():
    assert set(torch_weights.FAMILIES) == {*networks.names(), "unet", "mae"}
    # The one without a golden file has the layout of its neighbours, with more blocks.
    module = networks.build("resnet34", 3, width=2)
    variables = rules.variables(module, (1, 8, 8, 3))
    state_dict = torch_weights.to_torch("resnet34", variables)
    assert state_dict["layer3.5.conv2.weight"].shape == (8, 8, 3, 3)
    assert state_dict["layer2.0.shortcut.1.running_var"].shape == (4,)
    chex.assert_trees_all_equal(torch_weights.convert("resnet34", state_dict), variables)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"num_classes": 10, "width": 64}),
        ("imagenet_resnet50", {"num_classes": 50, "width": 64}),
        ("vgg16", {"num_classes": 10}),
        ("densenet121", {"num_classes": 10}),
        (
            "vit",
            {
                "num_classes": 10,
                "image_size": 32,
                "patch_size": 4,
                "dim": 512,
                "depth": 6,
                "heads": 8,
                "mlp_dim": 512,
            },
        ),
        ("unet", {"width": 8, "depth": 4}),
    ],
)
def test_options_are_inferred(name, options):
    assert torch_weights.infer_options(name, golden_state_dict(name)) == options


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("unet", {"width": 6, "depth": 3}, 8),
        ("resnet50", {"num_classes": 3, "width": 4}, 8),
        ("preact_resnet18", {"num_classes": 2, "width": 4}, 8),
        (
            "vit",
            {"num_classes": 2, "image_size": 12, "patch_size": 3, "dim": 8, "depth": 2, "heads": 3, "mlp_dim": 5},
            12,
        ),
    ],
)
def test_other_sizes(name, options, side):
    module = networks.unet.UNet(**options) if name == "unet" else networks.build(name, **options)
    variables = rules.variables(module, (1, side, side, 3))
    state_dict = torch_weights.to_torch(name, variables)
    assert torch_weights.infer_options(name, state_dict) == options
    chex.assert_trees_all_equal(torch_weights.convert(name, state_dict), variables)


@pytest.mark.parametrize("prefix", ["module.", "module.module.", "_orig_mod.module."])
@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"epoch": 3, "state_dict": {"model": s}}, lambda s: {"net": s}]
)
def test_prefixes_and_wrappers(prefix, wrap):
    state_dict = unet_state_dict()
    wrapped = wrap({prefix + key: value for key, value in state_dict.items()})
    chex.assert_trees_all_equal(torch_weights.convert("unet", wrapped), torch_weights.convert("unet", state_dict))


def small_resnet18():
    module = networks.build("resnet18", 3, width=2)
    return torch_weights.to_torch("resnet18", rules.variables(module, (1, 8, 8, 3)))


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "1.", "model.net.", "module.1.module."])
def test_a_prefix_that_all_names_have_is_left_out(prefix):
    state_dict = unet_state_dict()
    wrapped = {prefix + key: value for key, value in state_dict.items()}
    chex.assert_trees_all_equal(torch_weights.convert("unet", wrapped), torch_weights.convert("unet", state_dict))


def test_a_prefix_that_hides_another_network_is_named():
    wrapped = {f"encoder.{key}": value for key, value in unet_state_dict().items()}
    with pytest.raises(DataError, match=r"not the weights of resnet18; missing: .*; all names begin with 'encoder\.'"):
        torch_weights.convert("resnet18", wrapped)


def with_torchvisions_names(state_dict):
    pairs = (("linear.", "fc."), (".shortcut.", ".downsample."))
    renamed = {}
    for key, value in state_dict.items():
        for own, theirs in pairs:
            key = key.replace(own, theirs)
        renamed[key] = value
    assert "fc.weight" in renamed
    assert "layer2.0.downsample.0.weight" in renamed
    return renamed


def test_torchvisions_names_with_a_small_stem_are_the_small_resnet(caplog):
    state_dict = small_resnet18()
    renamed = with_torchvisions_names(state_dict)
    assert torch_weights.fitting(renamed) == ("resnet18",)
    assert not caplog.records
    variables = torch_weights.convert("resnet18", {f"net.{key}": value for key, value in renamed.items()})
    assert_same(torch_weights.to_torch("resnet18", variables), state_dict)
    assert torch_weights.infer_options("resnet18", renamed) == {"num_classes": 3, "width": 2}
    (record,) = caplog.records
    assert "resnet18: torchvision's names" in record.getMessage()
    assert "no max-pooling" in record.getMessage()
    torch_weights.convert("resnet18", state_dict)
    assert len(caplog.records) == 1
    both = renamed | {"layer2.0.shortcut.0.weight": renamed["layer2.0.downsample.0.weight"]}
    with pytest.raises(DataError, match=r"left over: .*downsample"):
        torch_weights.convert("resnet18", both)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_are_finite(value):
    state_dict = unet_state_dict()
    state_dict["outc.conv.bias"][1] = value
    with pytest.raises(DataError, match=r"weights of unet that are not finite numbers: outc.conv.bias$"):
        torch_weights.convert("unet", state_dict)


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.bool_, np.complex64, object])
def test_weights_are_floating_point_numbers(kind):
    state_dict = unet_state_dict()
    state_dict["outc.conv.weight"] = state_dict["outc.conv.weight"].astype(kind)
    with pytest.raises(DataError, match=r"; no floating-point numbers: outc.conv.weight (int|bool|complex|object)"):
        torch_weights.convert("unet", state_dict)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("unet", "down{}.maxpool_conv.1.double_conv.0.weight"),
        ("vit", "transformer.layers.{}.0.fn.norm.weight"),
        ("mae", "blocks.{}.norm1.weight"),
        ("mae", "decoder_blocks.{}.norm1.weight"),
    ],
)
def test_a_network_has_no_more_layers_than_entries_and_than_any(monkeypatch, name, entry):
    monkeypatch.setattr(torch_weights, "_entries", None)  # would take forever
    shows = {"unet": "outc.conv.weight", "vit": "mlp_head.1.bias", "mae": "cls_token"}[name]
    for number in (3, 10**8):
        state_dict = {shows: np.zeros((1, 2, 3), np.float32), entry.format(number): np.zeros(3, np.float32)}
        with pytest.raises(DataError, match=f"not the weights of {name}: 2 entries name {number}"[:-1]):
            torch_weights.convert(name, state_dict)
    assert name not in torch_weights.fitting(state_dict)
    many = state_dict | {entry.format(number): np.zeros(3, np.float32) for number in range(100)}
    del many[entry.format(10**8)]
    with pytest.raises(DataError, match=r"101 entries name \d+ layers, and (10|64) can be"):
        torch_weights.convert(name, many)


def test_a_number_too_long_for_one_is_no_layers():
    state_dict = unet_state_dict() | {f"down{'9' * 5000}.weight": np.zeros(3, np.float32)}
    with pytest.raises(DataError, match="left over: down9999"):
        torch_weights.convert("unet", state_dict)


def test_what_is_no_array_is_named():
    with pytest.raises(DataError, match="the entry 'history' of the state dict is a list, no array"):
        torch_weights.convert("resnet18", {"epoch": 3, "history": [[1], [1, 2]], "sd": {}})


def test_counters_may_be_missing():
    state_dict = {k: v for k, v in unet_state_dict().items() if not k.endswith("num_batches_tracked")}
    assert_same(torch_weights.to_torch("unet", torch_weights.convert("unet", state_dict)), unet_state_dict())


def test_old_names_of_densenet():
    state_dict = golden_state_dict("densenet121")
    old = {}
    for key, value in state_dict.items():
        for part in ("norm", "conv"):
            if "denselayer" in key:
                key = key.replace(f".{part}1.", f".{part}.1.").replace(f".{part}2.", f".{part}.2.")
        old[key] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    assert_same(torch_weights.to_torch("densenet121", torch_weights.convert("densenet121", old)), state_dict)


def test_every_fault_is_named_in_one_error():
    state_dict = unet_state_dict()
    del state_dict["inc.double_conv.0.bias"], state_dict["down2.maxpool_conv.1.double_conv.4.running_mean"]
    state_dict["fc.weight"] = np.zeros((2, 2), np.float32)
    state_dict["up1.conv.double_conv.3.weight"] = np.zeros((1, 2, 3, 3), np.float32)
    with pytest.raises(DataError) as error:
        torch_weights.convert("unet", state_dict)
    missing, extra, misshapen = str(error.value).split("; ")[1:]
    assert missing == "missing: down2.maxpool_conv.1.double_conv.4.running_mean, inc.double_conv.0.bias"
    assert extra == "left over: fc.weight"
    assert misshapen == "misshapen: up1.conv.double_conv.3.weight (1, 2, 3, 3), not (2, 4, 3, 3)"


@pytest.mark.parametrize("key", ["conv1.weight", "layer1.0.bn2.weight", "linear.weight", "linear.bias"])
def test_a_misshapen_entry_that_shows_a_size_is_named(key):
    state_dict = golden_state_dict("resnet18")
    state_dict[key] = np.zeros((7, *state_dict[key].shape[1:]), np.float32)
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        torch_weights.convert("resnet18", state_dict)


def test_another_networks_weights():
    with pytest.raises(DataError, match=r"not the weights of imagenet_resnet18.*missing: .*fc\.weight.*left over: "):
        torch_weights.convert("imagenet_resnet18", golden_state_dict("resnet18"))


@pytest.mark.parametrize("state_dict", [{}, {"state_dict": {}}, [], {"inc.double_conv.0.weight": None}])
def test_not_a_state_dict(state_dict):
    with pytest.raises(DataError, match="unet"):
        torch_weights.convert("unet", state_dict)


def test_unknown_network():
    with pytest.raises(SettingError, match="did you mean 'resnet18'"):
        torch_weights.convert("resnet-18", {})


def test_pytorch_tensors():
    """With gradients, in half precision, and changed afterwards."""
    torch = pytest.importorskip("torch")
    arrays = unet_state_dict()
    tensors = {
        key: torch.nn.Parameter(torch.from_numpy(value), value.dtype.kind == "f") for key, value in arrays.items()
    }
    variables = torch_weights.convert("unet", tensors)
    with torch.no_grad():
        tensors["outc.conv.bias"].zero_()
    assert_same(torch_weights.to_torch("unet", variables), unet_state_dict())
    half = {key: tensor.detach().bfloat16() for key, tensor in tensors.items()}
    for leaf in jax.tree.leaves(torch_weights.convert("unet", half)):
        assert leaf.dtype == jnp.float32


def test_double_precision_is_kept():
    state_dict = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in unet_state_dict().items()}
    with jax.enable_x64(True):
        variables = torch_weights.convert("unet", state_dict)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float64)}
        assert_same(torch_weights.to_torch("unet", variables), state_dict)
