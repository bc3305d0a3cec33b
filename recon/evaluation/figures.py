"""Pictures of single images: side-by-side comparisons, error maps, and rows for a notebook.

Pictures are uint8 arrays (H, W) or (H, W, 3) in [0, 255]; batches of images are float tensors
(N, C, H, W) in [0, 1]. Comparisons are composed with Pillow, which takes about a millisecond; the
rows are a matplotlib Figure without pyplot, which would keep every figure alive.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from recon.evaluation.records import visible

LEGIBLE = 128
"""Pixels: smaller panels are enlarged by a whole factor until their longer side has so many."""

MARGIN = 12
GROUND, FRAME, TITLE, CAPTION = "white", (216, 220, 226), (92, 99, 112), (24, 28, 36)

ERROR_COLOURS = "magma"
GREY = "#4a4f59"

NAME_CHARACTERS = 44
"""Longer names lose their beginning in the narrow headings of ``show_reconstructions``."""


class Panel(NamedTuple):
    """One picture of a comparison.

    Attributes:
        title: Text above it.
        image: (H, W) or (H, W, 3), uint8.
    """

    title: str
    image: NDArray[np.uint8]


class ReconstructionRow(NamedTuple):
    """One image of ``show_reconstructions``.

    Attributes:
        name: Shown above the original.
        original: (H, W) or (H, W, 3), uint8.
        reconstruction: The same shape, uint8.
        mse: Mean squared error in squared [0, 1] intensities.
        psnr: In dB.
        ssim: In [-1, 1].
        noisy: The same shape, uint8: what the network was fed, where that is another.
    """

    name: str
    original: NDArray[np.uint8]
    reconstruction: NDArray[np.uint8]
    mse: float
    psnr: float
    ssim: float
    noisy: NDArray[np.uint8] | None = None


def compose_comparison(panels: Sequence[Panel], caption: str) -> Image.Image:
    """Put pictures side by side, each under its title, over one caption.

    Pixels are shown one to one, or, where the longest side is below ``LEGIBLE`` pixels, enlarged by
    a whole factor common to all panels, without interpolation. The canvas widens where a title or
    the caption needs more room than the pictures, so that no text is ever cut.

    Args:
        panels: At least one; the pictures may differ in size.
        caption: One line.

    Returns:
        An RGB picture on a white ground.

    Raises:
        ValueError: There is no panel.
    """
    if not panels:
        raise ValueError("panels must hold at least one panel, got none")
    longest = max(max(panel.image.shape[:2]) for panel in panels)
    factor = -(-LEGIBLE // longest)
    font = _font(_text_size(longest * factor))
    caption = visible(caption)
    row = _compose_row(panels, factor, font)
    line = _line_height(font)
    width = max(row.width, _width(font, caption)) + 2 * MARGIN
    canvas = Image.new("RGB", (width, row.height + line + 3 * MARGIN), GROUND)
    canvas.paste(row, ((width - row.width) // 2, MARGIN))
    middle = (width // 2, canvas.height - MARGIN - line // 2)
    ImageDraw.Draw(canvas).text(middle, caption, CAPTION, font, anchor="mm")
    return canvas


def _compose_row(panels: Sequence[Panel], factor: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """The framed pictures side by side, each centred under its title."""
    pictures = [_enlarge(panel.image, factor) for panel in panels]
    titles = [visible(panel.title) for panel in panels]
    widths = [
        max(picture.width + 2, _width(font, title))
        for picture, title in zip(pictures, titles, strict=True)
    ]
    line = _line_height(font)
    top = line + MARGIN // 2
    height = top + max(picture.height for picture in pictures) + 1
    row = Image.new("RGB", (sum(widths) + MARGIN * (len(widths) - 1), height), GROUND)
    draw = ImageDraw.Draw(row)
    left = 0
    for width, picture, title in zip(widths, pictures, titles, strict=True):
        draw.text((left + width // 2, line // 2), title, TITLE, font, anchor="mm")
        _paste_framed(draw, row, picture, (left + (width - picture.width) // 2, top))
        left += width + MARGIN
    return row


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return round(font.size * 1.3)


def _width(font: ImageFont.FreeTypeFont, text: str) -> int:
    return math.ceil(font.getlength(text))


def _enlarge(image: NDArray[np.uint8], factor: int) -> Image.Image:
    picture = Image.fromarray(image)
    if factor == 1:
        return picture
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST)


def _text_size(longest: int) -> int:
    """Height of the text in pixels: readable beside small tiles, in proportion to large ones."""
    return min(max(13, longest // 18), 40)


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow must be built with FreeType to draw captions")
    return font


def _paste_framed(
    draw: ImageDraw.ImageDraw, ground: Image.Image, picture: Image.Image, corner: tuple[int, int]
) -> None:
    """Paste inside a thin frame, without which a white tile would melt into the ground."""
    x, y = corner
    draw.rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline=FRAME)
    ground.paste(picture, corner)


def to_picture(images: Tensor) -> NDArray[np.uint8]:
    """Turn a batch of images into pictures.

    Args:
        images: (N, C, H, W) with one or three channels, in [0, 1]; values outside are clamped.

    Returns:
        (N, H, W, 3), or (N, H, W) for one channel; rounded to the nearest of 256 levels.

    Raises:
        ValueError: Another shape.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be (N, 1 or 3, H, W), got {tuple(images.shape)}")
    levels = images.detach().float().clamp(0, 1).mul_(255).round_().to(torch.uint8)
    pictures: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pictures[..., 0] if images.shape[1] == 1 else pictures


def error_map(
    original: NDArray[np.uint8], reconstruction: NDArray[np.uint8], *, ceiling: float = 0.25
) -> NDArray[np.uint8]:
    """Colour the absolute error on a scale that is the same for every image.

    Args:
        original: (H, W) or (H, W, 3).
        reconstruction: The same shape.
        ceiling: Error, in [0, 1] intensities, that the brightest colour stands for; larger errors
            share it.

    Returns:
        (H, W, 3).

    Raises:
        ValueError: The shapes differ or the ceiling is not positive.
    """
    if ceiling <= 0:
        raise ValueError(f"ceiling must be above 0, got {ceiling}")
    levels = np.minimum(_mean_error(original, reconstruction) * (255 / ceiling), 255)
    coloured: NDArray[np.uint8] = _palette()[np.rint(levels).astype(np.uint8)]
    return coloured


@lru_cache(maxsize=1)
def _palette() -> NDArray[np.uint8]:
    """Colours of the 256 levels, (256, 3)."""
    colours: NDArray[np.uint8] = colormaps[ERROR_COLOURS](np.arange(256), bytes=True)[:, :3]
    return colours


def _mean_error(
    original: NDArray[np.uint8], reconstruction: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Mean absolute error over channels, (H, W), in [0, 1] intensities."""
    if original.shape != reconstruction.shape:
        shapes = f"{original.shape} and {reconstruction.shape}"
        raise ValueError(f"original and reconstruction must be of one shape, got {shapes}")
    difference = original.astype(np.float32) - reconstruction.astype(np.float32)
    error: NDArray[np.float32] = np.abs(difference)
    if error.ndim == 3:
        error = np.mean(error, axis=-1, dtype=np.float32)
    error /= 255
    return error


def show_reconstructions(rows: Sequence[ReconstructionRow], *, ceiling: float = 0.25) -> Figure:
    """Draw original, reconstruction and error map of each image, with one colour bar.

    Args:
        rows: At least one; with a noisy picture, which is drawn after the original, all or none.
        ceiling: Error, in [0, 1] intensities, at the top of the colour bar of all images.

    Returns:
        A figure that belongs to no window and is freed with its last reference.

    Raises:
        ValueError: There is no row.
    """
    if not rows:
        raise ValueError("rows must hold at least one image, got none")
    columns = 3 if rows[0].noisy is None else 4
    figure = Figure(figsize=(10 * columns / 3, 3.5 * len(rows)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        last = _draw_row(axes, row, ceiling)
    bar = figure.colorbar(last, ax=grid[:, -1].tolist(), extend="max", shrink=0.9)
    bar.set_label("error, in intensities from 0 to 1", color=GREY)
    bar.outline.set_visible(False)
    return figure


def _draw_row(axes: Sequence[Axes], row: ReconstructionRow, ceiling: float) -> AxesImage:
    quality = f"MSE {row.mse:.5f}   PSNR {row.psnr:.2f} dB   SSIM {row.ssim:.4f}"
    name = visible(row.name)
    if len(name) > NAME_CHARACTERS:
        name = "…" + name[1 - NAME_CHARACTERS :]
    pictures = [(f"Original\n{name}", row.original)]
    if row.noisy is not None:
        pictures.append(("Noisy\nwhat the network is fed", row.noisy))
    pictures.append((f"Reconstruction\n{quality}", row.reconstruction))
    for place, (title, picture) in zip(axes, pictures, strict=False):
        place.imshow(picture, cmap="gray", vmin=0, vmax=255)
        _entitle(place, title)
    error = _mean_error(row.original, row.reconstruction)
    _entitle(axes[-1], "Absolute error\nmean over channels")
    return axes[-1].imshow(error, cmap=ERROR_COLOURS, vmin=0, vmax=ceiling)


def _entitle(place: Axes, title: str) -> None:
    place.set_title(title, fontsize=9, color=GREY, parse_math=False, linespacing=1.5)
    place.set_axis_off()
