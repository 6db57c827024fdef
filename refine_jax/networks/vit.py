"""The vision transformer for small data sets: shifted patches, local self-attention."""

import math

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from refine_jax.errors import SettingError
from refine_jax.networks import layers


def _layer_norm(dtype: jax.typing.DTypeLike | None, name: str | None = None) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=dtype, name=name)


class Attention(nn.Module):
    """Multi-head self-attention with a learned temperature, in which no token attends to itself: [N, T, D] -> same."""

    heads: int
    dim_head: int
    dropout: float
    dtype: jax.typing.DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        n, tokens, dim = x.shape
        temperature = self.param("temperature", nn.initializers.constant(math.log(self.dim_head**-0.5)), ())
        x = _layer_norm(self.dtype, "norm")(x)
        inner = self.heads * self.dim_head
        x = layers.linear(dim, 3 * inner, bias=False, dtype=self.dtype, name="qkv")(x)
        query, key, value = jnp.moveaxis(x.reshape(n, tokens, 3, self.heads, self.dim_head), 2, 0)  # [N, T, heads, d]
        scores = layers.at_least_float32(jnp.einsum("nqhd,nkhd->nhqk", query, key)) * jnp.exp(temperature)
        scores = jnp.where(jnp.eye(tokens, dtype=bool), -jnp.finfo(scores.dtype).max, scores)
        attention = nn.softmax(scores, axis=-1).astype(value.dtype)
        x = jnp.einsum("nhqk,nkhd->nqhd", attention, value).reshape(n, tokens, inner)
        x = layers.linear(inner, dim, dtype=self.dtype, name="out")(x)
        return nn.Dropout(self.dropout)(x, deterministic=not train)


class MLP(nn.Module):
    """Two linear layers with an exact GELU between: [N, T, D] -> [N, T, D]."""

    hidden: int
    dropout: float
    dtype: jax.typing.DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        dim = x.shape[-1]
        x = _layer_norm(self.dtype, "norm")(x)
        x = layers.linear(dim, self.hidden, dtype=self.dtype, name="linear1")(x)
        x = nn.Dropout(self.dropout)(nn.gelu(x, approximate=False), deterministic=not train)
        x = layers.linear(self.hidden, dim, dtype=self.dtype, name="linear2")(x)
        return nn.Dropout(self.dropout)(x, deterministic=not train)


class ViT(nn.Module):
    """A pre-norm transformer over patches that reads its answer from a class token.

    `features` and `head` are the two halves. There is no batch normalization; training needs
    `rngs={'dropout': key}`.

    Attributes:
        num_classes: Number of logits.
        image_size: Side of the images, in pixels.
        patch_size: Side of a patch, in pixels; None for an eighth of the image's.
        dim: Length of a token.
        depth: Number of layers.
        heads: Attention heads a layer.
        dim_head: Length of a head's queries, keys and values.
        mlp_dim: Hidden length of the MLPs.
        dropout: Rate in attention, MLPs and after the embedding.
        dtype: Type of the computation; None for the promoted type of images and parameters.
        axis_name: Taken as every network takes it; there is no batch normalization here.
        remat: Whether its layers are rematerialized, see `layers.block`.

    Source: ViT of REFINE's released program, after S. H. Lee et al., Vision Transformer for Small-Size Datasets,
        2021.
    """

    num_classes: int
    image_size: int = 32
    patch_size: int | None = None
    dim: int = 512
    depth: int = 6
    heads: int = 8
    dim_head: int = 64
    mlp_dim: int = 512
    dropout: float = 0.1
    dtype: jax.typing.DTypeLike | None = None
    axis_name: str | None = None
    remat: bool = False

    def __post_init__(self) -> None:
        if self.patch_size is None and self.image_size % 8:
            raise SettingError("vit.image_size", self.image_size, "a multiple of 8, or any with a vit.patch_size")
        if self.patch_size is not None and (self.patch_size < 1 or self.image_size % self.patch_size):
            raise SettingError("vit.patch_size", self.patch_size, f"a divisor of vit.image_size = {self.image_size}")
        if not 0 <= self.dropout < 1:
            raise SettingError("vit.dropout", self.dropout, "from 0 to under 1")
        super().__post_init__()

    def setup(self) -> None:
        self.patch = patch = self.patch_size or self.image_size // 8
        self.patch_norm = _layer_norm(self.dtype)
        self.patch_linear = layers.linear(15 * patch**2, self.dim, dtype=self.dtype)
        normal = nn.initializers.normal(1.0)
        self.cls_token = self.param("cls_token", normal, (1, 1, self.dim))
        self.pos_embedding = self.param("pos_embedding", normal, (1, 1 + (self.image_size // patch) ** 2, self.dim))
        self.embedding_dropout = nn.Dropout(self.dropout)
        attention, mlp = (layers.block(module, self.remat) for module in (Attention, MLP))
        self.attention = [attention(self.heads, self.dim_head, self.dropout, self.dtype) for _ in range(self.depth)]
        self.mlp = [mlp(self.mlp_dim, self.dropout, self.dtype) for _ in range(self.depth)]
        self.head_norm = _layer_norm(None)
        self.head_linear = layers.linear(self.dim, self.num_classes)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits [N, K] of `images` [N, S, S, 3], where S is `image_size`.

        Raises:
            SettingError: The images have another size.
        """
        return self.head(self.features(images, train), train)

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the class token [N, dim] after the last layer, of `images` [N, S, S, 3]."""
        chex.assert_shape(images, (None, None, None, 3))
        if images.shape[1:3] != (self.image_size, self.image_size):
            height, width = images.shape[1:3]
            raise SettingError("vit.image_size", self.image_size, f"the size of the images, {height} x {width}")
        x = self.patch_linear(self.patch_norm(patches(shifted(images), self.patch)))
        token = jnp.broadcast_to(self.cls_token, (x.shape[0], 1, self.dim)).astype(x.dtype)
        x = jnp.concatenate([token, x], axis=1) + self.pos_embedding.astype(x.dtype)  # [N, T, D]
        x = self.embedding_dropout(x, deterministic=not train)
        for attention, mlp in zip(self.attention, self.mlp, strict=True):
            x = attention(x, train) + x
            x = mlp(x, train) + x
        return x[:, 0]

    def head(self, features: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits [N, K] of class tokens [N, dim]."""
        del train
        return self.head_linear(self.head_norm(layers.at_least_float32(features)))


def shifted(images: jax.Array) -> jax.Array:
    """Returns [N, H, W, 15]: the images, and those moved by one pixel right, left, down and up, with zeros behind."""
    height, width = images.shape[1:3]
    around = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    origins = ((1, 1), (1, 0), (1, 2), (0, 1), (2, 1))  # Content moves right where the window moves left.
    return jnp.concatenate([around[:, top : top + height, left : left + width] for top, left in origins], axis=-1)


def patches(images: jax.Array, side: int) -> jax.Array:
    """Returns [N, patches, side * side * C] of `images` [N, H, W, C], flattened by row, column, channel."""
    n, height, width, channels = images.shape
    x = images.reshape(n, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, side * side * channels)
