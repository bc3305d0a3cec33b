"""What is reported of a reconstruction, one value per image.

Images are (N, C, H, W) float tensors in [0, 1]; results are (N,) float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from recon.objectives.reported_ssim import reported_ssim

__all__ = ["ImageMetrics", "image_metrics"]


class ImageMetrics(NamedTuple):
    """Metrics of a batch, each (N,) float64."""

    mse: Tensor
    psnr: Tensor  # dB
    ssim: Tensor


@torch.no_grad()
def image_metrics(reconstruction: Tensor, target: Tensor) -> ImageMetrics:
    """Measure reconstructions, clamped to [0, 1], against their targets.

    PSNR is 10 log10(1 / MSE) in dB, infinite for identical images. No rounding to 8 bit.

    Args:
        reconstruction: (N, C, H, W).
        target: (N, C, H, W) in [0, 1].

    Raises:
        ValueError: If the shapes differ or an edge is under 11 pixels.
    """
    reconstruction = reconstruction.detach().clamp(0, 1)
    structural = reported_ssim(reconstruction, target)
    # Bit for bit the same whatever the batch size; one by one, images stay in a CPU's cache.
    size = 1 if target.device.type == "cpu" else max(1, len(target))
    pairs = zip(torch.split(reconstruction, size), torch.split(target, size), strict=True)
    mse = torch.cat([(x.double() - y.double()).square().flatten(1).mean(1) for x, y in pairs])
    return ImageMetrics(mse, -10 * torch.log10(mse), structural)
