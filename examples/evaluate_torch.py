"""Runs the U-Net of an export in PyTorch, for a classifier that lives there; nothing of refine_jax is needed.

    pip install torch numpy safetensors
    python examples/evaluate_torch.py EXPORT IMAGES.npy OUTPUT.npz

Writes T(x) = clip(U-Net(x), 0, 1) of images, RGB, uint8 or float in [0, 1] [N, H, W, 3], as 'transformed', float32 of
the same shape, and the output mapping as 'permutation'. T(x) is an image that any classifier can be shown, also one
behind an API: its probability of class i is then the defended probability of class permutation[i]. In PyTorch:

    unet = load_unet(pathlib.Path("export"))
    transformed = unet(images).clamp(0, 1)             # images in [0, 1], [N, 3, H, W]
    permutation = torch.tensor(read_manifest(pathlib.Path("export"))["permutation"])
    # What normalizes images for the classifier is a part of it here.
    probabilities = classifier(transformed).softmax(1)[:, permutation.argsort()]

The modules are named as in REFINE's released program, so its UNetLittle takes unet_torch.safetensors as well.
"""

import argparse
import hashlib
import json
import pathlib
import sys
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

BATCH_SIZE = 64


class DoubleConv(nn.Module):
    """Two 3 x 3 convolutions, each with batch normalization and ReLU."""

    def __init__(self, inputs: int, middle: int, outputs: int):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((inputs, middle), (middle, outputs)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.double_conv(x)


class Down(nn.Module):
    """Half the size, then a DoubleConv."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(inputs, outputs, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.maxpool_conv(x)


class Up(nn.Module):
    """Twice the size, beside what was kept of this size, then a DoubleConv."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.conv = DoubleConv(inputs, inputs // 2, outputs)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        down, right = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = nn.functional.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2])
        return self.conv(torch.cat([skip, x], dim=1))


class UNet(nn.Module):
    """The network that changes the images: [N, 3, H, W] -> [N, 3, H, W], unclipped."""

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.depth = depth
        self.inc = DoubleConv(3, width, width)
        levels = [width * 2**i for i in range(depth)]
        for i, (inputs, outputs) in enumerate(zip(levels, [*levels[1:], levels[-1]], strict=True), start=1):
            setattr(self, f"down{i}", Down(inputs, outputs))
        for i, kept in enumerate(reversed(levels), start=1):
            setattr(self, f"up{i}", Up(2 * kept, max(kept // 2, width)))
        self.outc = nn.ModuleDict({"conv": nn.Conv2d(width, 3, 1)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = [self.inc(x)]
        for i in range(1, self.depth + 1):
            kept.append(getattr(self, f"down{i}")(kept[-1]))
        x = kept.pop()
        for i in range(1, self.depth + 1):
            x = getattr(self, f"up{i}")(x, kept.pop())
        return self.outc["conv"](x)


def read_manifest(directory: pathlib.Path) -> dict[str, Any]:
    """Returns what manifest.json of an export holds."""
    return json.loads((directory / "manifest.json").read_text())


def load_unet(directory: pathlib.Path) -> UNet:
    """Returns the U-Net of an export, in inference mode; its file is used only where the SHA-256 is the manifest's."""
    manifest, name = read_manifest(directory), "unet_torch.safetensors"
    data = (directory / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest["files"][name]["sha256"]:
        sys.exit(f"error: {directory / name} was altered: its SHA-256 is not the one in manifest.json")
    unet = UNet(manifest["unet"]["width"], manifest["unet"]["depth"])
    unet.load_state_dict(safetensors.torch.load(data))
    return unet.eval()


@torch.no_grad()
def transform(unet: UNet, images: np.ndarray, manifest: dict[str, Any]) -> np.ndarray:
    """Returns T(x) of images, float32 [N, H, W, 3], for images uint8 or float in [0, 1]."""
    scaled = images.astype(np.float32) / 255 if images.dtype == np.uint8 else images.astype(np.float32)
    if manifest["objective"]["unet_input"] == "normalized":
        # The preset authors_code: the U-Net takes what the classifier's network does, and that takes T(x) as it is.
        classifier = manifest["classifier"]
        if classifier["input_size"] not in (None, list(images.shape[1:3])):
            sys.exit(f"error: this U-Net takes images that were resized to {classifier['input_size']}")
        scaled = scaled[..., ::-1] if classifier["channels"] == "BGR" else scaled
        scaled = (scaled - np.float32(classifier["mean"])) / np.float32(classifier["std"])
    batches = []
    for start in range(0, len(scaled), BATCH_SIZE):
        batch = torch.from_numpy(scaled[start : start + BATCH_SIZE]).permute(0, 3, 1, 2)
        batches.append(unet(batch).clamp(0, 1).permute(0, 2, 3, 1).numpy())
    return np.concatenate(batches)


def main() -> None:
    """Reads the command line, and writes the transformed images."""
    parser = argparse.ArgumentParser(description="Writes the images that a defended classifier is shown.")
    for name in ("export", "images", "output"):
        parser.add_argument(name, type=pathlib.Path)
    given = parser.parse_args()
    manifest = read_manifest(given.export)
    transformed = transform(load_unet(given.export), np.load(given.images), manifest)
    np.savez_compressed(given.output, transformed=transformed, permutation=manifest["permutation"])


if __name__ == "__main__":
    main()
