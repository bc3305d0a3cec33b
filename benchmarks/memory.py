"""What a folder of a million images costs: the time to list it, and the memory of a training run.

    python -m benchmarks.memory
    python -m benchmarks.memory --images 200000 --folder /tmp

Writes so many small PNG files below the folder, by default in memory where there is enough, else in
that for temporary files, and trains on them and on a few of them for two short epochs, each in
processes of their own. Memory is that of all processes of a run together, its shared part counted
once, at the worst of the moments looked at, ten in a second; it needs Linux.
"""

import argparse
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import psutil
from PIL import Image

from datasets import ImageFolderDataset

FEW = 320
HELD_OUT = 32  # images for validation, in both runs
EDGE = 32  # pixels
IN_ONE_FOLDER = 1000
END = 12  # bytes of the chunk that ends a PNG
IN_MEMORY, ROOM = Path("/dev/shm"), 12e9  # bytes
SCRIPT = Path(__file__).parents[1] / "Training_MSE.py"


def roomy_folder() -> str | None:
    """A folder in memory, if the files fit twice; a disk takes minutes for a million."""
    if not IN_MEMORY.is_dir():
        return None
    room = min(shutil.disk_usage(IN_MEMORY).free, psutil.virtual_memory().available)
    return str(IN_MEMORY) if room > ROOM else None


def write_images(folder: Path, count: int) -> None:
    """Write one small tile many times, a thousand to a folder, named as tiles are.

    Each file bears its number, since copies of training images are left out of validation.
    """
    buffer = BytesIO()
    Image.new("RGB", (EDGE, EDGE), (200, 120, 180)).save(buffer, "PNG")
    head, end = buffer.getvalue()[:-END], buffer.getvalue()[-END:]
    below = folder
    for number in range(count):
        if number % IN_ONE_FOLDER == 0:
            below = folder / f"slide_{number // IN_ONE_FOLDER:04d}"
            below.mkdir(parents=True)
        name = f"TCGA-{number // IN_ONE_FOLDER:04d}_{number % 997 * 256:06d}_{number:07d}.png"
        (below / name).write_bytes(head + _comment(f"number {number}") + end)


def _comment(text: str) -> bytes:
    """A chunk of a PNG that changes no pixel."""
    chunk = b"tEXtComment\0" + text.encode("ascii")
    return struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))


def peak_memory(images: Path, count: int, out: Path) -> float:
    """Bytes of a training run and its workers together, at most.

    Raises:
        RuntimeError: If the run fails.
    """
    command = [sys.executable, str(SCRIPT), "--folder_path_train", str(images)]
    command += ["--GPUs", "", "--tile_size", str(EDGE), "--num_epochs", "2"]
    command += ["--images_per_epoch", "64", "--balance_folders", "True"]
    command += ["--validation_group", "image", "--validation_fraction", str(HELD_OUT / count)]
    command += ["--model_saved_location_mse", str(out / "checkpoints")]
    command += ["--training_loss_file_mse", str(out / "loss.csv")]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _memory(process))
        time.sleep(0.1)
    if process.returncode != 0:
        raise RuntimeError(f"training failed: {' '.join(command)}")
    return float(peak)


def _memory(process: psutil.Process) -> int:
    """Bytes of a process and its children now; what they share is divided between them."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_full_info().pss
        except psutil.Error:  # It has just ended.
            continue
    return total


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--images", type=int, default=1_000_000, help="in the large folder")
    parser.add_argument("--folder", default=None, help="below which to write them")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder or roomy_folder()) as scratch:
        few, many = Path(scratch, "few"), Path(scratch, "many")
        write_images(few, FEW)
        write_images(many, args.images)
        started = time.perf_counter()
        dataset = ImageFolderDataset(many, EDGE)
        seconds = time.perf_counter() - started
        if len(dataset) != args.images:
            raise RuntimeError(f"{len(dataset)} of {args.images} images were found")
        base = peak_memory(few, FEW, Path(scratch, "out_few"))
        peak = peak_memory(many, args.images, Path(scratch, "out_many"))
    sys.stdout.write(
        f"{args.images} images listed in {seconds:.1f} s; training on them takes "
        f"{(peak - base) / 1e6:.0f} MB more than on {FEW}, {peak / 1e6:.0f} MB at most\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
