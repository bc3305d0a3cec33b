"""Many pictures as one.

Pictures are (N, H, W) or (N, H, W, 3) uint8.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["compose_grid"]

GAP = 4  # pixels
GROUND = 255


def compose_grid(pictures: NDArray[np.uint8]) -> Image.Image:
    """Put pictures into a grid that is about as high as wide in pictures, row after row.

    Args:
        pictures: At least one.

    Raises:
        ValueError: There is no picture.
    """
    count = len(pictures)
    if count == 0:
        raise ValueError("pictures must hold at least one picture, got none")
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    height, width = (extent + GAP for extent in pictures.shape[1:3])
    shape = rows * height + GAP, columns * width + GAP, *pictures.shape[3:]
    grid = np.full(shape, GROUND, np.uint8)
    for place, picture in enumerate(pictures):
        top, left = GAP + place // columns * height, GAP + place % columns * width
        grid[top : top + height - GAP, left : left + width - GAP] = picture
    return Image.fromarray(grid)
