from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recon.evaluation.curves import BLUE, plot_curves

NAN = float("nan")


def coloured(path: Path, colour: str) -> int:
    """Number of pixels of exactly this colour."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((pixels == wanted).all(axis=-1).sum())


def test_curves_are_a_png_under_their_name_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "loss.png"
    plot_curves({"Epoch": [1, 2, 3], "Loss": [0.3, 0.2, 0.1]}, path)
    assert [file.name for file in path.parent.iterdir()] == ["loss.png"]
    with Image.open(path) as picture:
        assert picture.format == "PNG"


def test_validation_quality_adds_a_second_panel(tmp_path: Path) -> None:
    columns = {"Epoch": [1, 2], "Loss": [0.3, 0.2], "Validation SSIM": [0.5, 0.6]}
    plot_curves(columns, tmp_path / "two.png")
    plot_curves({**columns, "Validation SSIM": [NAN, NAN]}, tmp_path / "one.png")
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "one.png") as one:
        assert two.width > one.width


@pytest.mark.parametrize("name", ["KL", "Commitment", "Perplexity", "Codes Used"])
def test_what_a_prior_or_a_codebook_adds_has_a_panel_of_its_own(name: str, tmp_path: Path) -> None:
    columns = {"Epoch": [1, 2], "Loss": [0.3, 0.2]}
    plot_curves(columns, tmp_path / "without.png")
    plot_curves({**columns, name: [5.0, 7.0]}, tmp_path / "with.png")
    with Image.open(tmp_path / "without.png") as one, Image.open(tmp_path / "with.png") as two:
        assert two.width > one.width
    assert coloured(tmp_path / "with.png", BLUE) > coloured(tmp_path / "without.png", BLUE) + 20


def test_a_single_epoch_is_visible(tmp_path: Path) -> None:
    plot_curves({"Epoch": [1], "Loss": [0.3]}, tmp_path / "one.png")
    plot_curves({"Epoch": [1], "Loss": [NAN]}, tmp_path / "none.png")
    assert coloured(tmp_path / "one.png", BLUE) > 20
    assert coloured(tmp_path / "none.png", BLUE) == 0


def test_missing_nan_and_infinite_values_are_left_out(tmp_path: Path) -> None:
    columns = {
        "Epoch": [1, 2, 3, 4],
        "Loss": [0.4, 0.3, NAN, 0.1],
        "Validation Loss": [NAN, 0.3],
        "Validation PSNR": [20.0, float("inf"), NAN, 22.0],
        "Validation SSIM": [NAN, NAN, NAN, 0.9],
        "Learning Rate": [1e-4] * 4,
    }
    plot_curves(columns, tmp_path / "loss.png")
    assert coloured(tmp_path / "loss.png", BLUE) > 20


@pytest.mark.parametrize("loss", [[1.0, 1e-4, 1e-6], [1.0, 0.0, -1.0]])
def test_losses_over_decades_and_negative_ones_are_drawn(loss: list[float], tmp_path: Path) -> None:
    plot_curves({"Epoch": [1, 2, 3], "Loss": loss}, tmp_path / "loss.png")
    assert coloured(tmp_path / "loss.png", BLUE) > 20


def test_an_older_picture_outlives_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "loss.png"
    path.write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        path.with_name("loss.png.partial").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recon.evaluation.curves.Figure.savefig", fail)
    with pytest.raises(OSError, match="No space"):
        plot_curves({"Epoch": [1], "Loss": [0.3]}, path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("loss.png", b"old")]
