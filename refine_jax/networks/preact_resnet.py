"""The pre-activation ResNet-18 of backdoor benchmarks."""

import chex
import jax
from flax import linen as nn

from refine_jax.networks import layers
from refine_jax.networks.norm import BatchNorm


class PreActBlock(nn.Module):
    """Norm and ReLU before each of two 3 x 3 convolutions: [N, H, W, C] -> [N, H / stride, W / stride, features].

    Where shapes change, the shortcut is a bare 1 x 1 convolution of the activated input, else the input itself.
    """

    features: int
    stride: int
    dtype: jax.typing.DTypeLike | None
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels, features, dtype = x.shape[-1], self.features, self.dtype
        y = nn.relu(BatchNorm(dtype, self.axis_name, name="bn1")(x, train))
        if self.stride != 1 or channels != features:
            x = layers.conv(channels, features, 1, stride=self.stride, dtype=dtype, name="shortcut_conv")(y)
        y = layers.conv(channels, features, 3, stride=self.stride, padding=1, dtype=dtype, name="conv1")(y)
        y = nn.relu(BatchNorm(dtype, self.axis_name, name="bn2")(y, train))
        y = layers.conv(features, features, 3, padding=1, dtype=dtype, name="conv2")(y)
        return x + y


class PreActResNet(nn.Module):
    """A pre-activation residual network; `features` and `head` are its two halves.

    Neither norm nor ReLU stands between the last block and the global mean.

    Attributes:
        num_classes: Number of logits.
        stages: Blocks in each stage, all but the first of which halve the image.
        width: Channels of the first stage.
        dtype: Type of the computation; None for the promoted type of images and parameters.
        axis_name: Mapped axis over which batch normalization shares its statistics.
        remat: Whether its blocks are rematerialized, see `layers.block`.

    Source: PreActResNet18 of BackdoorBench, after K. He et al., Identity Mappings in Deep Residual Networks,
        ECCV 2016.
    """

    num_classes: int
    stages: tuple[int, ...]
    width: int = 64
    dtype: jax.typing.DTypeLike | None = None
    axis_name: str | None = None
    remat: bool = False

    def setup(self) -> None:
        self.conv1 = layers.conv(3, self.width, 3, padding=1, dtype=self.dtype)
        block = layers.block(PreActBlock, self.remat)
        for i, blocks in enumerate(self.stages):
            stage = [
                block(self.width * 2**i, 2 if i > 0 and j == 0 else 1, self.dtype, self.axis_name)
                for j in range(blocks)
            ]
            setattr(self, f"layer{i + 1}", stage)
        self.linear = layers.linear(self.width * 2 ** (len(self.stages) - 1), self.num_classes)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits [N, K] of `images` [N, H, W, 3]."""
        return self.head(self.features(images, train), train)

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the last feature map of `images` [N, H, W, 3]."""
        chex.assert_shape(images, (None, None, None, 3))
        x = self.conv1(images)
        for i in range(len(self.stages)):
            for block in getattr(self, f"layer{i + 1}"):
                x = block(x, train)
        return x

    def head(self, features: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits [N, K] of a feature map [N, H, W, C]."""
        del train
        return self.linear(layers.global_mean(features))
