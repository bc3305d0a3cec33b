"""From a trained network to one record and its pictures per image.

Images are (N, C, H, W) float tensors in [0, 1] on the device.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from recon.data.loaders import Batch, Failure, to_unit_range
from recon.evaluation.figures import to_picture
from recon.evaluation.pictures import Comparison
from recon.evaluation.records import NoisyInput, Record
from recon.evaluation.spreading import spreading
from recon.objectives.metrics import image_metrics

__all__ = ["Corrupt", "Evaluated", "evaluate"]

Corrupt = Callable[[Tensor, list[int]], Tensor]
"""From images, (N, C, H, W), and their numbers in the dataset to what the network is fed."""


class Evaluated(NamedTuple):
    """One batch, measured."""

    indices: list[int]  # of the images in the dataset
    records: list[Record]
    comparisons: list[Comparison]  # of all records, or none
    failures: list[Failure]


def evaluate(
    reconstruct: Callable[[Tensor], Tensor],
    loader: Iterable[Batch],
    name_of: Callable[[int], str],
    device: torch.device,
    *,
    corrupt: Corrupt | None = None,
    draw: bool = True,
    threads: int = 1,
) -> Generator[Evaluated, None, None]:
    """Reconstruct and measure, batch by batch; the next batch is under way meanwhile.

    Args:
        reconstruct: From images in [0, 1] to reconstructions, (N, C, H, W) both. Called in other
            threads, in several at once if there are several.
        loader: Batches of images.
        name_of: Path of an image, by its index, as the records give it.
        device: Where the network is.
        corrupt: Spoils what the network is fed; all is measured against the images themselves.
        draw: Whether pictures are wanted.
        threads: That share the images of a batch. Several are for a CPU, whose cores then need
            not wait for each other at every layer.

    Yields:
        Records and pictures of each batch, in the order of the loader. The MSE of an image is NaN
        where its reconstruction is not finite.
    """
    work = partial(_evaluate, reconstruct, name_of, device, corrupt, draw)
    with spreading(threads) as pool:
        ahead: deque[tuple[list[Future[Evaluated]], list[Failure]]] = deque()
        for batch in loader:
            pieces = [pool.submit(work, *piece) for piece in _pieces(batch, threads)]
            ahead.append((pieces, batch.failures))
            if len(ahead) > 1:
                yield _joined(*ahead.popleft())
        while ahead:
            yield _joined(*ahead.popleft())


def _pieces(batch: Batch, threads: int) -> list[tuple[Tensor, Tensor]]:
    """Images and their indices, for each thread about as many."""
    count = min(threads, len(batch.indices))
    if count == 0:  # None of them could be read.
        return []
    return list(zip(batch.images.chunk(count), batch.indices.chunk(count), strict=True))


def _joined(pieces: list[Future[Evaluated]], failures: list[Failure]) -> Evaluated:
    done = [piece.result() for piece in pieces]
    return Evaluated(
        [index for piece in done for index in piece.indices],
        [record for piece in done for record in piece.records],
        [comparison for piece in done for comparison in piece.comparisons],
        failures,
    )


@torch.no_grad()
def _evaluate(
    reconstruct: Callable[[Tensor], Tensor],
    name_of: Callable[[int], str],
    device: torch.device,
    corrupt: Corrupt | None,
    draw: bool,
    images: Tensor,
    places: Tensor,
) -> Evaluated:
    """What `evaluate` does with some images of a batch, and their indices in the dataset."""
    indices = places.tolist()
    target = to_unit_range(images.to(device, non_blocking=True))
    fed = target if corrupt is None else corrupt(target, indices)
    raw = reconstruct(fed).float()
    # What is infinite must not pass for white: NaN shows in the figures.
    reconstruction = raw.masked_fill(~raw.isfinite(), math.nan).clamp(0, 1)
    noisy = None if corrupt is None else fed
    records = _measure([name_of(index) for index in indices], target, reconstruction, noisy)
    comparisons = []
    if draw:
        pictures = [to_picture(images) for images in (target, reconstruction)]
        spoilt = [None] * len(indices) if noisy is None else to_picture(noisy)
        rows = zip(indices, records, *pictures, spoilt, strict=True)
        comparisons = [Comparison(*row) for row in rows]
    return Evaluated(indices, records, comparisons, [])


def _measure(
    names: list[str], target: Tensor, reconstruction: Tensor, noisy: Tensor | None
) -> list[Record]:
    height, width = target.shape[-2:]
    metrics = zip(names, *(m.tolist() for m in image_metrics(reconstruction, target)), strict=True)
    records = [Record(name, mse, psnr, ssim, width, height) for name, mse, psnr, ssim in metrics]
    if noisy is None:
        return records
    before = zip(records, *(m.tolist() for m in image_metrics(noisy, target)), strict=True)
    return [
        record._replace(noisy=NoisyInput(mse, psnr, ssim, record.psnr - psnr))
        for record, mse, psnr, ssim in before
    ]
