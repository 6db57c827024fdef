"""VGG-16 without batch normalization, for 32 x 32 images."""

import chex
import jax
from flax import linen as nn

from refine_jax.networks import layers

he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class VGG(nn.Module):
    """3 x 3 convolutions with ReLU, five max-pools and one linear layer; `features` and `head` are the two halves.

    Attributes:
        num_classes: Number of logits.
        stages: Channels of the convolutions in front of each max-pool.
        dtype: Type of the computation; None for the promoted type of images and parameters.
        axis_name: Taken as every network takes it; there is no batch normalization here.

    Source: vgg16 of REFINE's released program, after K. Simonyan and A. Zisserman, Very Deep Convolutional
        Networks, ICLR 2015. A global mean in front of the head, which changes nothing at 32 x 32, takes larger
        images too.
    """

    num_classes: int
    stages: tuple[tuple[int, ...], ...]
    dtype: jax.typing.DTypeLike | None = None
    axis_name: str | None = None

    def setup(self) -> None:
        in_features, position = 3, 0  # Positions among convolutions, ReLUs and pools: PyTorch's names have them.
        for stage in self.stages:
            for features in stage:
                convolve = layers.conv(
                    in_features,
                    features,
                    3,
                    padding=1,
                    bias=True,
                    dtype=self.dtype,
                    kernel_init=he_fan_out,
                    bias_init=nn.initializers.zeros,
                )
                setattr(self, f"conv{position}", convolve)
                in_features, position = features, position + 2
            position += 1
        self.linear = layers.linear(
            in_features,
            self.num_classes,
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.zeros,
        )

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits [N, K] of `images` [N, H, W, 3].

        Raises:
            SettingError: A side of the images is under 32.
        """
        return self.head(self.features(images, train), train)

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the last feature map of `images` [N, H, W, 3]."""
        del train
        chex.assert_shape(images, (None, None, None, 3))
        layers.require_side("vgg16", images, 32)
        x, position = images, 0
        for stage in self.stages:
            for _ in stage:
                x = nn.relu(getattr(self, f"conv{position}")(x))
                position += 2
            x = layers.halve_by_max(x)
            position += 1
        return x

    def head(self, features: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits [N, K] of a feature map [N, H, W, C]."""
        del train
        return self.linear(layers.global_mean(features))
