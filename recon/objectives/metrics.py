"""What is reported of a reconstruction, one value per image.

Images are (N, C, H, W) float tensors in [0, 1]; results are (N,) float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from recon.objectives.ssim import ssim

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
    # Bit for bit the same whatever the batch size: reductions over one image at a time.
    images = reconstruction.detach().double().clamp(0, 1), target.double()
    structural = ssim(*images).double()
    difference = (images[0] - images[1]).square()
    mse = difference.flatten(1).mean(1)
    return ImageMetrics(mse, -10 * torch.log10(mse), structural)
