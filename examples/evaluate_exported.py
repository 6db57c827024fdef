"""Evaluates an exported classifier with JAX and NumPy alone; nothing of refine_jax, Flax or Orbax is needed.

    pip install jax numpy flatbuffers                  # jax.export reads programs with flatbuffers
    python examples/evaluate_exported.py EXPORT IMAGES [--target CLASS] [--probabilities FILE.npy]

EXPORT is export/ of a working directory, or what refine_jax.export.save wrote. IMAGES, RGB, are

    FILE.npy     images, uint8 or float in [0, 1] [N, H, W, 3]
    FILE.npz     'images', and whatever there is of 'labels' [N], 'triggered' [M, H, W, 3], 'triggered_labels' [M]
                 (else 'labels') and 'target'; python -m refine_jax.evaluate --images FILE.npz writes one
    FOLDER       pictures of the right size, in folders called as the classes, or all in it; needs Pillow

Printed is JSON: the class of each image where there are no labels, else the figures that results.json has, as
docs/metrics.md defines them. The functions are meant to be copied.
"""

import argparse
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import numpy as np

BATCH_SIZE = 250
# What may be in the file of weights; floats of other sizes were cast to float32 for it.
DTYPES = {"F32": "<f4", "C64": "<c8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
DTYPES |= {"BOOL": "?", "U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"}


def load(directory: pathlib.Path) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    """Returns (a function from images to probabilities [N, K], the manifest) of an export.

    A file is used only where its SHA-256 is the one in the manifest.
    """
    manifest = json.loads((directory / "manifest.json").read_text())

    def read(name: str) -> bytes:
        data = (directory / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != manifest["files"][name]["sha256"]:
            sys.exit(f"error: {directory / name} was altered: its SHA-256 is not the one in manifest.json")
        return data

    weights = jax.device_put(read_safetensors(read(manifest["programs"]["weights"])))
    programs = {}
    for dtype, name in manifest["programs"]["files"].items():
        try:
            program = jax.export.deserialize(bytearray(read(name)))
            program.mlir_module()  # parses it
        except Exception as error:  # of which kind depends on the version
            made_by = manifest["environment"]["jax"]
            sys.exit(f"error: {name} was written by JAX {made_by} and is not read by {jax.__version__}: {error}")
        programs[dtype] = jax.jit(program.call)
    shape = (manifest["images"]["height"], manifest["images"]["width"], 3)

    def predict(images: np.ndarray) -> np.ndarray:
        if images.dtype != np.uint8:
            images = images.astype(np.float32)
        if images.shape[1:] != shape or (images.dtype != np.uint8 and not 0 <= images.min() <= images.max() <= 1):
            sys.exit(f"error: images {images.shape} {images.dtype}: wanted are [N, *{shape}], uint8 or in [0, 1]")
        size, batches = min(BATCH_SIZE, len(images)), []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            # The last one is filled up, so that the program is compiled once.
            filled = np.concatenate([batch, np.zeros((size - len(batch), *shape), batch.dtype)])
            batches.append(np.asarray(programs[images.dtype.name](weights, filled))[: len(batch)])
        return np.concatenate(batches)

    return predict, manifest


def read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file by name: a JSON header behind its length, then the arrays."""
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        array = np.frombuffer(data[begin + first : begin + last], DTYPES[entry["dtype"]])
        arrays[name] = array.reshape(entry["shape"])
    return arrays


def read_images(path: pathlib.Path, class_names: list[str] | None) -> dict[str, Any]:
    """Returns 'images' and what else there is, see above."""
    if path.suffix == ".npy":
        return {"images": np.load(path)}
    if path.suffix == ".npz":
        return dict(np.load(path))
    from PIL import Image

    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp"))
    if not files:
        sys.exit(f"error: {path} is no .npy, no .npz and no folder with pictures")
    read = {"images": np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])}
    folders = {file.parent.name for file in files if file.parent != path}
    if class_names and folders <= set(class_names) and all(file.parent != path for file in files):
        read["labels"] = np.array([class_names.index(file.parent.name) for file in files])
    return read


def measure(
    answers: np.ndarray,
    labels: np.ndarray,
    triggered_answers: np.ndarray,
    triggered_labels: np.ndarray,
    target: int,
    permutation: list[int],
) -> dict[str, list[int]]:
    """Returns of each figure [hits, images counted]."""
    mapped, others = permutation[target], triggered_labels != target
    neither = others & (triggered_labels != mapped)
    hits = {
        "ba": answers == labels,
        "asr": triggered_answers[others] == target,
        "asr_all": triggered_answers == target,
        "mapped_asr": triggered_answers[neither] == mapped,
        "ra": (triggered_answers == triggered_labels)[others],
    }
    return {name: [int(hit.sum()), len(hit)] for name, hit in hits.items()}


def main() -> None:
    """Reads the command line, and prints what was asked for."""
    parser = argparse.ArgumentParser(description="Evaluates an exported classifier.")
    parser.add_argument("export", type=pathlib.Path)
    parser.add_argument("images", type=pathlib.Path)
    parser.add_argument("--target", type=int, help="the attacker's class, where the file of images has none")
    parser.add_argument("--probabilities", type=pathlib.Path, help="where to write those of the images, [N, K]")
    given = parser.parse_args()
    predict, manifest = load(given.export)
    data = read_images(given.images, manifest["class_names"])
    target, most = given.target if given.target is not None else data.get("target"), len(manifest["permutation"]) - 1
    if "triggered" in data and (target is None or not 0 <= target <= most):
        sys.exit(f"error: --target = {target}: allowed: 0 to {most}, as there are triggered images")
    probabilities = predict(data["images"])
    if given.probabilities:
        np.save(given.probabilities, probabilities)
    answers = probabilities.argmax(axis=1)
    if "labels" not in data:
        print(json.dumps({"classes": answers.tolist()}))
        return
    none = np.zeros(0, int)
    triggered = predict(data["triggered"]).argmax(axis=1) if "triggered" in data else none
    triggered_labels = data.get("triggered_labels", data["labels"]) if "triggered" in data else none
    target = 0 if target is None else int(target)  # not looked at without triggered images
    counts = measure(answers, data["labels"], triggered, triggered_labels, target, manifest["permutation"])
    figures = {name: hits / total if total else None for name, (hits, total) in counts.items()}
    print(json.dumps({**figures, "counts": counts}, indent=2))


if __name__ == "__main__":
    main()
