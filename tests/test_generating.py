"""What only some networks can do: new images, and codes that are counted."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openpyxl import load_workbook
from PIL import Image

from Auto_encoder import AutoEncoder
from datasets import ImageFolderDataset
from recon.evaluation.grids import compose_grid
from recon.models.registry import Form, Options, build_model
from recon.pipeline import run_evaluation

EDGE = 32
SMALL = {"latent_dim": 8, "codebook_size": 16, "code_dim": 4}


@pytest.fixture
def evaluate(
    write_images: Callable[..., Path], make_settings: Callable[..., Any], tmp_path: Path
) -> Callable[..., Any]:
    """Evaluate an untrained network of a kind on three images."""
    write_images(tmp_path / "test", 3, edge=EDGE)

    def run(kind: str, **changes: Any) -> Any:
        torch.manual_seed(0)
        form = Form(3, (EDGE, EDGE))
        model = build_model(kind, form, Options(**SMALL), AutoEncoder)
        torch.save(model.state_dict(), tmp_path / "model.pth")
        paths = {
            f"model_path_{kind}": str(tmp_path / "model.pth"),
            f"recon_output_{kind}": str(tmp_path / "pictures"),
            f"reconstruction_metrics_{kind}": str(tmp_path / "metrics.xlsx"),
        }
        settings = make_settings(
            **{"architecture": kind, "tile_size": EDGE, "samples": 5, **SMALL, **paths, **changes}
        )
        return run_evaluation(settings, kind, AutoEncoder, ImageFolderDataset)

    return run


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


# New images


def test_a_vae_writes_new_images_and_the_way_between_two(
    evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    evaluate("vae")
    folder = tmp_path / "pictures"
    assert {path.name for path in folder.glob("*.png")} == {"samples.png", "interpolation.png"}
    assert len(list(folder.rglob("*_comparison.png"))) == 3
    # Five in rows of three, with gaps of four pixels.
    assert pixels(folder / "samples.png").shape == (4 + 2 * 36, 4 + 3 * 36, 3)


def test_new_images_depend_on_the_seed_alone(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    seen = []
    for options in ({}, {"batch_size_test": 1}, {"seed": 1}):
        evaluate("vae", **options)
        seen.append(pixels(tmp_path / "pictures/samples.png"))
    assert np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])


def test_the_way_begins_and_ends_with_the_reconstructions(
    evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    evaluate("vae", samples=4)
    grid = pixels(tmp_path / "pictures/interpolation.png").astype(int)
    first = pixels(tmp_path / "pictures/a/0_comparison.png").astype(int)
    tile = grid[4 : 4 + EDGE, 4 : 4 + EDGE]
    enlarged = tile.repeat(4, 0).repeat(4, 1)  # Small pictures are shown at 128 pixels.
    found = np.lib.stride_tricks.sliding_window_view(first, enlarged.shape)
    assert np.abs(found - enlarged).max(axis=(3, 4, 5)).min() <= 1


@pytest.mark.parametrize(("kind", "samples"), [("vae", 0), ("vqvae", 5)])
def test_no_image_is_made_where_none_is_wanted_or_the_network_makes_none(
    evaluate: Callable[..., Any], tmp_path: Path, kind: str, samples: int
) -> None:
    evaluate(kind, samples=samples)
    written = {path.name for path in (tmp_path / "pictures").glob("*.png")}
    assert written == ({"codes.png"} if kind == "vqvae" else set())


def test_an_unreadable_image_is_no_end_of_the_way(
    evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "test/a/0.png").write_bytes(b"damaged")
    evaluate("vae")
    assert (tmp_path / "pictures/interpolation.png").exists()
    (tmp_path / "pictures/interpolation.png").unlink()
    (tmp_path / "test/b/1.png").write_bytes(b"damaged")
    evaluate("vae")
    assert not (tmp_path / "pictures/interpolation.png").exists()


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (2, (1, 2)), (5, (2, 3)), (9, (3, 3))])
def test_a_grid_holds_every_picture_in_its_place(count: int, shape: tuple[int, int]) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (count, 6, 8), dtype=np.uint8)
    grid = np.asarray(compose_grid(pictures))
    assert grid.shape == (4 + shape[0] * 10, 4 + shape[1] * 12)
    for place, picture in enumerate(pictures):
        y, x = 4 + 10 * (place // shape[1]), 4 + 12 * (place % shape[1])
        assert np.array_equal(grid[y : y + 6, x : x + 8], picture)


def test_a_grid_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        compose_grid(np.zeros((0, 4, 4), np.uint8))


# Codes


def test_the_compression_of_a_vqvae_and_the_use_of_its_codes_are_told(
    evaluate: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "recon"):
        facts = dict(evaluate("vqvae", batch_size_test=2).facts)
    assert facts["Bits per Pixel"] == pytest.approx(math.log2(16) / 16)
    assert facts["Compression Ratio"] == pytest.approx(24 / (4 / 16))
    book = load_workbook(tmp_path / "metrics.xlsx")
    summary = {row[0].value: row[1].value for row in book["Summary"].iter_rows()}
    run = {row[0].value: row[1].value for row in book["Run"].iter_rows()}
    for name, value in facts.items():
        assert summary[name] == pytest.approx(value)
        assert float(run[f"compression.{name}"]) == pytest.approx(value)
        assert f"{name}: {value:.6g}" in caplog.text


def test_codes_are_counted_over_all_images_together(
    evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    whole, parts = (dict(evaluate("vqvae", batch_size_test=n).facts) for n in (3, 1))
    assert whole == pytest.approx(parts)
    model = build_model("vqvae", Form(3, (EDGE, EDGE)), Options(**SMALL), AutoEncoder)
    model.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    paths = sorted((tmp_path / "test").rglob("*.png"))
    images = torch.stack([torch.from_numpy(pixels(p).transpose(2, 0, 1) / 255) for p in paths])
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    codes = model.eval()((images.float() - mean) / std).codes
    counts = codes.flatten().bincount().double()
    share = counts[counts > 0] / counts.sum()
    assert whole["Codes Used"] == len(share)
    assert whole["Codes"] == 16
    assert whole["Perplexity"] == pytest.approx(float((-(share * share.log()).sum()).exp()))


def test_a_network_without_codes_tells_nothing_of_them(
    evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    assert evaluate("vae").facts == ()
    names = [row[0].value for row in load_workbook(tmp_path / "metrics.xlsx")["Run"].iter_rows()]
    assert not any(str(name).startswith("compression") for name in names)
