"""What a network makes of more and more noise, as a table and as a picture.

Noise is Gaussian, its standard deviation in intensities 0..1; figures are means over images.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from recon.evaluation.curves import BLUE, ORANGE, dress
from recon.evaluation.summary import Summary
from recon.files import replacing

__all__ = ["NOISE_COLUMNS", "NoiseRow", "draw_noise_curves", "noise_row", "write_noise_curves"]


class NoiseRow(NamedTuple):
    """One deviation of the noise."""

    sigma: float
    images: int
    noisy_mse: float
    mse: float
    noisy_psnr: float  # dB; inf where no image differs from its original
    psnr: float  # dB, likewise
    gain: float  # dB, mean over the images; NaN where no image has one
    noisy_ssim: float
    ssim: float


NOISE_COLUMNS = (
    "Noise",
    "Images",
    "Noisy MSE",
    "MSE",
    "Noisy PSNR",
    "PSNR",
    "PSNR Gain",
    "Noisy SSIM",
    "SSIM",
)
"""Headings of the fields of a NoiseRow, in their order."""


def noise_row(sigma: float, summary: Summary) -> NoiseRow:
    """The means of one evaluation.

    Args:
        sigma: Deviation of the noise.
        summary: Of records that hold a noisy input.
    """
    entries = {entry.metric: entry for entry in summary.statistics}

    def mean(metric: str) -> float:
        # Identical images, whose PSNR is infinite, are left out; where all are, so is the mean.
        return entries[metric].mean if entries[metric].images else float("inf")

    return NoiseRow(
        sigma,
        entries["MSE"].images,
        noisy_mse=mean("Noisy MSE"),
        mse=mean("MSE"),
        noisy_psnr=mean("Noisy PSNR"),
        psnr=mean("PSNR"),
        gain=entries["PSNR Gain"].mean,
        noisy_ssim=mean("Noisy SSIM"),
        ssim=mean("SSIM"),
    )


def write_noise_curves(rows: Sequence[NoiseRow], table: Path, picture: Path) -> None:
    """Save rows as csv, and their curves as PNG.

    Args:
        rows: In the order in which they shall stand.
        table: Where the csv goes.
        picture: Where the curves go; drawn in the order of the noise.
    """
    with replacing(table) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(NOISE_COLUMNS)
        writer.writerows(rows)
    with replacing(picture) as partial:
        draw_noise_curves(rows).savefig(partial, format="png")


def draw_noise_curves(rows: Sequence[NoiseRow]) -> Figure:
    """Draw PSNR and SSIM of noisy images and of their reconstructions, over the noise."""
    rows = sorted(rows)
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    noise = [row.sigma for row in rows]
    _draw(left, noise, [row.noisy_psnr for row in rows], [row.psnr for row in rows])
    _draw(right, noise, [row.noisy_ssim for row in rows], [row.ssim for row in rows])
    dress(left, "PSNR", "Standard deviation of the noise", "PSNR [dB]")
    dress(right, "SSIM", "Standard deviation of the noise", "SSIM")
    left.legend(frameon=False)
    return figure


def _draw(
    axes: Axes, noise: Sequence[float], before: Sequence[float], after: Sequence[float]
) -> None:
    """Two curves; infinite values, those of images without noise, are left out."""
    for values, label, colour, dash in (
        (before, "noisy input", ORANGE, "--"),
        (after, "reconstruction", BLUE, "-"),
    ):
        finite = np.where(np.isfinite(values), values, np.nan)
        axes.plot(noise, finite, dash, marker="o", markersize=4, color=colour, label=label)
