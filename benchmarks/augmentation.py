"""Time the augmentation of a batch beside two common libraries, as a markdown table.

From the project's root, with a fixed number of threads::

    python -m benchmarks.augmentation --threads 2

All rows draw from the reference's ranges, per image. torchvision works as the reference does, on
one PIL image after the other, in one thread. kornia is optional: `pip install kornia`.
"""

import argparse
import importlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2  # type: ignore[import-untyped, unused-ignore]

from recon.data.augment import augment
from recon.data.ranges import AugmentationRanges


class Row(NamedTuple):
    """One line of the table: `run` augments the whole batch, None where it is not installed."""

    name: str
    threads: int
    run: Callable[[], object] | None


def suite_row(images: Tensor, threads: int) -> Row:
    """Augment (N, 3, H, W) images by this project."""
    seeds = iter(range(1_000_000))
    ranges = AugmentationRanges()
    return Row("recon.data.augment", threads, lambda: augment(images, ranges, seed=next(seeds)))


def kornia_row(images: Tensor, threads: int) -> Row:
    """Augment (N, 3, H, W) images by kornia, which draws per sample by default."""
    if importlib.util.find_spec("kornia") is None:
        return Row("kornia", threads, None)
    kornia: Any = importlib.import_module("kornia")
    parts = kornia.augmentation
    pipeline = torch.nn.Sequential(
        parts.RandomRotation(45.0, p=1.0),
        parts.RandomHorizontalFlip(p=0.5),
        parts.RandomVerticalFlip(p=0.5),
        parts.RandomAffine(10.0, (0.1, 0.1), (0.9, 1.1), 5.0, p=1.0),
        parts.ColorJitter(0.2, 0.2, 0.2, 0.1, p=1.0),
        parts.RandomGaussianBlur((5, 5), (0.1, 2.0), p=1.0),
    )
    return Row(f"kornia {kornia.__version__}", threads, lambda: pipeline(images))


def torchvision_row(images: Tensor) -> Row:
    """Augment (N, 3, H, W) images by torchvision, as PIL images, one after the other."""
    pictures = [v2.functional.to_pil_image(image) for image in images]
    pipeline = v2.Compose(
        [
            v2.RandomRotation(45),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomAffine(10, (0.1, 0.1), (0.9, 1.1), 5),
            v2.ColorJitter(0.2, 0.2, 0.2, 0.1),
            v2.GaussianBlur(5, (0.1, 2.0)),
        ]
    )
    return Row("torchvision v2 on PIL", 1, lambda: [pipeline(picture) for picture in pictures])


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Time `run` that often, in seconds, after two calls that warm it up."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times[2:]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every row and write the table."""
    parser = argparse.ArgumentParser(description="time the augmentation of a batch")
    parser.add_argument("--batch", type=int, default=16, help="images")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--repeats", type=int, default=15, help="timed calls of each row")
    options = parser.parse_args(argv)

    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(options.batch, 3, options.size, options.size, generator=generator)
    rows = (
        suite_row(images, options.threads),
        kornia_row(images, options.threads),
        torchvision_row(images),
    )
    sys.stdout.write(f"{options.batch} images of 3x{options.size}x{options.size}, CPU, ")
    sys.stdout.write(f"torch {torch.__version__}\n\n")
    sys.stdout.write("| augmentation | threads | median ms per image | best ms per image |\n")
    sys.stdout.write("| --- | --- | --- | --- |\n")
    for row in rows:
        cells = "not installed | not installed"
        if row.run is not None:
            times = seconds(row.run, options.repeats)
            each = (
                1000 * value / options.batch for value in (statistics.median(times), min(times))
            )
            cells = " | ".join(f"{value:.2f}" for value in each)
        sys.stdout.write(f"| {row.name} | {row.threads} | {cells} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
