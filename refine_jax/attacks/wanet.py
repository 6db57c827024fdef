"""WaNet: a smooth warp, the same for all images."""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax.attacks import poisoning, warp
from refine_jax.attacks.options import check_integer, check_number
from refine_jax.attacks.trigger import Attack, Definition
from refine_jax.batches import map_batches
from refine_jax.errors import SettingError

# Noise samples for each poisoned one.
_COVERS = 2


def draw(image_size: tuple[int, int], options: Mapping[str, Any], field: str, key: jax.Array) -> dict[str, np.ndarray]:
    """Draws the control grid where none was given, and makes the warp of it.

    Returns:
        'control_grid', float32 [1, 2, k, k], and 'grid', float32 [H, W, 2]: where each pixel is taken from.
    """
    k = check_integer(f"{field}.k", options["k"], 2)
    s = check_number(f"{field}.s", options["s"], 0)
    if not isinstance(options["noise"], bool):
        raise SettingError(f"{field}.noise", options["noise"], "True or False")
    if options["control_grid"] is None:
        control = np.asarray(jax.random.uniform(key, (1, 2, k, k), jnp.float32, minval=-1, maxval=1), np.float64)
        control = (control / np.abs(control).mean()).astype(np.float32)
    else:
        control = _check_control_grid(f"{field}.control_grid", options["control_grid"])
    noise = np.moveaxis(warp.upsample_bicubic(control[0], image_size), 0, -1)  # [H, W, 2]
    grid = warp.identity_grid(image_size) + s * noise / np.array(image_size[::-1])
    return {"control_grid": control, "grid": np.clip(grid, -1, 1).astype(np.float32)}


def _check_control_grid(field: str, value: Any) -> np.ndarray:
    wanted = "[1, 2, k, k], k at least 2; x first, then y"
    if isinstance(value, str | os.PathLike):
        try:
            value = np.load(pathlib.Path(value).expanduser(), allow_pickle=False)
        except Exception as error:  # of which kind depends on what is damaged
            raise SettingError(field, os.fspath(value), "a .npy file that exists and holds an array") from error
    try:
        grid = np.asarray(value)
    except ValueError as error:  # rows of several lengths
        raise SettingError(field, f"a {type(value).__name__}", wanted) from error
    if grid.ndim != 4 or grid.shape[:2] != (1, 2) or min(grid.shape) < 1 or min(grid.shape[2:]) < 2:
        raise SettingError(field, f"array of shape {grid.shape}", wanted)
    if grid.dtype.kind not in "iuf" or not np.isfinite(grid).all():
        raise SettingError(field, f"{grid.dtype} array", "finite numbers")
    return grid.astype(np.float32)


def trigger(images: np.ndarray, attack: Attack) -> np.ndarray:
    """Warps images."""
    return map_batches(_warp, images, (attack.arrays["grid"],))


def warp_noisily(images: np.ndarray, attack: Attack, key: jax.Array) -> np.ndarray:
    """Warps images along a grid with noise on it, drawn for each image: what must not be taken for the trigger."""
    return map_batches(_warp_noisily, images, (attack.arrays["grid"], key), np.arange(len(images)))


@jax.jit
def _warp(images: jax.Array, grid: jax.Array) -> jax.Array:
    sampled = warp.grid_sample(images.astype(jnp.float32) / 255, grid)
    return jnp.round(jnp.clip(sampled * 255, 0, 255)).astype(jnp.uint8)


@jax.jit
def _warp_noisily(images: jax.Array, numbers: jax.Array, grid: jax.Array, key: jax.Array) -> jax.Array:
    def disturb(number):
        noise = jax.random.uniform(jax.random.fold_in(key, number), grid.shape, grid.dtype, minval=-1, maxval=1)
        return jnp.clip(grid + noise / jnp.array(grid.shape[1::-1], grid.dtype), -1, 1)

    return _warp(images, jax.vmap(disturb)(numbers))


# Nguyen and Tran, "WaNet: Imperceptible Warping-based Backdoor Attack", ICLR 2021.
ATTACK = Definition(
    options={"k": 4, "s": 0.5, "control_grid": str, "noise": True},
    draw=draw,
    trigger=trigger,
    poison=functools.partial(
        poisoning.dirty_label,
        cover=warp_noisily,
        cover_rate=lambda attack: _COVERS * attack.rate if attack.options["noise"] else 0.0,
    ),
)
