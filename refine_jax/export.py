"""A defended classifier as files that can be used without this project, and back.

    program_uint8.stablehlo      (weights, images uint8 [N, H, W, 3]) -> probabilities [N, K], for any N; CPU and CUDA
    program_float32.stablehlo    the same of float images in [0, 1]
    weights.safetensors          the programs' first argument: name to array
    unet_torch.safetensors       the U-Net's weights once more, by PyTorch's names
    variables/                   U-Net, classifier and permutation by Orbax, to be kept
    manifest.json                what all this is, and the SHA-256 of every file

Preprocessing, U-Net, classifier and output mapping are inside the programs. The weights are not: as constants they
would stand in each program once more, and take twice as long to compile.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
from jax import export as jax_export

from refine_jax import artifacts, environment
from refine_jax.batches import map_batches
from refine_jax.classifier import Classifier
from refine_jax.defenses.refine import Defended, Objective
from refine_jax.errors import DataError, SettingError
from refine_jax.interop import torch_weights
from refine_jax.networks.unet import UNet

SCHEMA = 1
PLATFORMS = ("cpu", "cuda")
PROGRAMS = {"uint8": "program_uint8.stablehlo", "float32": "program_float32.stablehlo"}
WEIGHTS, UNET_WEIGHTS, VARIABLES = "weights.safetensors", "unet_torch.safetensors", "variables"
# How far outside of [0, 1] a float image may be, for what came of rounding.
_SLACK = 1e-3


def save(
    defended: Defended,
    directory: str | os.PathLike,
    *,
    class_names: Sequence[str] | None = None,
    record: Mapping[str, Any] = {},
) -> None:
    """Writes a defended classifier into a folder, whole or not at all.

    Args:
        defended: From `defend`, or from a run.
        directory: The folder; an earlier export in it is replaced.
        class_names: In the order of the classes. [K]
        record: JSON values to go into the manifest, such as settings and figures.

    Raises:
        WorkdirError: The folder holds something else, or cannot be written.
        SettingError: There are more or fewer class names than classes, or two weights of one name.
    """
    num_classes = len(defended.permutation)
    if class_names is not None and len(class_names) != num_classes:
        raise SettingError("class_names", list(class_names), f"{num_classes} names, one a class")
    variables = jax.tree.map(_as_written, _variables(defended))
    weights = dict(zip(_names(variables), jax.tree.leaves(variables), strict=True))
    programs = {dtype: _program(defended, weights, dtype) for dtype in PROGRAMS}
    manifest = {
        "schema": SCHEMA,
        "images": {"height": defended.image_size[0], "width": defended.image_size[1], "channels": "RGB"},
        "class_names": None if class_names is None else list(class_names),
        "permutation": np.asarray(defended.permutation).tolist(),
        "classifier": defended.classifier.describe(),
        "unet": {"width": defended.unet.width, "depth": defended.unet.depth},
        "objective": dataclasses.asdict(defended.settings),
        "programs": {
            "files": PROGRAMS,
            "weights": WEIGHTS,
            "platforms": list(PLATFORMS),
            "calling_convention": programs["uint8"].calling_convention_version,
        },
        "environment": environment.describe(),
        **record,
    }
    with artifacts.writing(pathlib.Path(directory), manifest) as folder:
        for dtype, program in programs.items():
            (folder / PROGRAMS[dtype]).write_bytes(program.serialize())
        for name, arrays in ((WEIGHTS, weights), (UNET_WEIGHTS, torch_weights.to_torch("unet", variables["unet"]))):
            (folder / name).write_bytes(safetensors.numpy.save(arrays))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / VARIABLES, variables)


def load(directory: str | os.PathLike) -> "Exported":
    """Reads what `save` wrote, for use: by the programs, which are read only where their hashes hold.

    Raises:
        DataError: A file is missing or altered, or the programs are of a version that this JAX does not read.
    """
    directory = pathlib.Path(directory).expanduser()
    manifest = artifacts.read_manifest(directory, SCHEMA)
    data = {name: artifacts.read_file(directory, manifest, name) for name in (WEIGHTS, *PROGRAMS.values())}
    programs = {}
    for dtype, name in PROGRAMS.items():
        try:
            programs[dtype] = jax_export.deserialize(bytearray(data[name]))
            programs[dtype].mlir_module()  # parses it: a newer version is told only then
        except Exception as error:  # of which kind depends on the version
            made_by = manifest.get("environment", {}).get("jax")
            raise DataError(
                f"{directory / name} cannot be read by JAX {jax.__version__} ({error}); JAX {made_by} wrote it: use "
                "a version near that one, or refine_jax.export.restore and export again"
            ) from error
    return Exported(manifest, programs, safetensors.numpy.load(data[WEIGHTS]))


def holds(directory: str | os.PathLike, record: Mapping[str, Any]) -> bool:
    """Returns whether there is a whole export whose manifest has these entries."""
    return artifacts.holds(pathlib.Path(directory), SCHEMA, record)


def is_of_function(manifest: Mapping[str, Any]) -> bool:
    """Returns whether the classifier was a function, whose code is in the programs alone."""
    return not isinstance(manifest.get("classifier"), dict) or "name" not in manifest["classifier"]


def restore(directory: str | os.PathLike) -> Defended:
    """Reads what `save` wrote back into what was saved: networks of this project, with the variables kept by Orbax.

    Raises:
        DataError: A file is missing or altered, or the classifier was a function, whose code was not saved.
    """
    directory = pathlib.Path(directory).expanduser().absolute()
    manifest = artifacts.read_manifest(directory, SCHEMA)
    artifacts.check(directory, manifest, VARIABLES)
    if is_of_function(manifest):
        raise DataError(f"{directory}: its classifier was a function, whose code is in the programs alone: use load")
    with ocp.StandardCheckpointer() as checkpointer:
        variables = jax.tree.map(jnp.asarray, checkpointer.restore(directory / VARIABLES))
    try:
        described = dict(manifest["classifier"])
        classifier = Classifier(described.pop("name"), variables["classifier"], **described)
        image_size = (manifest["images"]["height"], manifest["images"]["width"])
        unet, wanted = UNet(**manifest["unet"]), Objective(**manifest["objective"])
        return Defended(classifier, variables["unet"], variables["permutation"], unet, wanted, image_size)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{directory / artifacts.MANIFEST} describes no defended classifier ({error!r})") from error


class Exported:
    """A defended classifier made of an export's programs and weights.

    Attributes:
        manifest: What manifest.json holds.
        permutation: Output mapping. int32 [K]
        image_size: (H, W).
    """

    def __init__(
        self,
        manifest: Mapping[str, Any],
        programs: Mapping[str, jax_export.Exported],
        weights: Mapping[str, np.ndarray],
    ):
        self.manifest = manifest
        self.permutation = weights["permutation"]
        height, width = programs["uint8"].in_avals[-1].shape[1:3]
        self.image_size = (int(height), int(width))
        on_device = jax.tree.map(jnp.asarray, dict(weights))
        self._calls = {
            dtype: functools.partial(jax.jit(program.call), on_device) for dtype, program in programs.items()
        }

    def __call__(self, images: np.ndarray | jax.Array) -> np.ndarray:
        """Probabilities of images, as many as there are; they are computed in batches.

        Args:
            images: RGB, uint8 or float in [0, 1]. [N, H, W, 3]

        Returns:
            [N, K], float32; the classes mean what they mean to the classifier.

        Raises:
            SettingError: They are not such images.
        """
        images = np.asarray(images)
        height, width = self.image_size
        if images.ndim != 4 or images.shape[1:] != (height, width, 3):
            raise SettingError("images", f"of shape {images.shape}", f"[N, {height}, {width}, 3]")
        if jnp.issubdtype(images.dtype, jnp.floating):
            low, high = images.min(initial=0), images.max(initial=0)
            if not (low >= -_SLACK and high <= 1 + _SLACK):  # not a number, neither
                raise SettingError("images", f"floats from {low} to {high}", "floats from 0 to 1, or uint8")
            images = images.astype(np.float32)
        elif images.dtype != np.uint8:
            raise SettingError("images", f"of type {images.dtype}", "uint8, or floats from 0 to 1")
        return map_batches(self._calls[images.dtype.name], images)


def _variables(defended: Defended) -> dict[str, Any]:
    return {
        "unet": defended.unet_variables,
        "classifier": defended.classifier.variables,
        "permutation": defended.permutation,
    }


def _names(variables: Mapping[str, Any]) -> list[str]:
    """Returns the names of the leaves, in their order: the keys that lead there, joined by slashes.

    A key may hold slashes itself, as Haiku's do, so that a name alone does not tell the place.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SettingError("variables", twice[0], "keys that give each weight a name of its own, joined by '/'")
    return names


def _as_written(leaf: Any) -> np.ndarray:
    """Returns a weight as the files have it: floats as float32, which every reader of them knows."""
    leaf = np.asarray(leaf, order="C")  # safetensors writes the memory as it lies
    return leaf.astype(np.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _program(defended: Defended, weights: Mapping[str, np.ndarray], dtype: str) -> jax_export.Exported:
    """Returns the function (weights, images) -> probabilities for images of one type, in any number."""
    template = _variables(defended)
    names, structure = _names(template), jax.tree.structure(template)
    # A function may need its weights as it had them; float32 has held bfloat16 and float16 without a loss.
    own_dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(template)]

    def probabilities(weights: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255
        leaves = [weights[name].astype(own) for name, own in zip(names, own_dtypes, strict=True)]
        variables = jax.tree.unflatten(structure, leaves)
        with_weights = dataclasses.replace(
            defended,
            classifier=_with_variables(defended.classifier, variables["classifier"]),
            unet_variables=variables["unet"],
            permutation=variables["permutation"],
        )
        with jax.default_matmul_precision("float32"):  # as in evaluation
            return with_weights(images).astype(jnp.float32)

    (count,) = jax_export.symbolic_shape("N")
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in weights.items()}
    images = jax.ShapeDtypeStruct((count, *defended.image_size, 3), dtype)
    with _without_paths():
        return jax_export.export(jax.jit(probabilities), platforms=PLATFORMS)(shapes, images)


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
    """Keeps the names of this machine's folders out of a program, which notes by itself where its lines come from."""
    option = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, before)


def _with_variables(classifier: Classifier, variables: Any) -> Classifier:
    return jax.tree.unflatten(jax.tree.structure(classifier), jax.tree.leaves(variables))
