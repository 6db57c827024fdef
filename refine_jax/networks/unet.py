"""The U-Net that changes the images."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from refine_jax.networks import layers
from refine_jax.networks.norm import BatchNorm


class DoubleConv(nn.Module):
    """Two 3 x 3 convolutions with batch normalization and ReLU: [N, H, W, C] -> [N, H, W, features]."""

    middle: int
    features: int
    dtype: jax.typing.DTypeLike | None
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, features in enumerate((self.middle, self.features), start=1):
            convolve = layers.conv(x.shape[-1], features, 3, padding=1, bias=True, dtype=self.dtype, name=f"conv{i}")
            norm = BatchNorm(self.dtype, self.axis_name, name=f"bn{i}")
            x = nn.relu(norm(convolve(x), train))
        return x


class UNet(nn.Module):
    """An image-to-image network: a contracting path, an expanding one, and skips between them.

    `depth` max-pools halve the image, rounding down; as many aligned-corner bilinear upsamplings double it, and
    each is padded with zeros to the size of its skip.

    Attributes:
        width: Channels of the first level; they double at every level but the last.
        depth: Number of halvings; the smallest side of an image must be at least 2 ** depth.
        dtype: Type of the computation; None for the promoted type of images and parameters.
        axis_name: Mapped axis over which batch normalization shares its statistics.
        remat: Whether its blocks are rematerialized, see `layers.block`.

    Source: UNetLittle of REFINE's released program (UNet3Layer, UNet, UNet5Layer there are width 64 and depths
        3, 4, 5), after O. Ronneberger et al., U-Net, MICCAI 2015.
    """

    width: int = 64
    depth: int = 4
    dtype: jax.typing.DTypeLike | None = None
    axis_name: str | None = None
    remat: bool = False

    def __post_init__(self) -> None:
        layers.require_positive("unet.width", self.width)
        layers.require_positive("unet.depth", self.depth)
        super().__post_init__()

    def setup(self) -> None:
        def double_conv(middle: int, features: int) -> DoubleConv:
            return layers.block(DoubleConv, self.remat)(middle, features, self.dtype, self.axis_name)

        skips = [self.width * 2**i for i in range(self.depth)]
        self.inc = double_conv(self.width, self.width)
        for i, features in enumerate([*skips[1:], skips[-1]], start=1):
            setattr(self, f"down{i}", double_conv(features, features))
        for i, features in enumerate(reversed(skips), start=1):
            # What comes in is a skip and as many channels from below: half of that is the skip's number.
            setattr(self, f"up{i}", double_conv(features, max(features // 2, self.width)))
        self.outc = layers.conv(self.width, 3, 1, bias=True, dtype=self.dtype)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns changed images [N, H, W, 3], unclipped, of `images` [N, H, W, 3].

        Raises:
            SettingError: A side of the images is under 2 ** depth, so that halving would leave nothing.
        """
        chex.assert_shape(images, (None, None, None, 3))
        layers.require_side(f"a U-Net of depth {self.depth}", images, 2**self.depth)
        x = self.inc(images, train)
        skips = []
        for i in range(1, self.depth + 1):
            skips.append(x)
            x = getattr(self, f"down{i}")(layers.halve_by_max(x), train)
        for i, skip in enumerate(reversed(skips), start=1):
            x = pad_to(double_bilinear(x), skip.shape[1], skip.shape[2])
            x = getattr(self, f"up{i}")(jnp.concatenate([skip, x], axis=-1), train)
        return layers.at_least_float32(self.outc(x))


def double_bilinear(x: jax.Array) -> jax.Array:
    """Returns `x` [N, H, W, C] at twice its size, bilinear with aligned corners: [N, 2H, 2W, C].

    Source: torch.nn.Upsample(scale_factor=2, mode='bilinear', align_corners=True) of PyTorch.
    """
    rows, columns = (interpolation_matrix(side, x.dtype) for side in x.shape[1:3])
    x = jnp.einsum("ph,nhwc->npwc", rows, x)
    return jnp.einsum("qw,npwc->npqc", columns, x)


def interpolation_matrix(side: int, dtype: jax.typing.DTypeLike) -> np.ndarray:
    """Returns the [2 side, side] matrix that doubles a line of pixels, the first and last of which stay.

    Each row sums to 1 in its own type, exactly, so that a line of one color keeps it: rounded by themselves, the
    weights of a type of few digits would draw a pattern.
    """
    matrix = np.zeros((2 * side, side), dtype)
    for row in range(2 * side):
        position = row * (side - 1) / (2 * side - 1)
        nearer = round(position)
        weight = np.asarray(1 - abs(position - nearer), dtype)  # at least a half, so that what is left to 1 is exact
        matrix[row, nearer] = weight
        if weight < 1:
            matrix[row, nearer + (1 if position > nearer else -1)] = 1 - weight
    return matrix


def pad_to(x: jax.Array, height: int, width: int) -> jax.Array:
    """Returns `x` [N, h, w, C] with zeros around to [N, height, width, C]; an odd one goes below or right."""
    down, right = height - x.shape[1], width - x.shape[2]
    return jnp.pad(x, ((0, 0), (down // 2, down - down // 2), (right // 2, right - right // 2), (0, 0)))
