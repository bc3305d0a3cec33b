import math

import numpy as np
import pandas as pd
import pytest

from recon.evaluation.records import Record
from recon.evaluation.summary import Extremes, Tally, summarise

INF, NAN = float("inf"), float("nan")


def record(name: str, ssim: float, mse: float = 0.01) -> Record:
    psnr = 10 * math.log10(1 / mse) if mse else INF
    return Record(name, mse, psnr, ssim, 64, 64)


def test_statistics_equal_those_of_pandas() -> None:
    values = np.random.default_rng(0).normal(size=101)
    (entry,) = summarise({"MSE": values})
    column = pd.Series(values)
    expected = [column.mean(), column.std(), column.median(), column.min(), column.max()]
    assert entry[:2] == ("MSE", 101)
    np.testing.assert_allclose(entry[2:], expected, rtol=1e-12)


def test_one_image_has_no_standard_deviation() -> None:
    (entry,) = summarise({"SSIM": np.array([0.5])})
    assert math.isnan(entry.deviation)
    assert (entry.mean, entry.median, entry.minimum, entry.maximum) == (0.5, 0.5, 0.5, 0.5)


def test_infinite_values_are_left_out() -> None:
    (entry,) = summarise({"PSNR": np.array([20.0, INF, 30.0])})
    assert (entry.images, entry.mean, entry.maximum) == (2, 25.0, 30.0)


def test_a_nan_is_not_hidden() -> None:
    (entry,) = summarise({"MSE": np.array([0.1, NAN])})
    assert math.isnan(entry.mean)


@pytest.mark.parametrize("values", [[], [INF, INF]])
def test_nothing_finite_gives_no_statistics_and_no_warning(values: list[float]) -> None:
    (entry,) = summarise({"PSNR": np.array(values)})
    assert entry.images == 0
    assert all(math.isnan(value) for value in entry[2:])


def test_extremes_are_those_of_sorting_all_records() -> None:
    scores = np.random.default_rng(1).permutation(200) / 200
    records = [record(f"{place}", float(score)) for place, score in enumerate(scores)]
    extremes = Extremes()
    for start in range(0, len(records), 7):
        extremes.add(iter(records[start : start + 7]))
    ordered = sorted(records, key=lambda entry: entry.ssim)
    assert extremes.worst == ordered[:5]
    assert extremes.best == ordered[:-6:-1]


def test_extremes_keep_the_first_of_equals_whatever_the_batches() -> None:
    records = [record(str(place), 0.5) for place in range(20)]
    extremes = Extremes()
    for entry in records:
        extremes.add([entry])
    assert extremes.worst == extremes.best == records[:5]


def test_a_nan_counts_as_the_worst() -> None:
    extremes = Extremes(1)
    extremes.add([record("low", -1.0), record("broken", NAN), record("high", 1.0)])
    assert extremes.worst[0].path == "broken"
    assert extremes.best[0].path == "high"


def test_no_image_is_among_the_worst_and_the_best() -> None:
    for count, few in ((1, 1), (3, 1), (8, 4), (30, 5)):
        tally = Tally()
        tally.add([record(str(place), place / 100) for place in range(count)])
        summary = tally.summary()
        assert len(summary.worst) == len(summary.best) == few
        assert count == 1 or not set(summary.worst) & set(summary.best)


def test_a_tally_counts_identical_images() -> None:
    tally = Tally()
    tally.add([record("a", 1.0, mse=0.0), record("b", 0.5)])
    tally.add(iter([record("c", 1.0, mse=0.0)]))
    summary = tally.summary()
    assert summary.identical == 2
    assert [(entry.metric, entry.images) for entry in summary.statistics] == [
        ("MSE", 3),
        ("PSNR", 1),
        ("SSIM", 3),
    ]
    assert [entry.path for entry in summary.worst] == ["b"]
