"""Cut the tiles of this folder out of two pictures that scikit-image ships.

    python input_images/cut_images.py

The result is the same pixel for pixel each time. Pictures and tiles are uint8, (H, W, 3) in
[0, 255]; positions are (x, y) of a tile's upper left corner, in pixels.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data

TILE = 256

IHC_TRAIN_ROWS = range(0, 257, 32)
IHC_TEST_ROWS = (0, 128, 256)

RETINA_START = 65
"""Centres five tiles of 256 pixels on the 1411 pixels of the picture."""

RETINA_COLUMNS = ("train/retina_left",) * 2 + ("train/retina_middle",) + ("test/retina",) * 2

DARK, LARGEST_DARK_SHARE = 30, 0.25
"""A retina tile is left out where more than this share of its pixels has a mean level below 30:
that is the black surround of the photograph."""


class Region(NamedTuple):
    """A tile's folder below this one, its source, and its upper left corner in pixels."""

    folder: str
    source: str
    x: int
    y: int

    @property
    def file(self) -> Path:
        """Path below this folder."""
        return Path(self.folder) / f"{self.source}_x{self.x:04d}_y{self.y:04d}.png"


def regions() -> list[Region]:
    """All positions that are looked at, before mostly black tiles are left out."""
    return [
        *(Region("train/ihc", "ihc", 0, y) for y in IHC_TRAIN_ROWS),
        *(Region("test/ihc", "ihc", TILE, y) for y in IHC_TEST_ROWS),
        *(
            Region(folder, "retina", RETINA_START + TILE * column, RETINA_START + TILE * row)
            for column, folder in enumerate(RETINA_COLUMNS)
            for row in range(5)
        ),
    ]


def tiles() -> Iterator[tuple[Region, NDArray[np.uint8]]]:
    """Yield every tile that ships, with where it comes from."""
    ihc = data.immunohistochemistry()  # type: ignore[no-untyped-call]
    retina = data.retina()  # type: ignore[no-untyped-call]
    pictures = {"ihc": ihc, "retina": retina}
    for region in regions():
        rows, columns = slice(region.y, region.y + TILE), slice(region.x, region.x + TILE)
        tile = pictures[region.source][rows, columns]
        if region.source == "ihc" or (tile.mean(axis=-1) < DARK).mean() <= LARGEST_DARK_SHARE:
            yield region, tile


def main() -> None:
    """Write the tiles as PNG beside this script."""
    here = Path(__file__).parent
    for region, tile in tiles():
        path = here / region.file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(path, optimize=True)


if __name__ == "__main__":
    main()
