"""From a trained network to one record and two pictures per image.

Images are (N, C, H, W) float tensors in [0, 1] on the device.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from recon.data.loaders import Batch, Failure, to_unit_range
from recon.evaluation.figures import to_picture
from recon.evaluation.pictures import Comparison
from recon.evaluation.records import Record
from recon.objectives.metrics import image_metrics

__all__ = ["Evaluated", "evaluate"]


class Evaluated(NamedTuple):
    """One batch, measured."""

    comparisons: list[Comparison]
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
            yield Evaluated([], batch.failures)
            continue
        target = to_unit_range(batch.images.to(device, non_blocking=True))
        reconstruction = reconstruct(target).float().clamp(0, 1)
        metrics = image_metrics(reconstruction, target)
        height, width = target.shape[-2:]
        records = [
            Record(name_of(index), mse, psnr, ssim, width, height)
            for index, mse, psnr, ssim in zip(indices, *(m.tolist() for m in metrics), strict=True)
        ]
        pictures = to_picture(target), to_picture(reconstruction)
        rows = zip(indices, records, *pictures, strict=True)
        yield Evaluated([Comparison(*row) for row in rows], batch.failures)
