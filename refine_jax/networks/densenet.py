"""DenseNet-121."""

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from refine_jax.networks import layers
from refine_jax.networks.norm import BatchNorm

he_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class DenseLayer(nn.Module):
    """`growth` new channels, by a bottleneck of four times as many: [N, H, W, C] -> [N, H, W, growth]."""

    growth: int
    dtype: jax.typing.DTypeLike | None
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, (features, size) in enumerate(((4 * self.growth, 1), (self.growth, 3)), start=1):
            x = nn.relu(BatchNorm(self.dtype, self.axis_name, name=f"norm{i}")(x, train))
            x = layers.conv(
                x.shape[-1],
                features,
                size,
                padding=size // 2,
                dtype=self.dtype,
                kernel_init=he_fan_in,
                name=f"conv{i}",
            )(x)
        return x


class Transition(nn.Module):
    """Half the channels and half the image: [N, H, W, C] -> [N, H // 2, W // 2, C // 2]."""

    dtype: jax.typing.DTypeLike | None
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1]
        x = nn.relu(BatchNorm(self.dtype, self.axis_name, name="norm")(x, train))
        x = layers.conv(channels, channels // 2, 1, dtype=self.dtype, kernel_init=he_fan_in, name="conv")(x)
        return nn.avg_pool(x, (2, 2), strides=(2, 2))


class DenseNet(nn.Module):
    """Blocks in which every layer sees all layers before it; `features` and `head` are the two halves.

    Attributes:
        num_classes: Number of logits.
        blocks: Layers in each block.
        growth: Channels that a layer adds.
        dtype: Type of the computation; None for the promoted type of images and parameters.
        axis_name: Mapped axis over which batch normalization shares its statistics.
        remat: Whether its blocks are rematerialized, see `layers.block`.

    Source: densenet121 of torchvision, after G. Huang et al., Densely Connected Convolutional Networks, CVPR 2017.
    """

    num_classes: int
    blocks: tuple[int, ...]
    growth: int
    dtype: jax.typing.DTypeLike | None = None
    axis_name: str | None = None
    remat: bool = False

    def setup(self) -> None:
        channels, layer = 2 * self.growth, layers.block(DenseLayer, self.remat)
        self.conv0 = layers.conv(3, channels, 7, stride=2, padding=3, dtype=self.dtype, kernel_init=he_fan_in)
        self.norm0 = BatchNorm(self.dtype, self.axis_name)
        for i, count in enumerate(self.blocks, start=1):
            for j in range(1, count + 1):
                setattr(self, f"block{i}_layer{j}", layer(self.growth, self.dtype, self.axis_name))
            channels += count * self.growth
            if i < len(self.blocks):
                setattr(self, f"transition{i}", Transition(self.dtype, self.axis_name))
                channels //= 2
        self.norm5 = BatchNorm(self.dtype, self.axis_name)
        self.linear = layers.linear(channels, self.num_classes, bias_init=nn.initializers.zeros)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits [N, K] of `images` [N, H, W, 3].

        Raises:
            SettingError: A side of the images is under 32.
        """
        return self.head(self.features(images, train), train)

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the last feature map, after its ReLU, of `images` [N, H, W, 3]."""
        chex.assert_shape(images, (None, None, None, 3))
        layers.require_side("densenet121", images, 32)
        x = nn.relu(self.norm0(self.conv0(images), train))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for i, count in enumerate(self.blocks, start=1):
            for j in range(1, count + 1):
                x = jnp.concatenate([x, getattr(self, f"block{i}_layer{j}")(x, train)], axis=-1)
            if i < len(self.blocks):
                x = getattr(self, f"transition{i}")(x, train)
        return nn.relu(self.norm5(x, train))

    def head(self, features: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits [N, K] of a feature map [N, H, W, C]."""
        del train
        return self.linear(layers.global_mean(features))
