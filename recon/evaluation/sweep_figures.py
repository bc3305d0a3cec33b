"""The trials of a sweep as pictures, drawn with matplotlib's Figure and without pyplot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from recon.evaluation.curves import BLUE, GREY, ORANGE
from recon.files import replacing

__all__ = ["Scale", "plot_importances", "plot_loss_curves", "plot_parallel"]

GRID = "#e6e9ed"
CURVES = 10
LOG_SPAN = 4.0
"""Losses that differ by more than this factor are drawn on a logarithmic scale."""

TICKS = 5  # on a range
LABELLED = 12  # choices; of more, some are labelled
STEPS = np.linspace(0, 1, 24)  # of a line between two scales
SPREAD = 0.035  # lines through the same choice, either way, in heights of a scale


class Scale(NamedTuple):
    """One setting of a sweep, as a scale of the parallel coordinates.

    Attributes:
        name: Of the setting.
        values: One for each trial.
        choices: What was tried, from bottom to top; None for a range.
        log: Whether a range is logarithmic.
    """

    name: str
    values: Sequence[Any]
    choices: Sequence[Any] | None = None
    log: bool = False


def plot_loss_curves(curves: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw the validation loss of the best trials by epoch.

    Args:
        curves: Losses of every epoch by the name of the trial, the best first.
        path: Of the picture; it appears whole or not at all.
    """
    figure, axes = _figure(9, 4.6)
    shown = list(curves.items())[:CURVES]
    colours = _colours(len(shown))
    for rank, (name, losses) in reversed(list(enumerate(shown))):
        epochs = np.arange(1, len(losses) + 1)
        width, lowest = (2.4 if rank == 0 else 1.3), int(np.argmin(losses))
        label = f"{name}  {losses[lowest]:.4g}"
        axes.plot(epochs, losses, color=colours[rank], linewidth=width, label=label)
        axes.plot(epochs[lowest], losses[lowest], "o", color=colours[rank], markersize=3 + width)
    if _needs_log(np.concatenate([np.asarray(losses) for _, losses in shown])):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    best = "best trial" if len(shown) == 1 else f"{len(shown)} best trials"
    axes.set_title(f"Validation loss of the {best}", loc="left", fontsize=11, color=GREY)
    axes.set_xlabel("Epoch", color=GREY)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    handles, labels = axes.get_legend_handles_labels()
    legend = axes.legend(
        handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False,
        fontsize=9, labelcolor=GREY, title="Lowest", title_fontsize=9, alignment="left",
    )  # fmt: skip
    legend.get_title().set_color(GREY)
    _save(figure, path)


def plot_parallel(scales: Sequence[Scale], losses: Sequence[float], path: Path) -> None:
    """Draw every completed trial as a line through its settings and its loss.

    Args:
        scales: One for each setting.
        losses: Lowest validation loss of each trial.
        path: Of the picture; it appears whole or not at all.
    """
    order = np.argsort(losses, kind="stable")  # the best first
    log = _needs_log(np.asarray(losses))
    columns = [*scales, Scale("Validation loss", losses, log=log)]
    ranks = np.argsort(order, kind="stable")
    heights = np.stack([_place(scale, scale.values, ranks) for scale in columns])
    figure, axes = _figure(max(6, 1.9 * len(columns)), 4.6)
    colours = _colours(len(order))
    for rank, trial in reversed(list(enumerate(order))):
        width, opacity = (2.8, 1.0) if rank == 0 else (1.3, 0.7)
        x, y = _bend(heights[:, trial])
        axes.plot(x, y, color=colours[rank], linewidth=width, alpha=opacity)
    for place, scale in enumerate(columns):
        _draw_scale(axes, place, scale)
    axes.set_xlim(-0.25, len(columns) - 0.55)
    axes.set_ylim(-0.06, 1.06)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_xticks(range(len(columns)), [scale.name for scale in columns], fontsize=10)
    axes.tick_params(length=0, pad=8, colors=GREY)
    axes.set_title(
        "Completed trials: the best in orange, the others darker the better they are; "
        "lines through one choice are spread",
        loc="left", fontsize=11, color=GREY, pad=12,
    )  # fmt: skip
    _save(figure, path)


def plot_importances(importances: Mapping[str, float], path: Path) -> None:
    """Draw the part of each setting in reaching the best results.

    Args:
        importances: Shares by setting, the largest first.
        path: Of the picture; it appears whole or not at all.
    """
    names, shares = list(importances), list(importances.values())
    figure, axes = _figure(7, 1.3 + 0.42 * len(names))
    axes.barh(names, shares, color=BLUE, height=0.62)
    for place, share in enumerate(shares):
        axes.text(share + 0.01, place, f"{100 * share:.0f} %", va="center", color=GREY, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(shares) * 1.12 + 0.02)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.set_title(
        "Part of each setting in reaching the best trials", loc="left", fontsize=11, color=GREY
    )
    _save(figure, path)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty picture, in inches."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.tick_params(colors=GREY)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def _colours(count: int) -> list[Any]:
    """Orange for the best; for the others, dark blue to pale."""
    return [ORANGE, *colormaps["YlGnBu"](np.linspace(0.95, 0.3, max(count - 1, 1)))][:count]


def _needs_log(values: NDArray[np.float64]) -> bool:
    return bool(values.min() > 0 and values.max() / values.min() > LOG_SPAN)


def _bounds(scale: Scale) -> tuple[float, float]:
    """Lowest and highest value of a range, in logarithms where it is logarithmic."""
    values = np.asarray(scale.values, dtype=np.float64)
    values = np.log10(values) if scale.log else values
    return float(values.min()), float(values.max())


def _place(scale: Scale, values: Sequence[Any], ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Heights of values on a scale, in [0, 1]."""
    if scale.choices is not None:
        last = len(scale.choices) - 1
        places = np.array([list(scale.choices).index(value) for value in values])
        spread = np.linspace(SPREAD, -SPREAD, len(ranks))[ranks] if len(ranks) > 1 else 0.0
        return (places / last if last else places + 0.5) + spread  # The best on top.
    low, high = _bounds(scale)
    numbers = np.asarray(values, dtype=np.float64)
    numbers = np.log10(numbers) if scale.log else numbers
    return (numbers - low) / (high - low) if high > low else np.full(len(numbers), 0.5)


def _bend(heights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A line through a trial's heights that is level at every scale."""
    ease = STEPS * STEPS * (3 - 2 * STEPS)
    x = (np.arange(len(heights) - 1)[:, None] + STEPS).ravel()
    y = (heights[:-1, None] + np.diff(heights)[:, None] * ease).ravel()
    return x, y


def _draw_scale(axes: Axes, x: int, scale: Scale) -> None:
    axes.axvline(x, color=GREY, linewidth=1, zorder=3)
    box = {"facecolor": "white", "alpha": 0.9, "edgecolor": "none", "pad": 1.2}
    for height, text in _ticks(scale):
        axes.plot([x], [height], "_", color=GREY, markersize=7, zorder=4)
        axes.annotate(
            text, (x, height), (6, 0), textcoords="offset points", va="center", fontsize=9,
            color=GREY, bbox=box, zorder=5,
        )  # fmt: skip


def _ticks(scale: Scale) -> list[tuple[float, str]]:
    """Heights and what stands there."""
    if scale.choices is not None:
        last = len(scale.choices) - 1
        every = -(-len(scale.choices) // LABELLED)
        shown = list(enumerate(scale.choices))[::every]
        return [(place / last if last else 0.5, str(choice)) for place, choice in shown]
    low, high = _bounds(scale)
    if low == high:
        return [(0.5, f"{10**low if scale.log else low:.3g}")]
    numbers = np.linspace(low, high, TICKS)
    heights = np.linspace(0, 1, TICKS).tolist()
    spelt = [f"{10**number if scale.log else number:.3g}" for number in numbers]
    return list(zip(heights, spelt, strict=True))
