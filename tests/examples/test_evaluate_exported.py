"""examples/evaluate_exported.py as a process that has JAX and NumPy alone."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from refine_jax import evaluation, export
from tests.small_defense import expected, make, picture, registered

ROOT = pathlib.Path(__file__).parents[2]
# Besides Python's own: JAX with what it is made of, what jax.export reads programs with, and Pillow for a folder.
ALLOWED = ("jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy", "flatbuffers", "PIL")
ALONE = f"""
import runpy, sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
class Allowed:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in {ALLOWED} or top in sys.stdlib_module_names or top.startswith("_sysconfigdata"):
            return PathFinder.find_spec(name, path, target)
sys.meta_path = [BuiltinImporter, FrozenImporter, Allowed()]
try:
    import refine_jax
    sys.exit("refine_jax can be imported")
except ModuleNotFoundError:
    sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def evaluate(*arguments):
    command = [sys.executable, "-I", "-c", ALONE, str(ROOT / "examples" / "evaluate_exported.py")]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with registered():
        yield


@pytest.fixture(scope="module")
def defended():
    return make()


@pytest.fixture(scope="module")
def folder(defended, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "export"
    export.save(defended, path, class_names=["a", "b", "c", "d"])
    return path


def test_its_probabilities_and_figures_are_those_of_the_run(defended, folder, tmp_path):
    images, triggered = picture(260), picture(257, seed=1)
    probabilities = expected(defended, images)
    rng = np.random.default_rng(0)
    labels, triggered_labels = rng.integers(0, 4, 260), rng.integers(0, 4, 257)
    target = int(np.bincount(probabilities.argmax(axis=1)).argmax())
    figures = evaluation.measure(
        lambda x: expected(defended, np.rint(np.asarray(x) * 255)),
        images,
        labels,
        triggered,
        target,
        np.asarray(defended.permutation),
        triggered_labels,
    )
    np.savez(
        tmp_path / "images.npz",
        images=images,
        labels=labels,
        triggered=triggered,
        triggered_labels=triggered_labels,
        target=target,
    )
    status, said, told = evaluate(folder, tmp_path / "images.npz", "--probabilities", tmp_path / "p.npy")
    assert status == 0, told
    printed = json.loads(said)
    assert printed == {name: figures[name] for name in printed}
    assert 0 < printed["asr"] < 1
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), probabilities, atol=1e-5)


def test_folders_of_pictures_are_labels(defended, folder, tmp_path):
    images, names = picture(5), ("a", "b", "b", "c", "d")
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / name / f"{i}.png")
    status, said, told = evaluate(folder, tmp_path)
    assert status == 0, told
    hits = expected(defended, images).argmax(axis=1) == ["abcd".index(name) for name in names]
    assert json.loads(said)["counts"]["ba"] == [hits.sum(), 5]
    assert json.loads(said)["asr"] is None


def test_an_altered_file_and_wrong_images_end_in_a_sentence(folder, tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((1, 9, 8, 3), np.uint8))
    status, said, told = evaluate(folder, tmp_path / "images.npy")
    assert (status, said) == (1, "")
    assert told == "error: images (1, 9, 8, 3) uint8: wanted are [N, *(8, 8, 3)], uint8 or in [0, 1]\n"
    images = {name: np.zeros((2, 8, 8, 3), np.uint8) for name in ("images", "triggered")}
    np.savez(tmp_path / "images.npz", labels=[0, 1], **images)
    for flags, value in (((), "None"), (("--target=-1",), "-1")):
        status, said, told = evaluate(folder, tmp_path / "images.npz", *flags)
        assert (status, said) == (1, "")
        assert re.fullmatch(rf"error: --target = {value}: allowed: 0 to \d+, as there are triggered images\n", told)
    program = folder / "program_uint8.stablehlo"
    program.write_bytes(program.read_bytes()[:-1] + b"0")
    status, said, told = evaluate(folder, tmp_path / "images.npy")
    assert (status, said) == (1, "")
    assert told == f"error: {program} was altered: its SHA-256 is not the one in manifest.json\n"
