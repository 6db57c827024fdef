"""A picture of what an attack does to images: clean, triggered, and the difference made visible."""

import chex
import numpy as np
from PIL import Image, ImageDraw

_GAP, _HEADER = 4, 16


def contact_sheet(clean: np.ndarray, triggered: np.ndarray, factor: int = 8) -> Image.Image:
    """Puts images side by side, one row each: clean | triggered | absolute difference, times a factor.

    Args:
        clean: uint8. [N, H, W, 3]
        triggered: The same images, with the trigger or as they are in the poisoned training set. [N, H, W, 3]
        factor: What the difference is multiplied with before it is cut off at 255; stands above the column.

    Returns:
        The sheet; images smaller than 96 pixels are enlarged by a whole number, pixel by pixel.
    """
    chex.assert_rank(clean, 4)
    chex.assert_equal_shape([clean, triggered])
    difference = np.abs(clean.astype(np.int32) - triggered) * factor
    columns = {
        "clean": clean,
        "triggered": triggered,
        f"difference x {factor}": np.minimum(difference, 255).astype(np.uint8),
    }
    count, height, width = clean.shape[:3]
    zoom = max(1, 96 // min(height, width))
    tile_height, tile_width = height * zoom, width * zoom
    size = (len(columns) * (tile_width + _GAP) - _GAP, _HEADER + count * (tile_height + _GAP) - _GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, (title, images) in enumerate(columns.items()):
        left = number * (tile_width + _GAP)
        draw.text((left + 2, 2), title, fill="black")
        for row, image in enumerate(images):
            enlarged = Image.fromarray(image).resize((tile_width, tile_height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left, _HEADER + row * (tile_height + _GAP)))
    return sheet
