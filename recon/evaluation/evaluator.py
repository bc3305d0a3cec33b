"""From a trained network to one record and one picture per image.

Images are (N, C, H, W) float tensors in [0, 1] on the device.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePath
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.data.loaders import Batch, Failure, to_unit_range
from recon.evaluation.figures import Panel, compose_comparison, to_picture
from recon.evaluation.records import Record
from recon.files import replacing
from recon.objectives.metrics import image_metrics

__all__ = ["Evaluated", "PictureWriter", "evaluate", "picture_names"]

SUFFIX = "_comparison.png"
LONGEST_NAME = 255 - len(".partial")  # bytes: what file systems take, less the name while writing
QUICK = 1  # PNG compression: four times faster than the default, a tenth larger


class Evaluated(NamedTuple):
    """One batch, measured."""

    indices: list[int]
    records: list[Record]
    originals: NDArray[np.uint8]  # (N, H, W, 3) or (N, H, W)
    reconstructions: NDArray[np.uint8]
    failures: list[Failure]


@torch.no_grad()
def evaluate(
    reconstruct: Callable[[Tensor], Tensor],
    loader: Iterable[Batch],
    name_of: Callable[[int], str],
    device: torch.device,
) -> Iterable[Evaluated]:
    """Reconstruct and measure, batch by batch.

    Args:
        reconstruct: From images in [0, 1] to reconstructions, (N, C, H, W) both.
        loader: Batches of images.
        name_of: Path of an image, by its index, as the records give it.
        device: Where the network is.

    Yields:
        Records and pictures of each batch, in the order of the loader.
    """
    for batch in loader:
        indices = batch.indices.tolist()
        if not indices:
            empty = np.empty(0, dtype=np.uint8)
            yield Evaluated([], [], empty, empty, batch.failures)
            continue
        target = to_unit_range(batch.images.to(device, non_blocking=True))
        reconstruction = reconstruct(target).float().clamp(0, 1)
        metrics = image_metrics(reconstruction, target)
        height, width = target.shape[-2:]
        records = [
            Record(name_of(index), mse, psnr, ssim, width, height)
            for index, mse, psnr, ssim in zip(indices, *(m.tolist() for m in metrics), strict=True)
        ]
        yield Evaluated(
            indices, records, to_picture(target), to_picture(reconstruction), batch.failures
        )


class PictureWriter:
    """Composes and writes comparisons in threads while the next batch is evaluated.

    Args:
        folder: Below which pictures are written.
        names: Relative name of each picture, by the index of its image.
        threads: That compose and encode.
    """

    def __init__(self, folder: Path, names: Callable[[int], str], threads: int) -> None:
        self.folder, self.names = folder, names
        self.pool = ThreadPoolExecutor(threads)
        self.most_pending = 8 * threads  # keeps memory constant when the disk is slow
        self.pending: deque[Future[None]] = deque()

    def __enter__(self) -> "PictureWriter":
        return self

    def write(self, evaluated: Evaluated) -> None:
        """Queue the pictures of a batch.

        Raises:
            OSError: If an earlier picture could not be written.
        """
        for i, index in enumerate(evaluated.indices):
            panels = (
                Panel("Original", evaluated.originals[i]),
                Panel("Reconstruction", evaluated.reconstructions[i]),
            )
            path = self.folder / self.names(index)
            self.pending.append(
                self.pool.submit(_write_comparison, path, panels, _caption(evaluated.records[i]))
            )
            while len(self.pending) > self.most_pending:
                self.pending.popleft().result()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.pool.shutdown(cancel_futures=error is not None)
        if error is None:
            for future in self.pending:
                future.result()


def _write_comparison(path: Path, panels: Sequence[Panel], caption: str) -> None:
    picture = compose_comparison(panels, caption)
    with replacing(path) as partial:
        picture.save(partial, format="PNG", compress_level=QUICK)


def _caption(record: Record) -> str:
    return f"MSE {record.mse:.5f}   PSNR {record.psnr:.2f} dB   SSIM {record.ssim:.4f}"


def picture_names(relative: Callable[[int], str], count: int) -> Callable[[int], str]:
    """Name the picture of each image so that no two are the same.

    `a/1.png` gives `a/1_comparison.png`. Where a folder also holds `1.jpg`, each keeps its
    extension: `a/1.png_comparison.png`.

    Args:
        relative: Path of an image below its folder, by its index.
        count: Of images.
    """
    # Hashes, eight bytes each: the names of a million images would cost a hundred megabytes.
    stems = np.fromiter((_hash(_stem(relative(i))) for i in range(count)), np.uint64, count)
    paths = np.fromiter((_hash(relative(i)) for i in range(count)), np.uint64, count)
    values, counts = np.unique(stems, return_counts=True)
    # A stem is also taken where a file bears it as its whole name: 1.png beside 1.png.jpg.
    shared = set(values[(counts > 1) | np.isin(values, paths)].tolist())

    def name(index: int) -> str:
        path = relative(index)
        base = path if _hash(_stem(path)) in shared else _stem(path)
        return _shortened(base)

    return name


def _stem(path: str) -> str:
    return str(PurePath(path).with_suffix(""))


def _hash(text: str) -> int:
    digest = hashlib.blake2b(os.fsencode(text), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _shortened(base: str) -> str:
    """Add the suffix, shortening names that the file system would refuse."""
    parent, name = os.path.split(base)
    if len(os.fsencode(name + SUFFIX)) > LONGEST_NAME:
        kept = os.fsencode(name)[: LONGEST_NAME - len(SUFFIX) - 17]
        name = f"{os.fsdecode(kept)}_{_hash(name):016x}"
    return os.path.join(parent, name + SUFFIX)  # noqa: PTH118 - as str, like what it came from
