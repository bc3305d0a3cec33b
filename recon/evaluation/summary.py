"""Statistics over all evaluated images, and the images that did worst and best.

Values are float64 arrays of shape (N,), one entry per image.
"""

import heapq
from array import array
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recon.evaluation.records import METRICS, Record

LISTED = 5
"""How many of the worst and of the best images a summary names."""


class Statistics(NamedTuple):
    """Distribution of one metric over the images where it is finite or NaN.

    Attributes:
        metric: Name of the metric.
        images: Number of images counted; infinite values are left out.
        mean: Mean of the per-image values; NaN without images.
        deviation: Sample standard deviation (ddof 1); NaN for fewer than two images.
        median: Median.
        minimum: Smallest value.
        maximum: Largest value.
    """

    metric: str
    images: int
    mean: float
    deviation: float
    median: float
    minimum: float
    maximum: float


class Summary(NamedTuple):
    """What an evaluation found.

    Attributes:
        statistics: One entry per metric.
        identical: Number of images whose reconstruction is identical (MSE 0, PSNR infinite).
        worst: Images of lowest SSIM, the lowest first.
        best: Images of highest SSIM, the highest first.
        facts: Names and values of what is said of all images together.
    """

    statistics: list[Statistics]
    identical: int
    worst: list[Record]
    best: list[Record]
    facts: tuple[tuple[str, float], ...] = ()


def summarise(values: Mapping[str, NDArray[np.float64]]) -> list[Statistics]:
    """Describe each metric; one infinite PSNR would otherwise make every mean infinite.

    Args:
        values: Metric name to per-image values, shape (N,).

    Returns:
        One entry per metric, in the order given.
    """
    return [_describe(metric, column) for metric, column in values.items()]


def _describe(metric: str, column: NDArray[np.float64]) -> Statistics:
    kept = column[~np.isinf(column)]
    if kept.size == 0:
        return Statistics(metric, 0, *[float("nan")] * 5)
    deviation = float(kept.std(ddof=1)) if kept.size > 1 else float("nan")
    middle = float(np.median(kept))
    return Statistics(
        metric,
        kept.size,
        float(kept.mean()),
        deviation,
        middle,
        float(kept.min()),
        float(kept.max()),
    )


class Extremes:
    """The images of lowest and of highest SSIM seen so far, in constant memory.

    Among equals the image seen first is kept; a NaN counts as worse than any number.
    """

    def __init__(self, listed: int = LISTED) -> None:
        self._listed = listed
        self.worst: list[Record] = []
        self.best: list[Record] = []

    def add(self, records: Iterable[Record]) -> None:
        """Take more images into account."""
        records = list(records)
        self.worst = heapq.nsmallest(self._listed, chain(self.worst, records), key=_quality)
        self.best = heapq.nlargest(self._listed, chain(self.best, records), key=_quality)


def _quality(record: Record) -> float:
    return float("-inf") if record.ssim != record.ssim else record.ssim


class Tally:
    """Gathers what a Summary needs while records stream by: 8 bytes per image and metric."""

    def __init__(self) -> None:
        self._values = {metric: array("d") for metric in METRICS}
        self._identical = 0
        self._extremes = Extremes()

    def add(self, records: Iterable[Record]) -> None:
        """Take more images into account."""
        records = list(records)
        for record in records:
            for metric, value in record.metrics().items():
                self._values.setdefault(metric, array("d")).append(value)
        self._identical += sum(record.mse == 0 for record in records)
        self._extremes.add(records)

    def summary(self) -> Summary:
        """Summarise the images added so far."""
        values = {metric: np.array(column) for metric, column in self._values.items()}
        images = len(values["SSIM"])
        few = max(1, images // 2)  # No image is among both.
        worst, best = self._extremes.worst[:few], self._extremes.best[:few]
        return Summary(summarise(values), self._identical, worst, best)
