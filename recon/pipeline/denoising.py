"""Evaluation with noise on what the network is fed; everything is measured against clean images."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recon.data.noise import add_noise, noise_seeds
from recon.errors import UserError
from recon.evaluation.evaluator import Corrupt
from recon.evaluation.noise_curves import NoiseRow, noise_row, write_noise_curves
from recon.evaluation.summary import Tally
from recon.files import write_json
from recon.pipeline.measuring import Task, measure
from recon.pipeline.models import LoadedModel
from recon.settings import Settings

__all__ = ["check_noise", "corruption", "noise_files", "noise_of", "sweep_noise"]

logger = logging.getLogger("recon")

# Part of every seed: noise that stays with an image in training must not come back in the test.
TEST = int.from_bytes(b"test", "big")


def noise_of(settings: Settings, model: LoadedModel) -> float:
    """Deviation of the noise to evaluate with: the setting's, or else that of the training."""
    if settings.noise_std_test is not None:
        return settings.noise_std_test
    return float(model.provenance.get("settings", {}).get("noise_std", 0))


def check_noise(settings: Settings, model: LoadedModel, asked: frozenset[str]) -> None:
    """Refuse the noise of the training where that of the evaluation is meant.

    Raises:
        UserError: If `noise_std` is asked for, and the model was trained with another.
    """
    trained = float(model.provenance.get("settings", {}).get("noise_std", 0))
    if "noise_std" in asked and settings.noise_std != trained:
        raise UserError(
            f"noise_std = {settings.noise_std} contradicts the model, which was trained with "
            f"{trained}; noise_std_test sets the noise of an evaluation"
        )


def corruption(sigma: float, seed: int) -> Corrupt:
    """Noise that is the same for an image in every evaluation with this seed."""
    return lambda images, indices: add_noise(images, sigma, noise_seeds(indices, seed, TEST))


def noise_files(book: Path) -> list[Path]:
    """Where `sweep_noise` writes table, curves and their record, beside a workbook."""
    return [book.with_name(f"{book.stem}_noise{suffix}") for suffix in (".csv", ".png", ".json")]


def sweep_noise(task: Task, record: Mapping[str, Any]) -> None:
    """Evaluate at every deviation of `noise_sweep`, and write a table, curves and their record.

    They stand beside the workbook, as `<its name>_noise.csv`, `.png` and `.json`.

    Args:
        task: The model and the images.
        record: Where the figures of the workbook come from.
    """
    settings = task.settings
    if not settings.noise_sweep:
        return
    started = time.perf_counter()
    rows = [_evaluate_at(task, sigma) for sigma in settings.noise_sweep]
    if task.model.runtime.ranks.first:
        table, picture, beside = noise_files(task.book)
        write_noise_curves(rows, table, picture)
        seconds = round(time.perf_counter() - started, 1)
        noise = {"standard deviations": list(settings.noise_sweep)}
        write_json(beside, {**record, "noise": noise, "seconds": seconds})
        logger.info("Noise: %s, as curves: %s", table, picture)


def _evaluate_at(task: Task, sigma: float) -> NoiseRow:
    tally, corrupt = Tally(), corruption(sigma, task.settings.seed)
    title = f"Noise {sigma:g}"
    for part in measure(task, task.model.reconstruct, corrupt=corrupt, draw=False, title=title):
        tally.add(part.records)
    row = noise_row(sigma, tally.summary())
    logger.info(
        "Noise %-5g  PSNR %.2f dB, after %.2f dB; SSIM %.4f, after %.4f",
        *(sigma, row.noisy_psnr, row.psnr, row.noisy_ssim, row.ssim),
    )
    return row
