"""Images per second of this engine and of the conventional loop, on this machine, in one run.

    python -m benchmarks.throughput            # the GPU where there is one, else the CPU
    python -m benchmarks.throughput --device cpu --batch 16

Prints one table. Decoding, augmentation and loading are measured on their own; "bare step" is
training on one batch that is already on the device; "end to end" is training from image files,
in the second epoch, by turns with the conventional loop and with the bare step. "Share of the
limit" is the arithmetic of the network at the measured rate of a matrix product, against the time
that was taken; of training end to end the limit is the bare step.
"""

import argparse
import json
import logging
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import Tensor, nn

from Auto_encoder import AutoEncoder
from benchmarks.limits import copy_rate, flops_of, matrix_rate, median_seconds
from datasets import ImageFolderDataset
from recon.data.augment import augment
from recon.data.cache import HEADER, CachedDataset, MemoryStore
from recon.data.loaders import Batches, make_loader
from recon.data.ranges import AugmentationRanges
from recon.models.folding import fold_normalizations
from recon.models.output import reconstruct
from recon.objectives.losses import Objective, Prediction
from recon.pipeline import run_evaluation, run_training
from recon.pipeline.assembling import OPTIMIZERS
from recon.settings import Settings
from recon.training.runtime import Runtime, start_runtime

TILE = 256  # pixels
RANGES = AugmentationRanges()
OPTIMIZER = "adamw"  # of whose kind the conventional loop's is
ROUNDS = 3  # in which both loops train by turns, since a shared machine has faster minutes


class Readable(Protocol):
    """A dataset."""

    def __getitem__(self, index: int, /) -> Tensor: ...


class Row(NamedTuple):
    """Images per second of both."""

    name: str
    conventional: float
    engine: float
    limit: float | None = None  # images per second


class Bench(NamedTuple):
    """What every measurement needs."""

    folder: Path
    paths: list[Path]
    runtime: Runtime
    batch: int
    workers: int
    seconds: float
    conventional: dict[str, float]  # images per second of the conventional loop, by part

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.runtime.device


def write_tiles(folder: Path, count: int) -> list[Path]:
    """Cut tiles at random from a picture of tissue."""
    picture, generator = data.immunohistochemistry(), np.random.default_rng(0)
    paths = [folder / f"{'ab'[i % 2]}/{i:04d}.png" for i in range(count)]
    for path in paths:
        y, x = generator.integers(0, 512 - TILE, 2)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[y : y + TILE, x : x + TILE]).save(path)
    return paths


def conventional_rates(
    folder: Path, device: torch.device, flags: Sequence[str]
) -> dict[str, float]:
    """Images per second of the conventional loop, in a process whose allocator is untouched."""
    command = [sys.executable, "-m", "benchmarks.conventional", str(folder)]
    command += ["--device", device.type, *flags]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    rates: dict[str, float] = json.loads(answer.stdout)
    return rates


def decode(bench: Bench) -> Row:
    """Reading one image: from the file, and from the cache."""
    cached = cached_dataset(bench)
    for i in range(len(bench.paths)):
        cached[i]
    before, now = bench.conventional["decode"], one_by_one(cached, bench)
    return Row("decode (engine: second epoch)", before, now)


def one_by_one(dataset: Readable, bench: Bench) -> float:
    """Images per second of a dataset in this process."""
    indices: Iterator[int] = iter(np.tile(np.arange(len(bench.paths)), 10_000))
    cpu = torch.device("cpu")
    work: Callable[[], object] = lambda: dataset[int(next(indices))]  # noqa: E731
    return 1 / median_seconds(work, cpu, bench.seconds / 4)


def augmentation(bench: Bench) -> Row:
    """Augmenting one batch on the device, against one image in one process."""
    batch = torch.rand(bench.batch, 3, TILE, TILE, device=bench.device)
    now = median_seconds(lambda: augment(batch, RANGES, seed=1), bench.device, bench.seconds / 4)
    before = bench.conventional["augmentation"]
    return Row("augmentation (conventional: one process)", before, bench.batch / now)


def loading(bench: Bench) -> Row:
    """Batches from worker processes; augmented in them by the conventional loop."""
    batches = Batches(len(bench.paths), bench.batch)
    ours = make_loader(cached_dataset(bench), batches, num_workers=bench.workers, pin_memory=False)
    for _ in ours:  # The first epoch decodes.
        pass
    started = time.perf_counter()
    images = sum(len(b.images) for b in ours)
    rate = images / (time.perf_counter() - started)
    return Row("loader", bench.conventional["loader"], rate)


def cached_dataset(bench: Bench) -> CachedDataset:
    """The engine's dataset, its cache empty."""
    dataset = ImageFolderDataset(bench.folder, TILE)
    shape, slots = (3, TILE, TILE), len(bench.paths)
    store = MemoryStore(slots * (HEADER + 3 * TILE * TILE))
    return CachedDataset(dataset, store, shape=shape, options="", slots=slots)


def bare_step(bench: Bench, optimizer_name: str) -> Row:
    """Training on one batch that is on the device; the conventional loop has Adam."""
    now = bare_rate(bench, optimizer_name, bench.seconds)
    name = f"bare step, {optimizer_name}"
    return Row(name, bench.conventional["bare step"], now, limit(bench, backward=True))


def bare_rate(bench: Bench, optimizer_name: str, seconds: float) -> float:
    """Images per second of the engine's bare step."""
    images = torch.rand(bench.batch, 3, TILE, TILE, device=bench.device)
    model = bench.runtime.place(AutoEncoder())
    optimizer = OPTIMIZERS[optimizer_name](model, lr=1e-4, weight_decay=1e-5, fused=True)
    work: Callable[[], object] = lambda: engine_step(bench, model, optimizer, images)  # noqa: E731
    return bench.batch / median_seconds(work, bench.device, seconds)


def engine_step(
    bench: Bench, model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor
) -> None:
    """What the trainer does with a batch, but for augmentation."""
    optimizer.zero_grad(set_to_none=True)
    with bench.runtime.autocast():
        output = reconstruct(model, images.contiguous(memory_format=torch.channels_last))
    Objective({"mse": 1.0})(Prediction(output.reconstruction), images).mean().backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def limit(bench: Bench, *, backward: bool) -> float:
    """Images per second if nothing but the network's arithmetic took time."""
    model = AutoEncoder().to(bench.device)
    flops = flops_of(model, torch.rand(2, 3, TILE, TILE, device=bench.device), backward=backward)
    dtype = torch.float32 if bench.runtime.precision in ("float32", "tf32") else torch.bfloat16
    return matrix_rate(bench.device, dtype) / flops


def inference(bench: Bench) -> Row:
    """Reconstructing one batch that is on the device."""
    images = torch.rand(bench.batch, 3, TILE, TILE, device=bench.device)
    model = bench.runtime.place(fold_normalizations(AutoEncoder().eval()))

    def engine() -> None:
        with torch.no_grad(), bench.runtime.autocast():
            reconstruct(model, images.contiguous(memory_format=torch.channels_last))

    now = bench.batch / median_seconds(engine, bench.device, bench.seconds)
    return Row("inference", bench.conventional["inference"], now, limit(bench, backward=False))


def training(bench: Bench, out: Path) -> Row:
    """From image files to a trained network, the second epoch; medians of all rounds."""
    before, bare, now = [], [], []
    flags = f"--batch {bench.batch} --workers {bench.workers} --training".split()
    for number in range(ROUNDS):
        before.append(conventional_rates(bench.folder, bench.device, flags)["training"])
        settings = bench_settings(bench, out / f"{number}")
        run_training(settings, "mse", AutoEncoder, ImageFolderDataset)
        log = np.genfromtxt(settings.training_loss_file_mse, delimiter=",", names=True)
        now.append(float(log["Imagess"][-1]))
        bare.append(bare_rate(bench, OPTIMIZER, bench.seconds))
    return Row(f"training, end to end, {OPTIMIZER}", median(before), median(now), median(bare))


def evaluation(bench: Bench, out: Path) -> Row:
    """From image files to metrics and a picture of every tile, in a process of its own."""
    settings = bench_settings(bench, out / "0")  # Of the first model that was trained.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        seconds = process.submit(_evaluate, settings).result()
    before, now = bench.conventional["evaluation"], len(bench.paths) / seconds
    return Row("evaluation with all pictures", before, now)


def _evaluate(settings: Settings) -> float:
    logging.getLogger("recon").setLevel(logging.WARNING)
    started = time.perf_counter()
    run_evaluation(settings, "mse", AutoEncoder, ImageFolderDataset)
    return time.perf_counter() - started


def bench_settings(bench: Bench, out: Path) -> Settings:
    """Settings of two epochs on the tiles, and of their evaluation."""
    return Settings(
        GPUs="" if bench.device.type == "cpu" else "all",
        num_workers=bench.workers,
        folder_path_train=str(bench.folder),
        folder_path_test=str(bench.folder),
        num_epochs=2,
        optimizer=OPTIMIZER,
        batch_size_train=bench.batch,
        validation_fraction=0.0,
        crop_size=None,
        model_saved_location_mse=str(out / "checkpoints"),
        training_loss_file_mse=str(out / "loss.csv"),
        model_path_mse=str(out / "checkpoints/Final_Model_AE_MSE.pth"),
        recon_output_mse=str(out / "pictures"),
        reconstruction_metrics_mse=str(out / "metrics.xlsx"),
    )


def table(rows: Sequence[Row], bench: Bench) -> str:
    """The rows in markdown, under the machine they were measured on."""
    lines = [
        f"{bench.runtime.name}, {bench.runtime.precision}, batches of {bench.batch}, "
        f"{bench.workers} workers, PyTorch {torch.__version__}; "
        f"copies {copy_rate(bench.device) / 1e9:.0f} GB/s",
        "",
        "| what | conventional, images/s | engine, images/s | ratio | share of the limit |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        share = "" if row.limit is None else f"{row.engine / row.limit:.0%} of {row.limit:.1f}"
        lines.append(
            f"| {row.name} | {row.conventional:.1f} | {row.engine:.1f} "
            f"| {row.engine / row.conventional:.1f} | {share} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto")
    parser.add_argument("--batch", type=int, default=0, help="images; 0: 16 on a CPU, 64 on a GPU")
    parser.add_argument("--tiles", type=int, default=208, help="images in the folder")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a measurement")
    args = parser.parse_args(argv)
    logging.getLogger("recon").setLevel(logging.WARNING)
    gpus = "" if args.device == "cpu" else "all"
    runtime = start_runtime(gpus, "auto", seed=0, deterministic=False)
    batch = args.batch or (16 if runtime.device.type == "cpu" else 64)
    with tempfile.TemporaryDirectory() as scratch:
        tiles, out = Path(scratch, "tiles"), Path(scratch, "out")
        paths = write_tiles(tiles, args.tiles)
        flags = f"--batch {batch} --workers {args.workers} --seconds {args.seconds}".split()
        before = conventional_rates(tiles, runtime.device, flags)
        bench = Bench(tiles, paths, runtime, batch, args.workers, args.seconds, before)
        rows = [decode(bench), augmentation(bench), loading(bench), inference(bench)]
        rows += [bare_step(bench, name) for name in (OPTIMIZER, "muon")]
        rows += [training(bench, out), evaluation(bench, out)]
        sys.stdout.write(table(rows, bench) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
