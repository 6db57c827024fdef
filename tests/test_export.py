"""Exports: what comes back, what is refused, and that nothing half-written is taken for whole."""

import json
import pathlib
import re
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax import artifacts, asking, batches, export
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
