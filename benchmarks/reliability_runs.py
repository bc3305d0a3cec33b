"""Small runs in processes of their own, for trials that end them, and what to compare of them.

The processes are forked from a server that has imported everything, so that one run takes about a
second. Images are (32, 32, 3) uint8 PNG files.
"""

import csv
import hashlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor, nn

from datasets import ImageFolderDataset
from recon.command import run_command
from recon.pipeline import run_evaluation, run_training
from recon.settings import Settings

__all__ = [
    "Result", "TwoLayers", "evaluate", "flags_for", "fork", "one_line", "outcome", "train",
    "wait", "write_images",
]  # fmt: skip

LIMIT = 120  # seconds after which a process counts as hanging
TIMES = ("Seconds", "Images/s")
LAST, FINAL, BEST = "Last_Model_AE.pth", "Final_Model_AE_MSE.pth", "Best_Model_AE_MSE.pth"
EPOCHS = 3


class Result(NamedTuple):
    """One line of the table."""

    what: str
    figure: str
    failures: list[str]  # empty where all went well


class TwoLayers(nn.Module):
    """As small as a network with batch normalisation gets; (N, C, H, W) in and out."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.decoder = nn.Sequential(nn.LeakyReLU(), nn.Conv2d(6, channels, 1), nn.Sigmoid())

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct."""
        reconstruction: Tensor = self.decoder(self.encoder(images))
        return reconstruction


def write_images(folder: Path, count: int, *, seed: int = 0) -> Path:
    """Write noise as `folder/a/0.png` and on."""
    draw = np.random.default_rng(seed)
    for index in range(count):
        path = folder / "abc"[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return folder


def flags_for(images: Path, out: Path, **changes: Any) -> list[str]:
    """The command line of a run that lasts a second and writes below `out`."""
    settings: dict[str, Any] = {
        "GPUs": "",
        "num_workers": 0,
        "folder_path_train": images,
        "folder_path_test": images,
        "tile_size": 16,
        "crop_size": 12,
        "num_epochs": EPOCHS,
        "batch_size_train": 2,
        "batch_size_test": 4,
        "save_interval": 1,
        "validation_fraction": 0.3,
        "precision": "float32",
        "cache_folder": out / "cache",
        "model_saved_location_mse": out,
        "training_loss_file_mse": out / "loss.csv",
        "model_path_mse": out / FINAL,
        "recon_output_mse": out / "pictures",
        "reconstruction_metrics_mse": out / "metrics.xlsx",
    }
    return [
        part for name, value in (settings | changes).items() for part in (f"--{name}", f"{value}")
    ]


def train(settings: Settings, asked: frozenset[str]) -> None:
    """The job of a trainee."""
    run_training(settings, "mse", TwoLayers, ImageFolderDataset, asked=asked)


def evaluate(settings: Settings, asked: frozenset[str]) -> None:
    """The job of an evaluation."""
    run_evaluation(settings, "mse", TwoLayers, ImageFolderDataset, asked=asked)


def command(argv: list[str], job: Callable[[Settings, frozenset[str]], None] = train) -> int:
    """What a script does, on one thread."""
    torch.set_num_threads(1)
    return run_command({}, argv, job)


def fork(log: Path, work: Callable[..., int | None], *args: Any) -> ForkServerProcess:
    """Start work in a new session, its output in `log` and `log`.err; its result is the exit code.

    Args:
        log: File.
        work: A function of a module, with picklable arguments.
        args: Of the work.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.reliability_runs", "torch._inductor"])
    process = context.Process(target=_begin, args=(log, work, args))
    process.start()
    return process


def _begin(log: Path, work: Callable[..., int | None], args: tuple[Any, ...]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
    for descriptor, path in ((1, log), (2, log.with_suffix(".err"))):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - a descriptor
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 - a descriptor
    sys.exit(work(*args))


def wait(process: ForkServerProcess, limit: float = LIMIT) -> int | None:
    """Exit code (negative: the signal), None if the process hung and was ended."""
    process.join(limit)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return code


def await_text(log: Path, text: str, process: ForkServerProcess) -> None:
    """Wait until a process has written a text, or has ended."""
    while process.is_alive() and not (log.exists() and text in log.read_text()):
        time.sleep(0.002)


def orphans(sessions: set[int], limit: float = 12) -> list[int]:
    """Processes of these sessions that are still there after so many seconds."""
    until, left = time.monotonic() + limit, [0]
    while left and time.monotonic() < until:
        time.sleep(0.1)
        left = [pid for pid in psutil.pids() if _session(pid) in sessions]
    return left


def _session(pid: int) -> int:
    try:
        return os.getsid(pid) if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else 0
    except (OSError, psutil.NoSuchProcess):
        return 0


def one_line(log: Path) -> bool:
    """Whether the error output of a process is a single line of this program."""
    said = log.with_suffix(".err").read_text()
    return said.startswith("error: ") and said.count("\n") == 1


def outcome(out: Path) -> dict[str, Any]:
    """What a run has made, times aside: equal for runs that are alike bit for bit."""
    saved = torch.load(out / LAST, weights_only=True)
    state = saved["run"].pop("state")
    with (out / "loss.csv").open(newline="", encoding="utf-8") as file:
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    models = [torch.load(out / name, weights_only=True) for name in (FINAL, BEST)]
    parts = {
        "weights": saved["model_state_dict"],
        "optimizer": saved["optimizer_state_dict"],
        "run": saved["run"],
        "state": {k: v for k, v in state.items() if k not in ("history", "seconds")},
        "history": [row[:6] for row in state["history"]],
        "models": models,
        "csv": rows,
        "files": sorted(path.name for path in out.iterdir()),
    }
    return {name: hashlib.sha256(_spelled(part)).hexdigest() for name, part in parts.items()}


def _spelled(value: Any) -> bytes:
    """Every bit of nested plain data."""
    if isinstance(value, Tensor):
        head = f"{value.dtype} {tuple(value.shape)}".encode()
        return head + value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, Mapping):
        return b"{" + b",".join(_spelled(k) + _spelled(v) for k, v in value.items()) + b"}"
    if isinstance(value, list | tuple):
        return b"[" + b",".join(map(_spelled, value)) + b"]"
    return repr(value).encode()
