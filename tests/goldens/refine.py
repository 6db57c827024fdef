"""The goldens of the whole objective, losses/refine_*.npz, as this project's objects."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from refine_jax.classifier import Classifier
from refine_jax.interop import torch_weights
from refine_jax.networks.unet import UNet
from tests.goldens import rules

# Both files were made with the same networks and the same preprocessing; one of them says which.
STEP = "losses/refine_step.npz"


def widened(tree: Any) -> Any:
    """Returns the tree in float64; to be used where JAX keeps it."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def unet() -> tuple[UNet, dict[str, Any]]:
    """Returns the U-Net and its variables before the first step."""
    step = rules.load(STEP)
    state_dict = rules.weights(step["seed"], rules.shapes(step["state_dict_json_unet"]))
    module = UNet(**torch_weights.infer_options("unet", state_dict))
    return module, torch_weights.convert("unet", state_dict)


def victim(golden: Mapping[str, np.ndarray], dtype: type = np.float32) -> Classifier:
    """Returns the classifier of a golden file, whose head was scaled so that pseudo-labels are diverse.

    Args:
        golden: One of the two files.
        dtype: Of its weights.
    """
    step = rules.load(STEP)
    state_dict = rules.weights(golden["seed"], rules.shapes(step["state_dict_json_victim"]))
    state_dict["linear.weight"] = state_dict["linear.weight"] * golden["victim_head_scale"]
    state_dict["linear.bias"] = golden["victim_head_bias"]
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), torch_weights.convert("resnet18", state_dict))
    return Classifier("resnet18", variables, 10, step["mean_f64"], step["std_f64"])


def images(golden: Mapping[str, np.ndarray], dtype: type = np.float32) -> np.ndarray:
    """Returns the images of a golden file, [..., H, W, 3] in [0, 1].

    The double-precision runs took images that had been scaled and normalized in float32. A last digit of float32
    would show in their gradients, so float64 images are those that become just these when they are normalized in
    float64.
    """
    scaled = golden["images"].astype(np.float32) / np.float32(255)
    if dtype == np.float32:
        return scaled
    step = rules.load(STEP)
    normalized = (scaled - step["mean_f64"].astype(np.float32)) / step["std_f64"].astype(np.float32)
    return normalized.astype(dtype) * step["std_f64"] + step["mean_f64"]
