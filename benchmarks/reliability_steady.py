"""What stays the same: resources over many epochs, and every bit of a run that is repeated."""

import logging
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import torch

from Auto_encoder import AutoEncoder
from benchmarks.reliability_runs import (
    Result,
    TwoLayers,
    command,
    flags_for,
    fork,
    wait,
    write_images,
)
from datasets import ImageFolderDataset
from recon.evaluation.curves import plot_curves
from recon.pipeline import run_training
from recon.settings import Settings
from recon.training.checkpoint import hash_weights

__all__ = ["determinism", "flatness"]

GROWTH = 5e6  # bytes
MANY = 100  # epochs
# Objective and settings: every loss with the shipped network, and every network.
SYSTEMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("mse", {"loss_weights_mse": {"mse": 0.5, "l1": 0.2, "ssim": 0.3}}),
    ("mse", {"loss_weights_mse": {"mse": 1.0}}),
    ("mse", {"loss_weights_mse": {"l1": 1.0}}),
    ("mse", {"loss_weights_mse": {"bce": 1.0}}),
    ("mse", {"loss_weights_mse": {"ms_ssim": 1.0}, "tile_size": 176, "crop_size": None}),
    ("ssim", {"loss_weights_ssim": {"ssim": 1.0}}),
    ("mse", {"optimizer": "muon"}),
    ("mse", {"architecture": "residual", "residual_blocks": 2}),
    ("mse", {"architecture": "dense", "color_mode": "grey"}),
    ("mse", {"architecture": "unet", "unet_width": 8, "noise_std": 0.3}),
    ("vae", {"beta_warmup": 0.5}),
    ("vqvae", {"codebook": "ema"}),
    ("vqvae", {"codebook": "gradient", "input_normalization": "zscore"}),
)
RUNS = ((0, 1), (2, 1), (0, 2))  # worker processes, and which time
PRECISIONS = ("float32", "bfloat16")


class Sampler(logging.Handler):
    """Looks at the process and its workers whenever an epoch is announced."""

    def __init__(self) -> None:
        super().__init__()
        self.process = psutil.Process()
        self.samples: list[tuple[int, int, int, int]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note open files, threads, bytes of this process, and bytes of the workers."""
        if record.getMessage().startswith("Epoch "):
            workers = sum(child.memory_info().rss for child in self.process.children())
            own = self.process.memory_info().rss
            files = self.process.num_fds()
            self.samples.append((files, self.process.num_threads(), own, workers))


def flatness(scratch: Path, epochs: int) -> Result:
    """Open files, threads and memory after some epochs and after many, with two workers."""
    report = scratch / "samples.txt"
    images = write_images(scratch / "images", 18)
    # Many curves are drawn while the allocator warms up, or none.
    interval = 1 if epochs >= MANY else epochs
    flags = flags_for(
        images,
        scratch / "out",
        num_workers=2,
        num_epochs=epochs,
        save_interval=interval,
        keep_checkpoints=3,
    )
    code = wait(fork(scratch / "flat.log", _sampled, flags, report), 900)
    if code != 0:
        return Result("many epochs", "the run fails", [(scratch / "flat.err").read_text()[-500:]])
    samples = [tuple(map(int, line.split())) for line in report.read_text().splitlines()]
    first = max(6, epochs // 6)  # Until then the allocator warms up.
    early, late = samples[first - 1], samples[-1]
    own, workers = late[2] - early[2], late[3] - early[3]
    figure = (
        f"epoch {first} to {epochs}: open files {early[0]} to {late[0]}, "
        f"threads {early[1]} to {late[1]}, memory {own / 1e6:+.1f} MB, "
        f"of the workers {workers / 1e6:+.1f} MB"
    )
    flat = early[:2] == late[:2] and own < GROWTH and workers < GROWTH
    return Result("many epochs", figure, [] if flat else [figure])


def _sampled(flags: list[str], report: Path) -> int:
    sampler = Sampler()
    # Matplotlib keeps the fonts of a logarithmic scale open from the first time it draws one.
    plot_curves({"Epoch": [1, 2], "Loss": [1.0, 1e-6]}, report.with_name("scale.png"))
    code = command(flags, partial(_train_watched, sampler))
    lines = [" ".join(map(str, sample)) for sample in sampler.samples]
    report.write_text("\n".join(lines))
    return code


def _train_watched(sampler: Sampler, settings: Settings, asked: frozenset[str]) -> None:
    # Only now, since a command puts its own handler in the place of all others.
    logging.getLogger("recon").addHandler(sampler)
    run_training(settings, "mse", TwoLayers, ImageFolderDataset, asked=asked)


def determinism(scratch: Path, combinations: int) -> Result:
    """Train every network again and again with `deterministic`, and compare the weights."""
    images, failures, runs = write_images(scratch / "images", 12), list[str](), 0
    chosen = list(product(SYSTEMS, PRECISIONS))[:combinations]
    for number, ((objective, own), precision) in enumerate(chosen):
        hashes, ended = set(), set()
        for workers, again in RUNS[: 3 if combinations > 1 else 2]:
            out = scratch / f"{number}-{workers}-{again}"
            log, report = out.with_suffix(".log"), out / "hash"
            common = _settings(images, out, objective, precision, workers)
            ended.add(wait(fork(log, partial(_train_deterministic, objective), common | own)))
            runs += 1
            hashes.add(report.read_text() if report.is_file() else log.with_suffix(".err").name)
            _empty(out)
        if len(hashes) > 1 or ended != {0}:
            failures.append(f"{objective}, {own}, {precision}: {hashes}, exit {ended}")
    equal = f"{len(chosen) - len(failures)} of {len(chosen)} pairs of system and precision"
    figure = f"{equal} equal bit for bit ({runs} runs, 0 and 2 workers)"
    return Result("deterministic training", figure, failures)


def _settings(
    images: Path, out: Path, objective: str, precision: str, workers: int
) -> dict[str, Any]:
    return {
        "GPUs": "",
        "folder_path_train": str(images),
        "tile_size": 32,
        "batch_size_train": 4,
        "num_epochs": 1,
        "validation_fraction": 0.0,
        f"model_saved_location_{objective}": str(out),
        f"training_loss_file_{objective}": str(out / "loss.csv"),
        "precision": precision,
        "num_workers": workers,
        "deterministic": True,
    }


def _train_deterministic(objective: str, settings: dict[str, Any]) -> int:
    final = run_training(Settings(**settings), objective, AutoEncoder, ImageFolderDataset)
    (final.parent / "hash").write_text(hash_weights(torch.load(final, weights_only=True)))
    return 0


def _empty(out: Path) -> None:
    for path in out.glob("*.pth"):
        path.unlink()
