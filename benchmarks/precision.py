"""Loss curves of the same training in float32 and in bfloat16.

    python -m benchmarks.precision
    python -m benchmarks.precision --epochs 5 --crop 96

Trains the shipped network on tiles of a picture of tissue that comes with scikit-image, twice, from
the same seed, and prints the losses of each epoch and how far apart they are.
"""

import argparse
import csv
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from Auto_encoder import AutoEncoder
from benchmarks.throughput import write_tiles
from datasets import ImageFolderDataset
from recon.pipeline import run_training
from recon.settings import Settings

PRECISIONS = ("float32", "bfloat16")


def losses(tiles: Path, precision: str, epochs: int, crop: int, out: Path) -> list[float]:
    """Training loss of each epoch."""
    settings = Settings(
        GPUs="",
        precision=precision,
        folder_path_train=str(tiles),
        validation_fraction=0.0,
        num_epochs=epochs,
        crop_size=crop,
        model_saved_location_mse=str(out / "checkpoints"),
        training_loss_file_mse=str(out / "loss.csv"),
    )
    run_training(settings, "mse", AutoEncoder, ImageFolderDataset)
    with Path(settings.training_loss_file_mse).open(encoding="utf-8", newline="") as log:
        return [float(row["Loss"]) for row in csv.DictReader(log)]


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--tiles", type=int, default=208, help="images in the folder")
    parser.add_argument("--crop", type=int, default=96, help="pixels: edge of the windows")
    args = parser.parse_args(argv)
    logging.getLogger("recon").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        tiles = Path(scratch, "tiles")
        write_tiles(tiles, args.tiles)
        curves = [
            losses(tiles, precision, args.epochs, args.crop, Path(scratch, precision))
            for precision in PRECISIONS
        ]
    lines = [f"| epoch | {' | '.join(PRECISIONS)} | apart |", "| --- | --- | --- | --- |"]
    for epoch, (full, half) in enumerate(zip(*curves, strict=True), start=1):
        lines.append(f"| {epoch} | {full:.6f} | {half:.6f} | {abs(half - full) / full:.2%} |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
