"""The course of a training as a picture, drawn with matplotlib's Figure and without pyplot."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from recon.files import replacing

BLUE, ORANGE, GREEN, PURPLE, GREY = "#2f5d8a", "#d9772b", "#3c8d5a", "#7b5aa6", "#4a4f59"

MARKED = 30
"""Curves of at most so many epochs bear markers, without which a single one would not be seen."""

DECADES = 30.0
"""A loss that falls by more than this factor is drawn on a logarithmic scale."""

FURTHER = {
    "Parts of the loss": ("Reconstruction Loss", "KL", "Commitment"),
    "Use of the codebook": ("Perplexity", "Codes Used"),
}
"""Panels of a network with a prior or a codebook, and the columns of the log that they show."""


def plot_curves(columns: Mapping[str, Sequence[float]], path: Path) -> None:
    """Save the course of a training as a PNG.

    Args:
        columns: See `draw_curves`.
        path: Where the picture goes; it appears whole or not at all.
    """
    with replacing(path) as partial:
        draw_curves(columns).savefig(partial, format="png")


def draw_curves(columns: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the course of a training.

    Args:
        columns: The training log by column: "Epoch" and any of "Loss", "Validation Loss",
            "Validation PSNR" (dB), "Validation SSIM", and of `FURTHER`; others are not drawn.
            Values that are NaN, None, infinite or missing at the end are left out; the line joins
            their neighbours.
    """
    curves = {name: _finite_points(columns, name) for name in columns}
    curves = {name: points for name, points in curves.items() if points.size}
    quality = [name for name in ("Validation PSNR", "Validation SSIM") if name in curves]
    further = [title for title, names in FURTHER.items() if any(n in curves for n in names)]
    panels = 1 + bool(quality) + len(further)
    figure = Figure(figsize=(6 if panels == 1 else 5 * panels, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    _draw_losses(axes.pop(0), curves)
    if quality:
        _draw_quality(axes.pop(0), curves)
    for place, title in zip(axes, further, strict=True):
        _draw_further(place, title, curves)
    return figure


def _finite_points(columns: Mapping[str, Sequence[float]], name: str) -> NDArray[np.float64]:
    """Epoch and value where both are known, (2, K)."""
    points = np.array(list(zip(columns["Epoch"], columns[name], strict=False)), dtype=np.float64)
    points = points.reshape(-1, 2)
    return points[np.isfinite(points).all(axis=1)].T


def _draw_losses(axes: Axes, curves: Mapping[str, NDArray[np.float64]]) -> None:
    names = {"Loss": ("training", BLUE), "Validation Loss": ("validation", ORANGE)}
    shown = [name for name in names if name in curves]
    for name in shown:
        label, colour = names[name]
        _draw(axes, curves[name], label, colour)
    if shown and _spans_decades(np.concatenate([curves[name][1] for name in shown])):
        axes.set_yscale("log")
    _dress(axes, "Loss", "Mean loss per image")
    if shown:
        axes.legend(frameon=False)
        _centre_single_epoch(axes)


def _spans_decades(values: NDArray[np.float64]) -> bool:
    return bool(values.min() > 0 and values.max() / values.min() > DECADES)


def _draw_quality(axes: Axes, curves: Mapping[str, NDArray[np.float64]]) -> None:
    """PSNR on the left scale and SSIM on the right, each scale in the colour of its curve."""
    scales = {"Validation PSNR": ("PSNR [dB]", GREEN), "Validation SSIM": ("SSIM", PURPLE)}
    shown = [name for name in scales if name in curves]
    _dress(axes, "Quality on validation images", "")
    for place, name in enumerate(shown):
        label, colour = scales[name]
        scale = axes if place == 0 else axes.twinx()
        _draw(scale, curves[name], label, colour, "-" if place == 0 else "--")
        scale.set_ylabel(label, color=colour)
        scale.tick_params(axis="y", colors=colour)
        scale.spines[:].set_visible(False)
        _centre_single_epoch(scale)


def _draw_further(axes: Axes, title: str, curves: Mapping[str, NDArray[np.float64]]) -> None:
    """What a network with a prior or a codebook adds, on one scale."""
    shown = [name for name in FURTHER[title] if name in curves]
    for name, colour in zip(shown, (BLUE, ORANGE, GREEN), strict=False):
        _draw(axes, curves[name], name, colour)
    if _spans_decades(np.concatenate([curves[name][1] for name in shown])):
        axes.set_yscale("log")
    _dress(axes, title, "")
    axes.legend(frameon=False)
    _centre_single_epoch(axes)


def _draw(
    axes: Axes, points: NDArray[np.float64], label: str, colour: str, dash: str = "-"
) -> None:
    marker = "o" if points.shape[1] <= MARKED else ""
    axes.plot(points[0], points[1], dash, marker=marker, markersize=4, color=colour, label=label)


def _dress(axes: Axes, title: str, unit: str) -> None:
    dress(axes, title, "Epoch", unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def dress(axes: Axes, title: str, across: str, up: str) -> None:
    """Give axes the look of all curves: title, labels, grid, no frame."""
    axes.set_title(title, loc="left", fontsize=11, color=GREY)
    axes.set_xlabel(across, color=GREY)
    axes.set_ylabel(up, color=GREY)
    axes.tick_params(colors=GREY)
    axes.grid(color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _centre_single_epoch(axes: Axes) -> None:
    first, last = axes.dataLim.intervalx
    if first == last:
        axes.set_xlim(first - 0.5, last + 0.5)
