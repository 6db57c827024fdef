"""Masked autoencoders that somebody else has trained, as Flax variables.

Three namings are known: that of the published program and its checkpoints (`mae_visualize_vit_base.pth`), which is
timm's for the blocks; and that of transformers' ViTMAEForPreTraining.
"""

import logging
import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from refine_jax.interop import state_dicts, torch_file, torch_weights
from refine_jax.interop.state_dicts import WeightsError
from refine_jax.networks.mae import MaskedAutoencoder, positions

logger = logging.getLogger(__name__)

# Patterns and replacements, made one after another, that turn transformers' names into the published ones.
_TRANSFORMERS = (
    (r"^vit\.embeddings\.cls_token", "cls_token"),
    (r"^vit\.embeddings\.position_embeddings", "pos_embed"),
    (r"^vit\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^vit\.encoder\.layer\.", "blocks."),
    (r"^vit\.layernorm\.", "norm."),
    (r"^decoder\.decoder_layers\.", "decoder_blocks."),
    (r"^decoder\.(decoder_|mask_token)", r"\1"),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
)
# What belongs to the autoencoder; published files are read likewise, whatever else they hold.
_OWN = re.compile(r"cls_token|mask_token|pos_embed|patch_embed\.|blocks\.|norm\.|decoder_")


class Autoencoder(NamedTuple):
    """A masked autoencoder.

    Attributes:
        module: The network.
        variables: Its Flax variables.
        side: Of the images that it was trained on, in pixels.
    """

    module: MaskedAutoencoder
    variables: dict[str, Any]
    side: int


def load(path: str | os.PathLike) -> Autoencoder:
    """Reads a file of torch.save or safetensors.

    Raises:
        DataError: The file is missing, damaged or dangerous, see `torch_file.load`; or it holds no whole masked
            autoencoder.
    """
    try:
        return convert(torch_file.load(path))
    except WeightsError as error:
        raise WeightsError(f"{os.fspath(path)}: {error}") from error


def convert(state_dict: Mapping[str, Any]) -> Autoencoder:
    """Returns the autoencoder of a PyTorch state dict; its size is taken from the shapes.

    Attention heads are those of the published models: 64 channels each in the encoder (80 in the huge one), 32 in the
    decoder.

    Args:
        state_dict: As `torch_weights.read` takes it.

    Raises:
        WeightsError: Entries are missing or of another shape, or positions were learned.
    """
    entries = state_dicts.whole("mae", state_dict)
    if any(name.startswith("vit.") for name in entries):
        entries = _published(entries)
    if left_out := [name for name in entries if not _OWN.match(name)]:
        logger.info("mae: %d entries are no part of an autoencoder, such as %s", len(left_out), left_out[0])
    entries = {name: value for name, value in entries.items() if _OWN.match(name)}
    if "mask_token" not in entries:
        raise WeightsError(
            "holds no decoder of a masked autoencoder, and its encoder alone restores nothing: what is wanted are the "
            "weights of both, as in mae_visualize_vit_base.pth or transformers' ViTMAEForPreTraining"
        )
    names = [name for name in entries if name in ("pos_embed", "decoder_pos_embed")]
    places = {name: entries.pop(name) for name in names}
    options: dict[str, Any] = torch_weights.infer_options("mae", entries)
    variables = torch_weights.convert("mae", entries)
    module = MaskedAutoencoder(**options)
    return Autoencoder(module, variables, _side(places, module) * module.patch_size)


def _published(entries: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gives transformers' entries the published names; queries, keys and values become one."""
    renamed = {}
    for name, value in entries.items():
        for pattern, replacement in _TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [name.replace("query", part) for part in ("query", "key", "value")]
        if all(part in renamed for part in parts):
            renamed[name.replace("query", "qkv")] = np.concatenate([renamed.pop(part) for part in parts])
    return renamed


def _side(places: Mapping[str, np.ndarray], module: MaskedAutoencoder) -> int:
    """Returns how many patches there are across, if the positions are the ones that the module computes."""
    widths = {"pos_embed": module.width, "decoder_pos_embed": module.decoder_width}
    sides = []
    for name, width in widths.items():
        if name not in places:
            raise WeightsError(f"missing: {name}, which tells the size of the images")
        given = np.asarray(places[name], np.float32)
        side = math.isqrt(max(0, given.shape[1] - 1)) if given.ndim == 3 else 0
        if side == 0 or given.shape != (1, 1 + side**2, width):
            raise WeightsError(f"misshapen: {name} {given.shape}, not (1, 1 + patches of a square, {width})")
        if not np.allclose(given[0, 1:], positions(width, side, side), atol=1e-3) or np.abs(given[0, 0]).max() > 1e-3:
            raise WeightsError(f"{name} are other positions than the sines and cosines of the published models")
        sides.append(side)
    if sides[0] != sides[1]:
        raise WeightsError(f"the encoder has {sides[0]} patches across, and the decoder {sides[1]}")
    return sides[0]
