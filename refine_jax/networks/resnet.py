"""ResNets: with the small stem for 32 x 32 images, and with torchvision's for large ones."""

from collections.abc import Callable

import chex
import jax
from flax import linen as nn

from refine_jax.networks import layers
from refine_jax.networks.norm import BatchNorm

he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: [N, H, W, C] -> [N, H / stride, W / stride, features]."""

    features: int
    stride: int
    dtype: jax.typing.DTypeLike | None
    axis_name: str | None
    kernel_init: nn.initializers.Initializer
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        convolve, norm = _makers(self)
        y = convolve(x, self.features, 3, self.stride, name="conv1")
        y = nn.relu(norm(name="bn1")(y, train))
        y = convolve(y, self.features, 3, name="conv2")
        y = norm(name="bn2")(y, train)
        return nn.relu(y + _shortcut(self, x, self.features, train))


class Bottleneck(nn.Module):
    """A 3 x 3 convolution between two of 1 x 1, and a shortcut; four times `features` come out."""

    features: int
    stride: int
    dtype: jax.typing.DTypeLike | None
    axis_name: str | None
    kernel_init: nn.initializers.Initializer
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        convolve, norm = _makers(self)
        y = convolve(x, self.features, 1, name="conv1")
        y = nn.relu(norm(name="bn1")(y, train))
        y = convolve(y, self.features, 3, self.stride, name="conv2")
        y = nn.relu(norm(name="bn2")(y, train))
        y = convolve(y, 4 * self.features, 1, name="conv3")
        y = norm(name="bn3")(y, train)
        return nn.relu(y + _shortcut(self, x, 4 * self.features, train))


def _makers(block: nn.Module) -> tuple[Callable[..., jax.Array], Callable[..., BatchNorm]]:
    """Returns the convolution and the norm with the block's settings."""

    def convolve(x: jax.Array, features: int, size: int, stride: int = 1, *, name: str) -> jax.Array:
        layer = layers.conv(
            x.shape[-1],
            features,
            size,
            stride=stride,
            padding=size // 2,
            dtype=block.dtype,
            kernel_init=block.kernel_init,
            name=name,
        )
        return layer(x)

    def norm(name: str) -> BatchNorm:
        return BatchNorm(block.dtype, block.axis_name, name=name)

    return convolve, norm


def _shortcut(block: nn.Module, x: jax.Array, features: int, train: bool) -> jax.Array:
    """Returns `x`, or a strided 1 x 1 projection of it where shapes change."""
    if block.stride == 1 and x.shape[-1] == features:
        return x
    convolve, norm = _makers(block)
    return norm(name="shortcut_bn")(convolve(x, features, 1, block.stride, name="shortcut_conv"), train)


class ResNet(nn.Module):
    """A residual network; `features` and `head` are its two halves.

    Attributes:
        num_classes: Number of logits.
        stages: Blocks in each of the four stages, the later three of which halve the image.
        block: BasicBlock or Bottleneck.
        imagenet_stem: False for a 3 x 3 stem, which keeps the image's size; True for a strided 7 x 7 one and a
            3 x 3 max-pool, with the initialization that goes with it.
        width: Channels of the first stage.
        dtype: Type of the computation; None for the promoted type of images and parameters.
        axis_name: Mapped axis over which batch normalization shares its statistics.
        remat: Whether its blocks are rematerialized, see `layers.block`.

    Source: K. He et al., Deep Residual Learning for Image Recognition, CVPR 2016. The small stem as in REFINE's
        released program, but with a global mean in place of the fixed 4 x 4 pooling, which is the same at
        32 x 32 and works at every size; the large one as in torchvision.
    """

    num_classes: int
    stages: tuple[int, ...]
    block: type[BasicBlock] | type[Bottleneck]
    imagenet_stem: bool
    width: int = 64
    dtype: jax.typing.DTypeLike | None = None
    axis_name: str | None = None
    remat: bool = False

    def setup(self) -> None:
        kernel_init = he_fan_out if self.imagenet_stem else layers.default_kernel_init
        size, stride = (7, 2) if self.imagenet_stem else (3, 1)
        self.conv1 = layers.conv(
            3, self.width, size, stride=stride, padding=size // 2, dtype=self.dtype, kernel_init=kernel_init
        )
        self.bn1 = BatchNorm(self.dtype, self.axis_name)
        block = layers.block(self.block, self.remat)
        for i, blocks in enumerate(self.stages):
            stage = [
                block(self.width * 2**i, 2 if i > 0 and j == 0 else 1, self.dtype, self.axis_name, kernel_init)
                for j in range(blocks)
            ]
            setattr(self, f"layer{i + 1}", stage)
        out_features = self.width * 2 ** (len(self.stages) - 1) * self.block.expansion
        self.linear = layers.linear(out_features, self.num_classes)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits [N, K] of `images` [N, H, W, 3]."""
        return self.head(self.features(images, train), train)

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the last feature map of `images` [N, H, W, 3]."""
        chex.assert_shape(images, (None, None, None, 3))
        x = nn.relu(self.bn1(self.conv1(images), train))
        if self.imagenet_stem:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for i in range(len(self.stages)):
            for block in getattr(self, f"layer{i + 1}"):
                x = block(x, train)
        return x

    def head(self, features: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits [N, K] of a feature map [N, H, W, C]."""
        del train
        return self.linear(layers.global_mean(features))
