"""The masked autoencoder: it sees some patches of an image and says what the hidden ones look like."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from refine_jax.errors import SettingError
from refine_jax.networks import layers

# Weights of the published model: uniform by fan-in and fan-out for linear layers, normal for the two tokens.
_KERNEL = nn.initializers.xavier_uniform()
_TOKEN = nn.initializers.normal(0.02)
_MLP_RATIO = 4


def _layer_norm(dtype: jax.typing.DTypeLike | None, name: str | None = None) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)


def _linear(in_features: int, features: int, dtype: jax.typing.DTypeLike | None, name: str | None = None) -> nn.Dense:
    zeros = nn.initializers.zeros_init()
    return layers.linear(in_features, features, dtype=dtype, kernel_init=_KERNEL, bias_init=zeros, name=name)


class Attention(nn.Module):
    """Multi-head self-attention over those tokens that are known: [N, T, D], bool [N, T] -> [N, T, D]."""

    heads: int
    dtype: jax.typing.DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array, known: jax.Array | None) -> jax.Array:
        n, tokens, dim = x.shape
        x = _linear(dim, 3 * dim, self.dtype, "qkv")(x)
        # Heads before tokens: the more tokens, the longer XLA's program for CPUs takes the other way around.
        query, key, value = x.reshape(n, tokens, 3, self.heads, dim // self.heads).transpose(2, 0, 3, 1, 4)
        scores = layers.at_least_float32(jnp.einsum("nhqd,nhkd->nhqk", query, key)) * (dim // self.heads) ** -0.5
        if known is not None:
            scores = jnp.where(known[:, None, None, :], scores, -jnp.inf)
        attention = nn.softmax(scores, axis=-1).astype(value.dtype)
        x = jnp.einsum("nhqk,nhkd->nhqd", attention, value).transpose(0, 2, 1, 3).reshape(n, tokens, dim)
        return _linear(dim, dim, self.dtype, "proj")(x)


class Block(nn.Module):
    """A pre-norm layer of a transformer: [N, T, D], bool [N, T] -> [N, T, D]."""

    heads: int
    dtype: jax.typing.DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array, known: jax.Array | None = None) -> jax.Array:
        dim, dtype = x.shape[-1], self.dtype
        x = x + Attention(self.heads, dtype, name="attn")(_layer_norm(dtype, "norm1")(x), known)
        inner = _linear(dim, _MLP_RATIO * dim, dtype, "fc1")(_layer_norm(dtype, "norm2")(x))
        return x + _linear(_MLP_RATIO * dim, dim, dtype, "fc2")(nn.gelu(inner, approximate=False))


class MaskedAutoencoder(nn.Module):
    """An encoder over the visible patches and a smaller decoder over all of them, both transformers.

    Positions are sines and cosines that follow from the images' size, so any size can be taken that the patches
    divide.

    Attributes:
        patch_size: Side of a patch, in pixels.
        width: Length of the encoder's tokens, a multiple of 4 and of `heads`.
        depth: Its layers.
        heads: Attention heads of each.
        decoder_width: Likewise, of the decoder.
        decoder_depth: Likewise.
        decoder_heads: Likewise.
        dtype: Type of the computation; None for the promoted type of images and parameters.

    References:
        He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, and its released program. The
        defaults are its ViT-B/16 with a decoder of 512 in 8 blocks.
    """

    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    dtype: jax.typing.DTypeLike | None = None

    def __post_init__(self) -> None:
        for field in ("patch_size", "width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads"):
            layers.require_positive(f"mae.{field}", getattr(self, field))
        for part, heads in (("width", self.heads), ("decoder_width", self.decoder_heads)):
            if getattr(self, part) % 4 or getattr(self, part) % heads:
                raise SettingError(f"mae.{part}", getattr(self, part), f"a multiple of 4 and of its {heads} heads")
        super().__post_init__()

    def setup(self) -> None:
        side, dtype = self.patch_size, self.dtype
        zeros = nn.initializers.zeros_init()
        self.patch_embed = nn.Conv(
            self.width, (side, side), (side, side), "VALID", dtype=dtype, kernel_init=_flat_kernel, bias_init=zeros
        )
        self.cls_token = self.param("cls_token", _TOKEN, (1, 1, self.width))
        self.blocks = [Block(self.heads, dtype) for _ in range(self.depth)]
        self.norm = _layer_norm(dtype)
        self.decoder_embed = _linear(self.width, self.decoder_width, dtype)
        self.mask_token = self.param("mask_token", _TOKEN, (1, 1, self.decoder_width))
        self.decoder_blocks = [Block(self.decoder_heads, dtype) for _ in range(self.decoder_depth)]
        self.decoder_norm = _layer_norm(dtype)
        self.decoder_pred = _linear(self.decoder_width, 3 * side**2, dtype)

    def __call__(self, images: jax.Array, hidden: jax.Array | None = None, visible: int | None = None) -> jax.Array:
        """Says what the patches look like.

        Args:
            images: Normalized. [N, H, W, 3]
            hidden: Which patches are not looked at, row by row; None: all are seen. bool [N, T]
            visible: The most patches of an image that are not hidden; the fewer, the less there is to compute.
                None: T.

        Returns:
            The pixels of every patch, by row, column and channel; those of the visible ones mean nothing. In float32
            or wider. [N, T, patch_size * patch_size * 3]

        Raises:
            SettingError: The images are not made up of whole patches.
        """
        chex.assert_shape(images, (None, None, None, 3))
        n, rows, columns = images.shape[0], *self.grid(images.shape[1:3])
        tokens = rows * columns
        x = self.patch_embed(images).reshape(n, tokens, self.width)
        x = x + positions(self.width, rows, columns).astype(x.dtype)
        if hidden is None:
            hidden = jnp.zeros((n, tokens), bool)
        chex.assert_shape(hidden, (n, tokens))
        # The visible patches, in order, and, where an image has fewer, hidden ones that nothing attends to.
        order = jnp.argsort(hidden, axis=1)[:, : tokens if visible is None else visible]  # [N, V]
        known = ~jnp.take_along_axis(hidden, order, axis=1)
        x = self._encode(jnp.take_along_axis(x, order[..., None], axis=1), known)
        return self._decode(x, order, known, rows, columns)

    def grid(self, image_size: tuple[int, ...]) -> tuple[int, int]:
        """Returns how many patches an image of (H, W) pixels has down and across."""
        height, width = image_size
        if height % self.patch_size or width % self.patch_size:
            raise SettingError(
                "mae.patch_size", self.patch_size, f"a divisor of the images' sides, {height} x {width}"
            )
        return height // self.patch_size, width // self.patch_size

    def _encode(self, x: jax.Array, known: jax.Array) -> jax.Array:
        """Encodes patches [N, V, width], known [N, V], behind a class token.  -> [N, 1 + V, width]"""
        token = jnp.broadcast_to(self.cls_token, (len(x), 1, self.width)).astype(x.dtype)
        x = jnp.concatenate([token, x], axis=1)
        known = jnp.pad(known, ((0, 0), (1, 0)), constant_values=True)
        for block in self.blocks:
            x = block(x, known)
        return self.norm(x)

    def _decode(self, x: jax.Array, order: jax.Array, known: jax.Array, rows: int, columns: int) -> jax.Array:
        """Decodes what `_encode` gives; `order` tells where the patches stand. -> [N, T, values of a patch]"""
        x = self.decoder_embed(x)
        mask = self.mask_token.astype(x.dtype)
        patches = jnp.broadcast_to(mask, (len(x), rows * columns, self.decoder_width))
        seen = jnp.where(known[..., None], x[:, 1:], mask)
        patches = patches.at[jnp.arange(len(x))[:, None], order].set(seen)
        patches = patches + positions(self.decoder_width, rows, columns).astype(x.dtype)
        x = jnp.concatenate([x[:, :1], patches], axis=1)
        for block in self.decoder_blocks:
            x = block(x)
        return layers.at_least_float32(self.decoder_pred(self.decoder_norm(x))[:, 1:])


def _flat_kernel(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """The weights of a patch's embedding, which are drawn as those of a linear layer are."""
    return _KERNEL(key, (int(np.prod(shape[:-1])), shape[-1]), dtype).reshape(shape)


def positions(width: int, rows: int, columns: int) -> np.ndarray:
    """Returns the embeddings of the patches' places: sines and cosines of the column, then of the row.

    Args:
        width: Length of a token, a multiple of 4.
        rows: Patches down.
        columns: Patches across.

    Returns:
        Row by row; the class token has none. float32 [rows * columns, width]
    """
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    y, x = np.divmod(np.arange(rows * columns), columns)
    angles = [np.outer(place, frequencies) for place in (x, y)]
    return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1, dtype=np.float32)
