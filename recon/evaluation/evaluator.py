"""From a trained network to one record and its pictures per image.

Images are (N, C, H, W) float tensors in [0, 1] on the device.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from recon.data.loaders import Batch, Failure, to_unit_range
from recon.evaluation.figures import to_picture
from recon.evaluation.pictures import Comparison
from recon.evaluation.records import NoisyInput, Record
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


@torch.no_grad()
def evaluate(
    reconstruct: Callable[[Tensor], Tensor],
    loader: Iterable[Batch],
    name_of: Callable[[int], str],
    device: torch.device,
    *,
    corrupt: Corrupt | None = None,
    draw: bool = True,
) -> Iterator[Evaluated]:
    """Reconstruct and measure, batch by batch.

    Args:
        reconstruct: From images in [0, 1] to reconstructions, (N, C, H, W) both.
        loader: Batches of images.
        name_of: Path of an image, by its index, as the records give it.
        device: Where the network is.
        corrupt: Spoils what the network is fed; all is measured against the images themselves.
        draw: Whether pictures are wanted.

    Yields:
        Records and pictures of each batch, in the order of the loader.
    """
    for batch in loader:
        indices = batch.indices.tolist()
        if not indices:
            yield Evaluated([], [], [], batch.failures)
            continue
        target = to_unit_range(batch.images.to(device, non_blocking=True))
        fed = target if corrupt is None else corrupt(target, indices)
        reconstruction = reconstruct(fed).float().clamp(0, 1)
        noisy = None if corrupt is None else fed
        records = _measure([name_of(index) for index in indices], target, reconstruction, noisy)
        comparisons = []
        if draw:
            pictures = [to_picture(images) for images in (target, reconstruction)]
            spoilt = [None] * len(indices) if noisy is None else to_picture(noisy)
            rows = zip(indices, records, *pictures, spoilt, strict=True)
            comparisons = [Comparison(*row) for row in rows]
        yield Evaluated(indices, records, comparisons, batch.failures)


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
