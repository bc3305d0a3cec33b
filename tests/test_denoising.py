"""Evaluation with noise: what the network is fed is spoilt, what it is compared with is not."""

import csv
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from openpyxl import load_workbook
from PIL import Image
from torch import Tensor, nn

from datasets import ImageFolderDataset
from recon.data.noise import add_noise, noise_seeds
from recon.errors import UserError
from recon.evaluation.noise_curves import NOISE_COLUMNS, NoiseRow, draw_noise_curves, noise_row
from recon.evaluation.records import COLUMNS, NOISY, NoisyInput, Record
from recon.evaluation.summary import Tally
from recon.models.preparation import Preparation
from recon.pipeline import LoadedModel, look_at, open_images, open_model, run_evaluation
from recon.pipeline.denoising import corruption, noise_of
from recon.training.checkpoint import save_final
from recon.training.runtime import Runtime

INF, NAN = float("inf"), float("nan")
Evaluate = Callable[..., pd.DataFrame]


class Smooth(nn.Module):
    """Blurs: what takes some noise away from smooth images."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.encoder = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images)


@pytest.fixture
def evaluate(
    write_images: Callable[..., Path], make_settings: Callable[..., Any], tmp_path: Path
) -> Evaluate:
    """Evaluate the blur on four images; returns the rows of the csv."""
    write_images(tmp_path / "test", 4, edge=32)
    (tmp_path / "out").mkdir()
    torch.save(Smooth().state_dict(), tmp_path / "out/Final_Model_AE_MSE.pth")

    def run(**changes: Any) -> pd.DataFrame:
        settings = make_settings(tile_size=32, input_normalization="none", **changes)
        run_evaluation(settings, "mse", Smooth, ImageFolderDataset)
        return pd.read_csv(tmp_path / "metrics.csv")

    return run


def test_without_noise_nothing_is_added_to_the_files(evaluate: Evaluate, tmp_path: Path) -> None:
    assert tuple(evaluate().columns) == COLUMNS
    names = {row[0].value for row in load_workbook(tmp_path / "metrics.xlsx")["Summary"]}
    assert not names & set(NOISY)
    assert not any("noise" in path.name for path in tmp_path.rglob("*"))


def test_everything_is_measured_against_the_clean_image(evaluate: Evaluate, tmp_path: Path) -> None:
    table = evaluate(noise_std_test=0.1)
    assert tuple(table.columns) == COLUMNS + NOISY
    paths = sorted((tmp_path / "test").rglob("*.png"))
    clean = np.stack([np.asarray(Image.open(p)) for p in paths]).transpose(0, 3, 1, 2) / 255
    clean = torch.from_numpy(clean).float()
    noisy = corruption(0.1, 0)(clean, list(range(4)))
    for column, images in (("Noisy MSE", noisy), ("MSE", Smooth()(noisy))):
        expected = (images - clean).double().square().flatten(1).mean(1).tolist()
        assert table[column].tolist() == pytest.approx(expected, rel=1e-5)
    gain = table["PSNR"] - table["Noisy PSNR"]
    assert table["PSNR Gain"].tolist() == pytest.approx(gain.tolist())
    assert (table["PSNR Gain"] > 3).all()


def test_the_noise_does_not_depend_on_the_batch_size(evaluate: Evaluate) -> None:
    tables = [evaluate(noise_std_test=0.1, batch_size_test=size) for size in (1, 3)]
    assert tables[0]["Noisy MSE"].tolist() == tables[1]["Noisy MSE"].tolist()
    other = evaluate(noise_std_test=0.1, seed=1)
    assert (other["Noisy MSE"] != tables[0]["Noisy MSE"]).all()


def test_workbook_run_sheet_and_console_tell_of_the_noise(
    evaluate: Evaluate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "recon"):
        table = evaluate(noise_std_test=0.1)
    book = load_workbook(tmp_path / "metrics.xlsx")
    assert [cell.value for cell in book["Metrics"][1]] == [*COLUMNS, *NOISY]
    rows = {row[0].value: row for row in book["Summary"].iter_rows()}
    assert rows["PSNR Gain"][2].value == pytest.approx(table["PSNR Gain"].mean())
    run = {row[0].value: row[1].value for row in book["Run"].iter_rows()}
    assert run["noise.standard deviation"] == "0.1"
    assert "Noise: standard deviation 0.1" in caplog.text
    assert f"PSNR Gain   mean {table['PSNR Gain'].mean():.5f}" in caplog.text


def test_pictures_show_the_noisy_image_between_the_two(evaluate: Evaluate, tmp_path: Path) -> None:
    widths = []
    for sigma in (0.0, 0.1):
        evaluate(noise_std_test=sigma)
        with Image.open(tmp_path / "pictures/a/0_comparison.png") as picture:
            widths.append(picture.width)
    assert widths[1] > widths[0]


def test_the_notebook_shows_and_measures_with_the_noise_of_the_evaluation(
    evaluate: Evaluate, make_settings: Callable[..., Any], tmp_path: Path
) -> None:
    table = evaluate(noise_std_test=0.1)
    settings = make_settings(tile_size=32, input_normalization="none", noise_std_test=0.1)
    model = open_model(tmp_path / "out/Final_Model_AE_MSE.pth", settings, Smooth)
    images = open_images(tmp_path / "test", model, ImageFolderDataset)
    rows = look_at(model, images, range(4), settings)
    assert [row.psnr for row in rows] == pytest.approx(table["PSNR"].tolist(), rel=1e-5)
    assert all(row.noisy is not None for row in rows)
    assert not any(np.array_equal(row.noisy, row.original) for row in rows)
    (clean,) = look_at(model, images, [0], settings.model_copy(update={"noise_std_test": 0.0}))
    assert clean.noisy is None


@pytest.mark.parametrize(
    ("setting", "recorded", "expected"),
    [
        (None, {"noise_std": 0.3}, 0.3),
        (0.1, {"noise_std": 0.3}, 0.1),
        (0.0, {"noise_std": 0.3}, 0.0),
        (None, {}, 0.0),
        (0.2, {}, 0.2),
    ],
)
def test_the_noise_is_the_settings_or_else_that_of_the_training(
    make_settings: Callable[..., Any], setting: float | None, recorded: Any, expected: float
) -> None:
    runtime = Runtime(torch.device("cpu"), 1, "float32")
    preparation = Preparation((32, 32), 3, "none", None)
    model = LoadedModel(Smooth(), preparation, {"settings": recorded}, runtime)
    assert noise_of(make_settings(noise_std_test=setting), model) == expected


def test_noise_that_stayed_with_an_image_in_training_does_not_come_back_in_the_test() -> None:
    images = torch.full((3, 1, 16, 16), 0.5)
    trained = add_noise(images, 0.1, noise_seeds(range(3), 0))
    assert not torch.equal(corruption(0.1, 0)(images, [0, 1, 2]), trained)


def test_the_noise_of_the_training_is_not_taken_for_that_of_the_evaluation(
    write_images: Callable[..., Path], make_settings: Callable[..., Any], tmp_path: Path
) -> None:
    write_images(tmp_path / "test", 2, edge=32)
    save_final(tmp_path / "m.pth", Smooth().state_dict(), {"settings": {"noise_std": 0.3}})
    for noise, refused in ((0.1, True), (0.3, False)):
        settings = make_settings(
            tile_size=32, noise_std=noise, model_path_mse=str(tmp_path / "m.pth")
        )
        expected = pytest.raises(UserError, match=r"noise_std = 0\.1 contradicts .*noise_std_test")
        with expected if refused else nullcontext():
            run_evaluation(
                settings, "mse", Smooth, ImageFolderDataset, asked=frozenset({"noise_std"})
            )


# The sweep


def test_the_record_of_a_sweep_does_not_replace_that_of_a_model(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    (tmp_path / "metrics_noise.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"metrics_noise\.json.*: it tells what metrics_noise"):
        evaluate(noise_sweep=(0.1,))
    assert not (tmp_path / "metrics.csv").exists()


def test_a_sweep_writes_a_row_for_each_deviation_and_curves(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    table = evaluate(noise_std_test=0.1, noise_sweep=(0.0, 0.1, 0.2), save_images="none")
    with (tmp_path / "metrics_noise.csv").open(encoding="utf-8") as file:
        heading, *rows = csv.reader(file)
    assert tuple(heading) == NOISE_COLUMNS
    swept = pd.read_csv(tmp_path / "metrics_noise.csv")
    assert swept["Noise"].tolist() == [0, 0.1, 0.2]
    assert swept["Images"].tolist() == [4] * 3
    for column in ("MSE", "PSNR", "SSIM", *NOISY):
        assert swept[column][1] == pytest.approx(table[column].mean())
    assert rows[0][heading.index("Noisy PSNR")] == "inf"
    assert swept["Noisy SSIM"].is_monotonic_decreasing
    with Image.open(tmp_path / "metrics_noise.png") as picture:
        assert picture.format == "PNG"
    record, whole = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("metrics_noise", "metrics")
    )
    assert record["noise"] == {"standard deviations": [0.0, 0.1, 0.2]}
    assert record["weights_sha256"] == whole["weights_sha256"]
    assert len(pd.read_csv(tmp_path / "metrics.csv")) == 4
    assert not list((tmp_path / "pictures").rglob("*.png"))


def test_a_row_holds_the_means_and_leaves_identical_images_out() -> None:
    tally = Tally()
    noisy = [NoisyInput(0.0, INF, 1.0, -INF), NoisyInput(0.1, 10.0, 0.5, 5.0)]
    tally.add([Record("a", 0.2, 15.0, 0.7, 8, 8, entry) for entry in noisy])
    row = noise_row(0.1, tally.summary())
    assert row == NoiseRow(0.1, 2, 0.05, 0.2, 10.0, 15.0, 5.0, 0.75, pytest.approx(0.7))


def test_curves_are_drawn_in_the_order_of_the_noise_without_what_is_infinite() -> None:
    rows = [
        NoiseRow(0.2, 4, 0.1, 0.1, 10.0, 20.0, 10.0, 0.2, 0.6),
        NoiseRow(0.0, 4, 0.0, 0.1, INF, 25.0, NAN, 1.0, 0.9),
    ]
    left, right = draw_noise_curves(rows).axes
    noisy, clean = left.lines
    assert clean.get_xdata().tolist() == [0.0, 0.2]
    assert clean.get_ydata().tolist() == [25.0, 20.0]
    assert np.isnan(noisy.get_ydata()[0])
    assert right.lines[0].get_ydata().tolist() == [1.0, 0.2]
