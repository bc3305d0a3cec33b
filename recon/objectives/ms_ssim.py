"""Multi-scale structural similarity of Wang, Simoncelli and Bovik (2003), one value per image.

Images are (N, C, H, W) float tensors in [0, 1]; results are (N,) float32 in [0, 1].
"""

import torch
from torch import Tensor
from torch.nn import functional

from recon.objectives.ssim import WINDOW, check_images, compare_locally, full_precision

__all__ = ["SMALLEST", "ms_ssim"]

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # section 3.2 of the paper, finest scale first
SMALLEST = (WINDOW - 1) * 2 ** (len(WEIGHTS) - 1) + 1  # pixels: the window fits the coarsest scale
# What float32 resolves of a similarity. The slope of a power below 1 has no bound towards 0.
RESOLUTION = torch.finfo(torch.float32).eps


def ms_ssim(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Similarity of contrast and structure at five scales, and of luminance at the coarsest.

    Equation 7 of the paper for each channel, then the mean over channels, with the local
    statistics of `ssim`. Each scale is the 2x2 average of the one before. Where an edge is odd a
    line of black is put before it, as pytorch-msssim does, whose numbers these are. A scale whose
    mean is negative counts as 0, without gradient: other powers of it would be no numbers.

    Args:
        reconstruction: (N, C, H, W) in [0, 1], in any floating precision.
        target: (N, C, H, W) in [0, 1].

    Returns:
        (N,) in [0, 1]; 1 for equal images.

    Raises:
        ValueError: If the shapes differ or an edge is under 161 pixels.

    Source:
        doi:10.1109/ACSSC.2003.1292216
    """
    check_images(reconstruction, target, least=SMALLEST, measure="MS-SSIM")
    with full_precision(target.device):
        x, y = reconstruction.float(), target.float()
        product = x.new_ones(x.shape[:2])
        for scale, weight in enumerate(WEIGHTS):
            if scale > 0:
                x, y = _halve(x), _halve(y)
            luminance, structure = compare_locally(x, y)
            coarsest = scale == len(WEIGHTS) - 1
            similarity = luminance * structure if coarsest else structure
            product = product * _power(similarity.flatten(2).mean(2), weight)
        return product.mean(1)


def _halve(images: Tensor) -> Tensor:
    """Averages of 2x2 pixels, (N, C, ceil(H / 2), ceil(W / 2))."""
    height, width = images.shape[-2:]
    return functional.avg_pool2d(images, kernel_size=2, padding=(height % 2, width % 2))


def _power(similarity: Tensor, weight: float) -> Tensor:
    """The power of what is positive, else 0; its gradient is finite everywhere."""
    return similarity.clamp(min=RESOLUTION).pow(weight) * (similarity > 0)
