import csv
from pathlib import Path

import numpy as np
import pytest
from openpyxl import load_workbook
from PIL import Image

from recon.evaluation.sweep_figures import (
    Scale,
    _place,
    _ticks,
    plot_importances,
    plot_loss_curves,
    plot_parallel,
)
from recon.evaluation.sweep_table import TrialRow, write_trials

ORANGE = (217, 119, 43)


def row(number: int, **changes: object) -> TrialRow:
    usual = TrialRow(number, "complete", 0.25, 3, {"learning_rate": 0.1}, 1.5, "sweeps/x", "")
    return usual._replace(**changes)  # type: ignore[arg-type]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).reshape(-1, 3)


def test_text_that_looks_like_a_formula_stays_text(tmp_path: Path) -> None:
    book = tmp_path / "trials.xlsx"
    write_trials(book, [row(0, folder="=1+1", note="=A1")], ["learning_rate"], {"name": "=2"})
    cells = list(load_workbook(book)["Trials"].iter_rows())[1]
    assert [(cells[i].value, cells[i].data_type) for i in (-2, -1)] == [("=1+1", "s"), ("=A1", "s")]


def test_what_is_unknown_is_an_empty_cell_and_a_tuple_is_text(tmp_path: Path) -> None:
    book = tmp_path / "trials.xlsx"
    rows = [row(0, loss=None, best_epoch=None, parameters={"crop_size": (16, 32)}, seconds=None)]
    write_trials(book, rows, ["crop_size", "learning_rate"], {})
    with book.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        (written,) = csv.DictReader(file)
    assert written == {
        "Trial": "0", "State": "complete", "Validation Loss": "", "Best Epoch": "",
        "crop_size": "(16, 32)", "learning_rate": "", "Seconds": "", "Folder": "sweeps/x",
        "Note": "",
    }  # fmt: skip
    cells = list(load_workbook(book)["Trials"].iter_rows(values_only=True))[1]
    assert cells == (0, "complete", None, None, "(16, 32)", None, None, "sweeps/x", None)


def test_more_than_twenty_six_columns_fit(tmp_path: Path) -> None:
    names = [f"augment_{number}" for number in range(30)]
    write_trials(tmp_path / "t.xlsx", [row(0)], names, {})
    assert load_workbook(tmp_path / "t.xlsx")["Trials"].auto_filter.ref == "A1:AK2"


def test_a_choice_stands_at_its_own_height_and_the_better_trial_above_the_worse() -> None:
    scale = Scale("batch_size_train", [64, 16, 16], [16, 32, 64])
    high, low, lower = _place(scale, scale.values, np.array([0, 1, 2]))
    assert high == pytest.approx(1, abs=0.05)
    assert low == pytest.approx(0, abs=0.05)
    assert low > lower


def test_a_range_on_a_logarithmic_scale_has_its_geometric_mean_in_the_middle() -> None:
    scale = Scale("learning_rate", [1e-4, 1e-3, 1e-2], log=True)
    assert _place(scale, scale.values, np.arange(3)).tolist() == pytest.approx([0, 0.5, 1])
    assert [text for _, text in _ticks(scale)][::2] == ["0.0001", "0.001", "0.01"]


def test_of_many_choices_some_are_labelled() -> None:
    scale = Scale("num_epochs", [1], list(range(1, 101)))
    assert 6 <= len(_ticks(scale)) <= 12


@pytest.mark.parametrize("count", [1, 2, 12])
def test_the_best_trial_is_drawn_in_orange(tmp_path: Path, count: int) -> None:
    curves = {f"trial {i}": [1.0 + i, 0.5 + i] for i in range(count)}
    plot_loss_curves(curves, tmp_path / "curves.png")
    rates = [10.0 ** -(i + 1) for i in range(count)]
    scales = [Scale("learning_rate", rates, log=True), Scale("schedule", ["a"] * count, ["a", "b"])]
    plot_parallel(scales, [0.5 + i for i in range(count)], tmp_path / "parallel.png")
    for name in ("curves.png", "parallel.png"):
        assert (pixels(tmp_path / name) == ORANGE).all(axis=1).any()


def test_losses_that_are_all_alike_are_drawn(tmp_path: Path) -> None:
    plot_parallel([Scale("num_epochs", [1, 1])], [0.0, 0.0], tmp_path / "parallel.png")
    plot_loss_curves({"trial 0": [0.0]}, tmp_path / "curves.png")
    plot_importances({"num_epochs": 0.0}, tmp_path / "importance.png")
    assert len(list(tmp_path.glob("*.png"))) == 3
