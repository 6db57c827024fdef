"""Exports of functions of the user's own: their weights, by name, type and layout."""

import dataclasses
import pathlib
import runpy
import types

import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax import export, function_classifier
from refine_jax.errors import DataError, SettingError
from refine_jax.interop import torch_file
from tests.small_defense import SIDE, K, expected, make, picture, registered

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "evaluate_exported.py"


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with registered():
        yield


@pytest.fixture(scope="module")
def defended():
    return make()


def test_a_function_of_the_users_own_goes_into_the_programs(defended, tmp_path):
    def function(images):
        return images.mean(axis=(1, 2)) @ jnp.array([[1.0, 2, 3, 4], [4, 3, 2, 1], [0, 9, 0, 9]])

    behind = dataclasses.replace(defended, classifier=function_classifier.wrap(function, (SIDE, SIDE)))
    export.save(behind, tmp_path / "export")
    images = picture(3)
    np.testing.assert_allclose(export.load(tmp_path / "export")(images), expected(behind, images), atol=1e-6)
    with pytest.raises(DataError, match="was a function, whose code is in the programs alone: use load"):
        export.restore(tmp_path / "export")


def test_weights_whose_keys_hold_slashes_go_back_to_their_places(defended, tmp_path):
    # As Haiku names modules: sorted by whole names, 'net/sub/w' comes before 'net/w'.
    rng = np.random.default_rng(0)
    sizes = {"first": (3 * SIDE**2, K), "net": (K, K), "net/sub": (K, K)}
    variables = {name: {"w": rng.normal(size=size, scale=0.3).astype(np.float32)} for name, size in sizes.items()}

    def function(variables, images):
        hidden = images.reshape(images.shape[0], -1) @ variables["first"]["w"] @ variables["net"]["w"]
        return jnp.tanh(hidden) @ variables["net/sub"]["w"]

    behind = dataclasses.replace(
        defended, classifier=function_classifier.wrap(function, (SIDE, SIDE), variables=variables)
    )
    export.save(behind, tmp_path / "export")
    images = picture(3)
    np.testing.assert_allclose(export.load(tmp_path / "export")(images), expected(behind, images), atol=1e-6)
    weights = torch_file.load(tmp_path / "export" / "weights.safetensors")
    np.testing.assert_array_equal(weights["classifier/net/sub/w"], variables["net/sub"]["w"])


def test_a_function_gets_its_weights_in_the_types_that_it_had(defended, tmp_path):
    rng = np.random.default_rng(0)
    sizes = {"bfloat16": (3 * SIDE**2, K), "float16": (K, K)}
    variables = {dtype: jnp.asarray(rng.normal(size=size, scale=0.3), dtype) for dtype, size in sizes.items()}

    def function(variables, images):
        hidden = images.reshape(images.shape[0], -1)
        for dtype, weights in variables.items():
            assert weights.dtype.name == dtype  # many an operation of JAX raises where two types meet
            hidden = hidden.astype(dtype) @ weights
        return hidden

    behind = dataclasses.replace(
        defended, classifier=function_classifier.wrap(function, (SIDE, SIDE), variables=variables)
    )
    export.save(behind, tmp_path / "export")
    images = picture(4)
    got = export.load(tmp_path / "export")(images)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected(behind, images), atol=1e-3)  # its logits are float16
    weights = torch_file.load(tmp_path / "export" / "weights.safetensors")
    for dtype, wanted in variables.items():
        np.testing.assert_array_equal(weights[f"classifier/{dtype}"], np.asarray(wanted, np.float32), strict=True)


def test_weights_of_any_type_and_layout_are_read_without_this_project(defended, tmp_path):
    kinds = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "complex64")
    # Transposed, they do not lie in the memory as safetensors writes them.
    variables = {kind: np.random.default_rng(i).integers(0, 3, (K, 3)).astype(kind).T for i, kind in enumerate(kinds)}

    def function(variables, images):
        return images.mean(axis=(1, 2)) @ sum(jnp.real(each).astype(jnp.float32) for each in variables.values())

    behind = dataclasses.replace(
        defended, classifier=function_classifier.wrap(function, (SIDE, SIDE), variables=variables)
    )
    export.save(behind, tmp_path / "export")
    images, example = picture(3), runpy.run_path(str(EXAMPLE))
    predict, _ = example["load"](tmp_path / "export")
    np.testing.assert_allclose(predict(images), expected(behind, images), atol=1e-6)
    weights = example["read_safetensors"]((tmp_path / "export" / "weights.safetensors").read_bytes())
    for kind, wanted in variables.items():
        np.testing.assert_array_equal(weights[f"classifier/{kind}"], wanted, strict=True)


def test_two_weights_of_one_name_are_refused(defended, tmp_path):
    variables = {"a/b": {"c": np.ones(1)}, "a": {"b/c": np.ones(1)}}
    classifier = function_classifier.FunctionClassifier(lambda variables, images: images, variables, K, True)
    with pytest.raises(SettingError, match="variables = 'classifier/a/b/c': allowed: keys that give each weight"):
        export.save(dataclasses.replace(defended, classifier=classifier), tmp_path / "export")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ([np.ones(1)], "variables = 'of type list': allowed: nested dicts of arrays"),
        (np.ones(1), "variables = 'of type ndarray'"),
        (types.MappingProxyType({"w": np.ones(1)}), "variables = 'of type mappingproxy'"),
        ({"net": {"layers": [np.ones(1)]}}, r"variables\['net'\]\['layers'\] = 'of type list'"),
        ({"net": {"w": np.ones(1), "b": None}}, r"variables\['net'\]\['b'\] = 'of type NoneType'"),
        ({"net": {0: np.ones(1)}}, r"variables\['net'\] = 'with the key 0'"),
        ({"names": np.array(["a"])}, r"variables\['names'\] = 'of type <U1'"),
    ],
)
def test_variables_that_an_export_could_not_give_back_are_refused(variables, message):
    with pytest.raises(SettingError, match=message):
        function_classifier.wrap(lambda variables, images: None, (SIDE, SIDE), variables=variables)
