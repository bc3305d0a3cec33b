"""The loop that most projects write: what the engine is measured against.

PIL transforms on each image in worker processes, float32 with the channels outermost, Adam, the
loss read after every step; scikit-image's metrics and a matplotlib figure for each tile in
evaluation. Transforms and figure are those of the reference system. It runs in a process of its
own, whose allocator is as it comes.

    python -m benchmarks.conventional FOLDER --device cpu --batch 16 --workers 2 --seconds 8
    python -m benchmarks.conventional FOLDER --training
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms  # type: ignore[import-untyped, unused-ignore]

from Auto_encoder import AutoEncoder
from benchmarks.limits import median_seconds

TILE = 256  # pixels
EVALUATED = 64  # tiles: it is slow, and its rate constant
TRAINED = 6  # batches


def transform() -> transforms.Compose:
    """The augmentations of the reference system, on one PIL image."""
    return transforms.Compose(
        [
            transforms.Resize((TILE, TILE)),
            transforms.RandomRotation(45),
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=5),
            transforms.ColorJitter(0.2, 0.2, 0.2, 0.1),
            transforms.GaussianBlur(5, sigma=(0.1, 2.0)),
            transforms.ToTensor(),
        ]
    )


class PilDataset(Dataset[Tensor]):
    """Reads and transforms one image after the other; (3, 256, 256) float32 in [0, 1]."""

    def __init__(self, paths: Sequence[Path], *, augmented: bool) -> None:
        self.paths = paths
        self.transform = transform() if augmented else transforms.ToTensor()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.transform(Image.open(self.paths[index]).convert("RGB"))
        return image


def make_loader(paths: Sequence[Path], batch: int, workers: int) -> DataLoader[Tensor]:
    """Augmented batches, shuffled."""
    dataset = PilDataset(paths, augmented=True)
    return DataLoader(dataset, batch, shuffle=True, num_workers=workers, drop_last=True)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> float:
    """One step of training."""
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(images), images)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    paths: Sequence[Path],
    out: Path,
    device: torch.device,
    args: argparse.Namespace,
) -> None:
    """Reconstruct, measure and draw each image."""
    model.eval()
    dataset, names = PilDataset(paths, augmented=False), iter(enumerate(paths))
    for images in DataLoader(dataset, args.batch, num_workers=args.workers):
        results = model(images.to(device)).cpu()
        for pair in zip(images, results, strict=True):
            original, result = (image.permute(1, 2, 0).numpy() for image in pair)
            psnr = peak_signal_noise_ratio(original, result, data_range=1.0)
            ssim = structural_similarity(original, result, data_range=1.0, channel_axis=-1)
            number, path = next(names)
            text = f"PSNR {psnr:.2f} dB, SSIM {ssim:.4f}"
            draw((original, result), text, path.name, out / f"{number}_comparison.png")


def draw(pair: Sequence[NDArray[np.float32]], text: str, name: str, path: Path) -> None:
    """The figure of the reference system: its size, resolution, texts and layout."""
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 6))
    for axis, title, picture in zip(axes, ("Original", "Reconstruction"), pair, strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=14, fontweight="bold")
        axis.axis("off")
    figure.suptitle(text, fontsize=16, fontweight="bold")
    figure.text(0.5, 0.02, name, ha="center", fontsize=10, style="italic")
    figure.tight_layout(rect=(0, 0.03, 1, 0.96))
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def rates(paths: Sequence[Path], args: argparse.Namespace) -> dict[str, float]:
    """Images per second of each part of the loop, but for training end to end."""
    device = torch.device(args.device)
    model = AutoEncoder().to(device)
    adam = torch.optim.Adam(model.parameters(), lr=1e-4)
    images = torch.rand(args.batch, 3, TILE, TILE, device=device)
    plain, places = PilDataset(paths, augmented=False), itertools.cycle(range(len(paths)))
    change, opened = transform(), [Image.open(p).convert("RGB") for p in paths[: args.batch]]
    cpu, short = torch.device("cpu"), args.seconds / 4

    def augment() -> list[Tensor]:
        return [change(image) for image in opened]

    def infer() -> None:
        with torch.no_grad():
            model(images)

    model.eval()
    measured = {
        "decode": 1 / median_seconds(lambda: plain[next(places)], cpu, short),
        "augmentation": args.batch
        / median_seconds(lambda: [change(x) for x in opened], cpu, short),
        "inference": args.batch / median_seconds(infer, device, args.seconds),
    }
    model.train()
    seconds = median_seconds(lambda: step(model, adam, images), device, args.seconds)
    measured["bare step"] = args.batch / seconds
    loader = make_loader(paths, args.batch, args.workers)
    count = len(loader) * args.batch
    measured["loader"] = count / duration(lambda: [len(x) for x in loader])
    part = paths[:EVALUATED]
    with tempfile.TemporaryDirectory() as out:
        seconds = duration(lambda: evaluate(model, part, Path(out), device, args))
    measured["evaluation"] = len(part) / seconds
    return measured


def training_rate(paths: Sequence[Path], args: argparse.Namespace) -> dict[str, float]:
    """Images per second of training, end to end, once its workers have started."""
    device = torch.device(args.device)
    model = AutoEncoder().to(device)
    adam = torch.optim.Adam(model.parameters(), lr=1e-4)
    loader = make_loader(paths[: TRAINED * args.batch], args.batch, args.workers)
    batches = iter(loader)
    step(model, adam, next(batches).to(device))
    seconds = duration(lambda: [step(model, adam, x.to(device)) for x in batches])
    return {"training": (len(loader) - 1) * args.batch / seconds}


def duration(work: Callable[[], object]) -> float:
    """Seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the rates as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a measurement")
    parser.add_argument("--training", action="store_true", help="measure training end to end")
    args = parser.parse_args(argv)
    measure = training_rate if args.training else rates
    sys.stdout.write(json.dumps(measure(sorted(args.folder.rglob("*.png")), args)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
