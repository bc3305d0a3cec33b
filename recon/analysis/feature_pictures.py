"""Pictures of layers, latents and codes, as matplotlib Figures that belong to no window.

Original and reconstruction are (H, W) or (H, W, 3) uint8. The maps of one image are (C, h, w)
or (F,), codes (h, w) int64.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from recon.analysis.layers import (
    CUT,
    channel_grid,
    equalise,
    fold,
    grey_levels,
    mean_over_channels,
    stretch,
)
from recon.models.codebook import perplexity

__all__ = ["draw_channels", "draw_code_use", "draw_latent", "draw_layers"]

Pixels = NDArray[np.uint8]

INK, GREY, FRAME = "#24282f", "#4a4f59", "#d8dce2"
COLOURS = "viridis"
SMOOTH = "antialiased"  # where pixels are left out, else the regular ones of a decoder make moiré
DPI = 120
PANEL = 1.7  # inches, edge of a picture in the overview
HEADING = 0.52  # inches, above each of them
GAP = 0.16  # inches, between them
WIDE = 2.4  # inches, edge of a picture of a latent
ENDS = (1.0, 99.0)  # percentiles at the ends of a colour scale: single values would darken the rest
NAME_CHARACTERS = 28  # longer names of layers lose their beginning
GOLDEN = (math.sqrt(5) - 1) / 2  # turns of the colour wheel: no two near numbers look alike


def draw_layers(
    original: Pixels,
    maps: Mapping[str, Tensor],
    reconstruction: Pixels,
    *,
    kinds: Mapping[str, str] | None = None,
) -> Figure:
    """Input, the mean over the channels of every layer, and reconstruction.

    Each layer has a colour scale of its own, whose ends stand below its name.

    Args:
        original: The input.
        maps: Of one image, by the names of the layers.
        reconstruction: Of the same size.
        kinds: Names of the kinds of the layers, such as Conv2d.
    """
    count = len(maps) + 2
    height = PANEL * original.shape[0] / original.shape[1]
    columns = _columns(count, height + HEADING)
    figure, places = _lay_out(count, columns, (PANEL, height))
    _show(places[0], original, "Input", _size(original.shape))
    for place, (name, of_layer) in zip(places[1:-1], maps.items(), strict=True):
        picture = mean_over_channels(of_layer)
        kind = (kinds or {}).get(name, "")
        about = f"{kind}  {_size(of_layer.shape)}".strip()
        _show(place, picture, _shortened(name), f"{about}\n{_spell(*_limits(picture))}")
    _show(places[-1], reconstruction, "Reconstruction", _size(reconstruction.shape))
    return figure


def draw_channels(name: str, maps: Tensor) -> Figure:
    """Every channel of one layer, on one scale with its colour bar.

    Args:
        name: Of the layer.
        maps: (C, h, w) or (F,).
    """
    grid = channel_grid(maps)
    # As many dots as the grid has pixels, within what a screen shows.
    width = min(max(grid.shape[1] / DPI, 6.0), 14.0)
    height = width * grid.shape[0] / grid.shape[1] + 0.8
    figure = _figure(width + 1.0, height, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(grid, COLOURS, interpolation=SMOOTH, clim=_limits(grid))
    _tidy(axes, f"{name}   {_size(maps.shape)}", size=11)
    bar = figure.colorbar(image, ax=axes, extend="both", shrink=0.9, pad=0.02)
    bar.set_label("output of the layer", color=GREY)
    bar.outline.set_visible(False)
    return figure


def draw_latent(
    original: Pixels, latent: Tensor, reconstruction: Pixels, *, codes: int | None = None
) -> Figure:
    """Input, latent and reconstruction.

    Feature maps are averaged over their channels and shown from black to white, with linear
    contrast, and with histogram equalisation. A vector is shown folded to lines, and as bars. Code
    numbers are shown in colours, above how often each is used.

    Args:
        original: The input.
        latent: (C, h, w), (F,), or code numbers, (h, w) int64.
        reconstruction: Of the same size.
        codes: Size of the codebook, for code numbers.

    Raises:
        ValueError: Code numbers without the size of their codebook.
    """
    if not latent.is_floating_point():
        if codes is None:
            raise ValueError("codes must be the size of the codebook, got None")
        return _draw_codes(original, latent, reconstruction, codes)
    if latent.ndim == 1:
        return _draw_vector(original, latent, reconstruction)
    picture = mean_over_channels(latent)
    about = f"{_size(latent.shape)}{', mean' if len(latent) > 1 else ''}\n"
    about += _spell(picture.min(), picture.max())
    figure, places = _row(original, 5)
    _show(places[0], original, "Input", _size(original.shape))
    _show(places[1], grey_levels(picture), "Latent", about)
    _show(
        places[2], stretch(picture), "Latent, linear contrast", f"{CUT:g} % black, {CUT:g} % white"
    )
    _show(places[3], equalise(picture), "Latent, equalised histogram", "each grey equally often")
    _show(places[4], reconstruction, "Reconstruction", _size(reconstruction.shape))
    return figure


def draw_code_use(counts: NDArray[np.int64]) -> Figure:
    """How often each code of a codebook is used, in the colours of the codes.

    Args:
        counts: (K,).
    """
    figure = _figure(10, 3.2, layout="constrained")
    _draw_use(figure.add_subplot(), counts)
    return figure


def _draw_vector(original: Pixels, latent: Tensor, reconstruction: Pixels) -> Figure:
    figure, places = _row(original, 3, below=1.6)
    folded = fold(latent)
    _show(places[0], original, "Input", _size(original.shape))
    about = f"{len(latent)} numbers, line by line\n{_spell(*_limits(folded))}"
    _show(places[1], folded, "Latent", about)
    _show(places[2], reconstruction, "Reconstruction", _size(reconstruction.shape))
    axes = _below(figure)
    axes.bar(np.arange(len(latent)), latent.cpu().numpy(), width=1.0, color=GREY)
    axes.axhline(0, color=FRAME, linewidth=0.8)
    axes.set_xlabel("place in the latent", color=GREY, fontsize=8)
    axes.set_xlim(-0.5, len(latent) - 0.5)
    return figure


def _draw_codes(original: Pixels, codes: Tensor, reconstruction: Pixels, size: int) -> Figure:
    figure, places = _row(original, 3, below=1.9)
    numbers = codes.cpu().numpy()
    _show(places[0], original, "Input", _size(original.shape))
    _show(
        places[1], code_colours(size)[numbers], "Codes", f"{_size(codes.shape)}, a colour for each"
    )
    _show(places[2], reconstruction, "Reconstruction", _size(reconstruction.shape))
    _draw_use(_below(figure), np.bincount(numbers.ravel(), minlength=size))
    return figure


def _draw_use(axes: Axes, counts: NDArray[np.int64]) -> None:
    size = len(counts)
    axes.bar(np.arange(size), counts, width=1.0, color=code_colours(size) / 255)
    used = f"{np.count_nonzero(counts)} of {size} codes used"
    title = f"{used}, perplexity {perplexity(torch.from_numpy(counts)):.1f}"
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.set_xlabel("code number", color=GREY, fontsize=8)
    axes.set_ylabel("times used", color=GREY, fontsize=8)
    axes.set_xlim(-0.5, size - 0.5)
    _soften(axes)


def code_colours(size: int) -> Pixels:
    """A colour for each code, (K, 3)."""
    numbers = np.arange(size)
    hues = numbers * GOLDEN % 1
    saturations, values = 0.45 + 0.5 * (numbers % 3) / 2, 0.95 - 0.35 * (numbers % 4) / 3
    colours: Pixels = np.rint(
        hsv_to_rgb(np.stack([hues, saturations, values], axis=-1)) * 255
    ).astype(np.uint8)
    return colours


def _columns(count: int, height: float) -> int:
    """Panels in a line, for a figure about half as wide again as high."""
    return min(count, max(5, round(math.sqrt(1.5 * count * height / (PANEL + GAP)))))


def _row(original: Pixels, count: int, *, below: float = 0.0) -> tuple[Figure, list[Axes]]:
    """Panels beside each other, above so many inches for an axes of the figure's width."""
    height = WIDE * original.shape[0] / original.shape[1]
    return _lay_out(count, count, (WIDE, height), below=below)


def _lay_out(
    count: int, columns: int, panel: tuple[float, float], *, below: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """Panels in lines, by inches: matplotlib's own layouts take seconds for a hundred."""
    edge, height = panel
    rows = -(-count // columns)
    width = columns * (edge + GAP) + GAP
    whole = rows * (HEADING + height) + GAP + below
    figure = _figure(width, whole)
    places = []
    for number in range(count):
        row, column = divmod(number, columns)
        left = GAP + column * (edge + GAP)
        bottom = whole - (row + 1) * (HEADING + height)
        box = (left / width, bottom / whole, edge / width, height / whole)
        places.append(figure.add_axes(box))
    return figure, places


def _below(figure: Figure) -> Axes:
    """Axes under the panels of a row, as wide as they."""
    width, whole = figure.get_size_inches()
    top = figure.axes[0].get_position().y0 * whole
    left, bottom, right = 0.62, 0.5, GAP
    box = (
        left / width,
        bottom / whole,
        (width - left - right) / width,
        (top - bottom - 0.42) / whole,
    )
    axes = figure.add_axes(box)
    _soften(axes)
    return axes


def _figure(width: float, height: float, **options: Any) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, **options)
    FigureCanvasAgg(figure)
    return figure


def _show(axes: Axes, picture: NDArray[Any], title: str, about: str) -> None:
    """A picture under its title and what is to be known of it."""
    limits = (0, 255) if picture.dtype == np.uint8 else _limits(picture)
    colours = "gray" if picture.dtype == np.uint8 else COLOURS
    axes.imshow(picture, colours, interpolation=SMOOTH, clim=limits)
    axes.set_anchor("NW")
    above: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate(title, (0, 1), (0, 24), fontsize=8, color=INK, **above)
    axes.annotate(about, (0, 1), (0, 20), fontsize=6.5, color=GREY, va="top", **above)
    _frame(axes)


def _tidy(axes: Axes, title: str, *, size: float) -> None:
    axes.set_title(title, fontsize=size, color=INK, loc="left", parse_math=False)
    _frame(axes)


def _frame(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(FRAME)


def _soften(axes: Axes) -> None:
    """Axes of a chart in the grey of the house."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FRAME)
    axes.tick_params(colors=GREY, labelsize=7, length=3)


def _size(shape: Sequence[int]) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(map(str, shape))


def _limits(picture: NDArray[Any]) -> tuple[float, float]:
    """The values at the ends of the colour scale."""
    low, high = np.nanpercentile(picture, ENDS)
    return float(low), float(high)


def _spell(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}"


def _shortened(name: str) -> str:
    if len(name) <= NAME_CHARACTERS:
        return name
    return "…" + name[1 - NAME_CHARACTERS :]
