"""Exports: what comes back, what is refused, and that nothing half-written is taken for whole."""

import dataclasses
import json
import pathlib
import re
import runpy
import shutil
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax import artifacts, asking, batches, export, function_classifier
from refine_jax.errors import DataError, SettingError, WorkdirError
from refine_jax.interop import torch_file, torch_weights
from tests.small_defense import SIDE, K, expected, make, picture, registered

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "evaluate_exported.py"


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with registered():
        yield


@pytest.fixture(scope="module")
def defended():
    return make()


@pytest.fixture(scope="module")
def folder(defended, tmp_path_factory):
    """An export, made once; tests that change it work on a copy."""
    path = tmp_path_factory.mktemp("exported") / "export"
    export.save(defended, path, class_names="abcd", record={"figures": {"ba": 0.5}})
    return path


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "export")


@pytest.fixture(scope="module")
def exported(folder):
    return export.load(folder)


def test_the_programs_give_the_probabilities_of_the_run(defended, exported):
    images = picture(257)
    wanted = expected(defended, images)
    for count in (257, 3, 1):
        for given in (images, images.astype(np.float32) / 255, images / 255, jnp.asarray(images)):
            got = exported(given[:count])
            assert (got.shape, got.dtype) == ((count, K), np.float32)
            np.testing.assert_allclose(got, wanted[:count], atol=1e-6)


def test_evaluation_and_programs_compute_in_full_float32(defended, folder):
    # What a GPU would make of products otherwise.
    images = jax.ShapeDtypeStruct((3, SIDE, SIDE, 3), jnp.float32)
    evaluated = jax.jit(asking.compiled(defended)).lower(images).as_text()
    saved = [jax.export.deserialize(bytearray(path.read_bytes())) for path in folder.glob("program_*.stablehlo")]
    for program in (evaluated, *(each.mlir_module() for each in saved)):
        precisions = re.findall(r"precision = \[([A-Z, ]+)\]|precision_config = \[([^]]+)\]", program)
        assert len(precisions) > 2
        assert all("DEFAULT" not in "".join(each) for each in precisions)


def test_no_images_and_more_than_one_batch_takes_are_all_answered(exported, monkeypatch):
    monkeypatch.setattr(batches, "_PIXELS", 4 * SIDE**2)
    images = picture(7)
    got = exported(images)
    np.testing.assert_allclose(got, np.concatenate([exported(image[None]) for image in images]), atol=1e-6)
    assert exported(images[:0]).shape == (0, K)


@pytest.mark.parametrize(("unet_input", "input_size"), [("normalized", None), ("unit", (12, 12))])
def test_what_is_restored_is_what_was_saved(tmp_path, unet_input, input_size):
    defended = make(unet_input, input_size)
    export.save(defended, tmp_path / "export")
    restored = export.restore(tmp_path / "export")
    chex.assert_trees_all_equal(restored, defended)
    assert jax.tree.structure(restored) == jax.tree.structure(defended)  # networks, preprocessing, settings
    images = picture(3)
    np.testing.assert_allclose(export.load(tmp_path / "export")(images), expected(defended, images), atol=1e-6)


def test_the_manifest_describes_it(defended, folder, exported):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert exported.manifest == manifest
    assert manifest["schema"] == 1
    assert manifest["images"] == {"height": SIDE, "width": SIDE, "channels": "RGB"}
    assert manifest["class_names"] == ["a", "b", "c", "d"]
    assert manifest["permutation"] == exported.permutation.tolist() == [2, 0, 3, 1]
    assert manifest["classifier"]["name"] == "tiny"
    assert manifest["classifier"]["mean"] == [0.4, 0.5, 0.6]
    assert manifest["unet"] == {"width": 2, "depth": 1}
    assert manifest["figures"] == {"ba": 0.5}
    assert manifest["environment"]["jax"] == jax.__version__
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {*manifest["files"]} == there - {"manifest.json"}
    assert list(folder.parent.iterdir()) == [folder]  # nothing is left beside it


def test_the_unets_weights_are_there_by_pytorchs_names(defended, folder):
    state_dict = torch_file.load(folder / "unet_torch.safetensors")
    assert state_dict["down1.maxpool_conv.1.double_conv.0.weight"].shape == (2, 2, 3, 3)
    chex.assert_trees_all_equal(torch_weights.convert("unet", state_dict), defended.unet_variables)


def test_programs_name_no_folder_of_the_machine_and_are_the_same_again(defended, folder, tmp_path):
    export.save(defended, tmp_path / "export")
    for name in export.PROGRAMS.values():
        program = (folder / name).read_bytes()
        assert b".py" not in program
        assert (tmp_path / "export" / name).read_bytes() == program


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (picture(1)[0], r"images = 'of shape \(8, 8, 3\)': allowed: \[N, 8, 8, 3\]"),
        (np.zeros((2, 9, 8, 3), np.uint8), r"of shape \(2, 9, 8, 3\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"of shape \(2, 3, 8, 8\)"),
        (picture(2).astype(np.int64), "images = 'of type int64': allowed: uint8, or floats from 0 to 1"),
        (picture(2) > 100, "of type bool"),
        (picture(2).astype(np.float32), r"floats from .* to 255.0': allowed: floats from 0 to 1, or uint8"),
        (picture(2) / 127.5 - 1, "floats from -1.0"),
        (np.full((1, 8, 8, 3), np.nan), "floats from nan to nan"),
    ],
)
def test_what_are_no_such_images_is_refused(exported, images, message):
    with pytest.raises(SettingError, match=message):
        exported(images)


def alter(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("change", [alter, shorten, lambda path: path.unlink()])
@pytest.mark.parametrize("name", ["program_uint8.stablehlo", "program_float32.stablehlo", "weights.safetensors"])
def test_an_altered_file_is_refused_by_name_and_no_program_is_read(copied, monkeypatch, name, change):
    change(copied / name)
    monkeypatch.setattr(export.jax_export, "deserialize", None)
    with pytest.raises(DataError, match=rf"{copied / name} (was altered|cannot be read)"):
        export.load(copied)


def test_altered_variables_are_refused_by_name(copied):
    alter(next((copied / "variables" / "d").iterdir()))
    with pytest.raises(DataError, match=r"variables/d/\w+ was altered"):
        export.restore(copied)
    (copied / "variables" / "more").touch()
    with pytest.raises(DataError, match="variables/more was added"):
        export.restore(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"schema": 2}, "has the schema 2, and this program reads 1"),
        (lambda m: [m], "has the schema None"),
        (lambda m: m | {"files": None}, "is damaged"),
        (lambda m: m | {"files": m["files"] | {"a": {"sha256": "0"}}}, "is damaged"),
        (lambda m: m | {"files": m["files"] | {"../a": m["files"]["weights.safetensors"]}}, "is damaged"),
        (lambda m: m | {"files": m["files"] | {"/a": m["files"]["weights.safetensors"]}}, "is damaged"),
        (lambda m: m | {"files": {}}, "names no file weights.safetensors"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(copied, change, message):
    path = copied / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=message):
        export.load(copied)


def test_no_export_is_said_so(copied, tmp_path):
    with pytest.raises(DataError, match=r"holds no export: .*manifest.json cannot be read \(No such file"):
        export.load(tmp_path)
    (copied / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest.json is damaged \(Expecting property name"):
        export.load(copied)


def test_a_restored_architecture_that_cannot_be_is_refused(copied):
    path = copied / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"unet": {"width": 2, "deep": 1}}))
    with pytest.raises(DataError, match=r"describes no defended classifier \(TypeError"):
        export.restore(copied)


def test_a_program_of_another_version_is_told_what_to_do(copied, monkeypatch):
    def deserialize(data):
        raise ValueError("unsupported calling convention")

    monkeypatch.setattr(export.jax_export, "deserialize", deserialize)
    with pytest.raises(DataError, match=rf"unsupported calling convention.*JAX {jax.__version__} wrote it: use"):
        export.load(copied)


def test_a_save_that_fails_leaves_the_earlier_export_as_it_was(defended, copied, monkeypatch):
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.safetensors.numpy, "save", full)
    with pytest.raises(OSError, match="No space left"):
        export.save(defended, copied)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before
    assert list(copied.parent.iterdir()) == [copied]


def test_an_earlier_export_is_replaced_and_nothing_else_is(tmp_path):
    files = {"files": {}, "schema": 1}
    directory = tmp_path / "export"
    for text in ("one", "two"):
        (tmp_path / ".export.partial").mkdir()  # of a process that died
        with artifacts.writing(directory, files) as folder:
            (folder / "file").write_text(text)
            if text == "two":
                assert artifacts.read_file(directory, artifacts.read_manifest(directory, 1), "file") == b"one"
        assert artifacts.read_file(directory, artifacts.read_manifest(directory, 1), "file") == text.encode()
        assert list(tmp_path.iterdir()) == [directory]
    (directory / "manifest.json").unlink()
    with (
        pytest.raises(WorkdirError, match=r"export is there and has no manifest.json"),
        artifacts.writing(directory, files),
    ):
        pass
    assert (directory / "file").read_text() == "two"
    (tmp_path / "a file").touch()
    with (
        pytest.raises(WorkdirError, match="cannot be written: Not a directory"),
        artifacts.writing(tmp_path / "a file" / "export", files),
    ):
        pass


def test_class_names_are_as_many_as_classes(defended, tmp_path):
    with pytest.raises(SettingError, match=r"class_names = \['a', 'b', 'c'\]: allowed: 4 names"):
        export.save(defended, tmp_path / "export", class_names="abc")


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
