"""Every network of the suite trains, resumes bit for bit, and is evaluated as it was trained."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from Auto_encoder import AutoEncoder
from datasets import ImageFolderDataset
from recon.errors import UserError
from recon.pipeline import run_evaluation, run_training
from recon.pipeline.exporting import run_export
from recon.settings import Settings

EDGE = 32

# Objective and settings of each system, as small as they work.
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "auto_encoder": ("ssim", {"loss_weights_ssim": {"ssim": 0.85, "l1": 0.15}}),
    "residual": ("mse", {"architecture": "residual", "residual_blocks": 1, "tile_size": 33}),
    "dense": ("mse", {"architecture": "dense", "latent_dim": 8, "color_mode": "grey"}),
    "vae": ("vae", {"latent_dim": 8, "beta_warmup": 0.5}),
    "vqvae ema": ("vqvae", {"codebook_size": 8, "code_dim": 4, "input_normalization": "zscore"}),
    "vqvae gradient": ("vqvae", {"codebook_size": 8, "code_dim": 4, "codebook": "gradient"}),
    "unet": ("mse", {"architecture": "unet", "unet_width": 4, "noise_std": 0.2}),
}


@pytest.fixture
def settings_of(
    make_settings: Callable[..., Settings], write_images: Callable[..., Path], tmp_path: Path
) -> Callable[..., tuple[Settings, str]]:
    """Settings of a system that write below a folder of their own, and its objective."""
    write_images(tmp_path / "train", 6, edge=EDGE)
    write_images(tmp_path / "test", 3, edge=EDGE, seed=1)

    def make(system: str, name: str = "run", **changes: Any) -> tuple[Settings, str]:
        objective, own = SYSTEMS[system]
        out = tmp_path / name
        places = {
            f"model_saved_location_{objective}": str(out),
            f"training_loss_file_{objective}": str(out / "loss.csv"),
            f"model_path_{objective}": str(out / f"Final_Model_AE_{objective.upper()}.pth"),
            f"recon_output_{objective}": str(out / "pictures"),
            f"reconstruction_metrics_{objective}": str(out / "metrics.xlsx"),
        }
        usual = {"tile_size": EDGE, "batch_size_train": 3, "crop_size": None, "deterministic": True}
        return make_settings(**usual | places | own | changes), objective

    return make


def train(settings: Settings, objective: str) -> Path:
    return run_training(settings, objective, AutoEncoder, ImageFolderDataset)


def evaluate(settings: Settings, objective: str) -> Any:
    return run_evaluation(settings, objective, AutoEncoder, ImageFolderDataset)


def content_of(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, weights_only=True))


def latents_of(path: Path) -> np.ndarray:
    with np.load(path) as arrays:
        return arrays["codes" if "codes" in arrays else "features"]


def assert_equal(one: Path, other: Path) -> None:
    first, second = content_of(one), content_of(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_resumed_training_ends_bit_for_bit_as_one_in_one_go(
    system: str, settings_of: Callable[..., tuple[Settings, str]], tmp_path: Path
) -> None:
    whole = train(*settings_of(system, "whole"))
    half = tmp_path / "whole/Model_AE_epoch_001.pth"
    assert_equal(train(*settings_of(system, "again", resume=str(half))), whole)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_same_training_gives_the_same_bits_whatever_reads_its_images(
    system: str, settings_of: Callable[..., tuple[Settings, str]]
) -> None:
    one = train(*settings_of(system, "one", num_epochs=1))
    other = train(*settings_of(system, "other", num_epochs=1, num_workers=2))
    assert_equal(one, other)


@pytest.mark.parametrize("system", SYSTEMS)
def test_evaluation_needs_nothing_but_the_model(
    system: str, settings_of: Callable[..., tuple[Settings, str]], tmp_path: Path
) -> None:
    settings, objective = settings_of(system)
    train(settings, objective)
    paths = {n: v for n, v in settings.model_dump().items() if objective in n or "folder" in n}
    bare = Settings(GPUs="", num_workers=0, precision="float32", **paths)
    evaluate(bare, objective)
    rows = pd.read_csv(tmp_path / "run/metrics.csv")
    assert len(rows) == 3
    assert rows["SSIM"].between(-1, 1).all()
    assert ("Noisy PSNR" in rows.columns) == (settings.noise_std > 0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_neither_batch_size_nor_threads_change_a_bit_of_rows_and_latents(
    system: str,
    precision: str,
    settings_of: Callable[..., tuple[Settings, str]],
    write_images: Callable[..., Path],
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "test", 5, edge=EDGE, seed=1)
    model = train(*settings_of(system, num_epochs=1))
    latents = {"model_path_latents": str(model), "folder_path_latents": str(tmp_path / "test")}
    rows, tables, before = [], [], torch.get_num_threads()
    try:
        for size, threads in [(1, 1), (2, 2), (5, 1), (5, 2)]:
            torch.set_num_threads(threads)
            changes = {"batch_size_test": size, "precision": precision, "deterministic": False}
            table = tmp_path / f"{size}-{threads}/latents.npz"
            evaluate(*settings_of(system, **changes))
            settings, _ = settings_of(system, latents_file=str(table), **changes | latents)
            run_export(settings, AutoEncoder, ImageFolderDataset)
            rows.append((tmp_path / "run/metrics.csv").read_bytes())
            tables.append(latents_of(table))
    finally:
        torch.set_num_threads(before)
    assert len(rows[0].splitlines()) == 6
    assert [other == rows[0] for other in rows] == [True] * 4
    assert [np.array_equal(other, tables[0]) for other in tables] == [True] * 4


@pytest.mark.parametrize(("name", "value"), [("latent_dim", 16), ("architecture", "unet")])
def test_a_flag_against_the_record_of_the_network_is_refused(
    name: str, value: object, settings_of: Callable[..., tuple[Settings, str]]
) -> None:
    settings, objective = settings_of("dense")
    train(settings, objective)
    contrary = settings.model_copy(update={name: value})
    with pytest.raises(UserError, match=f"{name} = .* contradicts"):
        run_evaluation(
            contrary, objective, AutoEncoder, ImageFolderDataset, asked=frozenset({name})
        )


def test_another_size_is_refused_where_the_network_has_one_and_told_where_it_has_none(
    settings_of: Callable[..., tuple[Settings, str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "recon")
    asked = frozenset({"tile_size"})
    settings, objective = settings_of("dense")
    train(settings, objective)
    other = settings.model_copy(update={"tile_size": 64})
    with pytest.raises(UserError, match=r"tile_size = \(64, 64\) contradicts .* trained with \(32"):
        run_evaluation(other, objective, AutoEncoder, ImageFolderDataset, asked=asked)
    settings, objective = settings_of("residual", "other")
    train(settings, objective)
    other = settings.model_copy(update={"tile_size": 64})
    run_evaluation(other, objective, AutoEncoder, ImageFolderDataset, asked=asked)
    assert "resized to 64 x 64 pixels, as tile_size asks; the model was trained" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "vae"}, "Training_VAE.py trains it"),
        ({"architecture": "vqvae"}, "Training_VQVAE.py trains it"),
        ({"architecture": "dense", "tile_size": 48}, "multiples of 32"),
        ({"loss_weights_mse": {"ms_ssim": 1.0}}, "161"),
        ({"loss_weights_mse": {"mse": 1.0, "sim": 1.0}}, "'sim'"),
    ],
)
def test_what_a_network_or_a_loss_cannot_take_is_refused_before_anything_is_written(
    changes: dict[str, Any],
    words: str,
    settings_of: Callable[..., tuple[Settings, str]],
    tmp_path: Path,
) -> None:
    settings, _ = settings_of("unet", noise_std=0.0, **{"architecture": "auto_encoder", **changes})
    with pytest.raises(UserError, match=words) as caught:
        train(settings, "mse")
    assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "run").iterdir() if p.suffix != ".lock"] in ([], [".lock"])


def test_the_log_of_a_vqvae_tells_how_its_codes_are_used(
    settings_of: Callable[..., tuple[Settings, str]], tmp_path: Path
) -> None:
    train(*settings_of("vqvae ema"))
    log = pd.read_csv(tmp_path / "run/loss.csv")
    assert log["Perplexity"].between(1, 8).all()
    assert log["Codes Used"].between(1, 8).all()
    assert (log["Commitment"] >= 0).all()


def test_the_log_of_a_vae_holds_both_parts_of_its_loss(
    settings_of: Callable[..., tuple[Settings, str]], tmp_path: Path
) -> None:
    train(*settings_of("vae", beta_warmup=0.0))
    log = pd.read_csv(tmp_path / "run/loss.csv")
    assert log["Loss"].tolist() == pytest.approx((log["Reconstruction Loss"] + log["KL"]).tolist())
    assert (tmp_path / "run/loss.csv").with_suffix(".png").is_file()


def test_codes_are_not_averaged(
    settings_of: Callable[..., tuple[Settings, str]], tmp_path: Path
) -> None:
    train(*settings_of("vqvae ema", weight_averaging=0.9))
    checkpoint = torch.load(tmp_path / "run/Last_Model_AE.pth", weights_only=True)
    assert checkpoint["run"]["average"] is None
