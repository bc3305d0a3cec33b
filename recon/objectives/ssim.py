"""Structural similarity of Wang, Bovik, Sheikh and Simoncelli (2004), one value per image.

Images are (N, C, H, W) float tensors in [0, 1]; results are (N,) float32 in [-1, 1].
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from pytorch_msssim import SSIM
from pytorch_msssim.ssim import gaussian_filter
from torch import Tensor

__all__ = [
    "WINDOW",
    "check_images",
    "compare_locally",
    "full_precision",
    "luminance",
    "ssim",
    "structure",
    "window_band",
]

WINDOW = 11  # pixels
SIGMA = 1.5  # pixels
K1, K2 = 0.01, 0.03  # section III-C of the paper
DYNAMIC_RANGE = 1.0
BLOCK = 32  # places filtered by one matrix product


def ssim(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity of each image, as equation 13 of the paper defines it.

    An 11x11 Gaussian window of sigma 1.5, population variances, averaged over the valid region
    and then over channels: scikit-image's `gaussian_weights=True, use_sample_covariance=False`.
    Computed in float32 whatever precision the network runs in, or in float64 if both images are:
    float32 is for training, and is off by up to 3e-5 next to areas of pure black or white. A
    constant for each image and channel is taken off before filtering and put back to the means:
    the variances are then differences of small numbers, where float32 on bright tiles otherwise
    loses four digits.

    Args:
        reconstruction: (N, C, H, W) in [0, 1].
        target: (N, C, H, W) in [0, 1].

    Returns:
        (N,) in [-1, 1]; 1 for equal images.

    Raises:
        ValueError: If the shapes differ or an edge is under 11 pixels.

    Source:
        doi:10.1109/TIP.2003.819861
    """
    check_images(reconstruction, target)
    with full_precision(target.device):
        images = [x if x.dtype == torch.float64 else x.float() for x in (reconstruction, target)]
        light, shape = compare_locally(*images)
        return (light * shape).flatten(1).mean(1)


def compare_locally(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Compare the surroundings of every pixel of the valid region; the product is their SSIM.

    Args:
        x: (N, C, H, W), float32 or float64.
        y: Of the same shape and type.

    Returns:
        Luminance in [0, 1], and contrast times structure in [-1, 1]; (N, C, H - 10, W - 10) each.
    """
    centre_x, centre_y = (images.detach().mean((2, 3), keepdim=True) for images in (x, y))
    x, y = x - centre_x, y - centre_y
    filter_maps = _filter if x.dtype == torch.float32 else _filter_exactly
    moments = filter_maps(torch.cat([x, y, x * x, y * y, x * y], dim=1))
    mean_x, mean_y, square_x, square_y, product = moments.chunk(5, dim=1)
    variance_x = square_x - mean_x * mean_x
    variance_y = square_y - mean_y * mean_y
    covariance = product - mean_x * mean_y
    means = mean_x + centre_x, mean_y + centre_y
    return luminance(*means), structure(variance_x + variance_y, covariance)


def luminance(mean_x: Tensor, mean_y: Tensor) -> Tensor:
    """How alike local means are, in [0, 1]: equation 6 of the paper."""
    c1 = (K1 * DYNAMIC_RANGE) ** 2
    return (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)


def structure(variances: Tensor, covariance: Tensor) -> Tensor:
    """Contrast times structure, in [-1, 1], of the sum of the local variances: equation 13."""
    c2 = (K2 * DYNAMIC_RANGE) ** 2
    return (2 * covariance + c2) / (variances + c2)


def _filter(maps: Tensor) -> Tensor:
    """Gaussian-weighted local means of every channel, valid region only."""
    # Filters of one channel each run twice as fast on CPUs with the channels innermost.
    maps = maps.contiguous(memory_format=torch.channels_last)
    filtered: Tensor = gaussian_filter(maps, _window(maps.shape[1]).to(maps.device))
    return filtered


def _filter_exactly(maps: Tensor) -> Tensor:
    """The same in float64, where CPUs have no fast convolution: products with banded matrices."""
    height, width = (edge - WINDOW + 1 for edge in maps.shape[-2:])
    rows = [
        window_band(min(BLOCK, height - y), maps.device) @ maps[:, :, y : y + BLOCK + WINDOW - 1]
        for y in range(0, height, BLOCK)
    ]
    lines = torch.cat(rows, dim=2)  # (N, C, height, W)
    columns = [
        lines[..., x : x + BLOCK + WINDOW - 1] @ window_band(min(BLOCK, width - x), maps.device).T
        for x in range(0, width, BLOCK)
    ]
    return torch.cat(columns, dim=3)


@lru_cache
def window_band(places: int, device: torch.device) -> Tensor:
    """The window under each of some neighbouring places, (places, places + 10) float64."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.softmax(-(offsets**2) / (2 * SIGMA**2), dim=0)
    band = torch.zeros(places, places + WINDOW - 1, dtype=torch.float64)
    for place in range(places):
        band[place, place : place + WINDOW] = weights
    return band.to(device)


@lru_cache
def _window(channels: int) -> Tensor:
    """The Gaussian window for each channel, (C, 1, 1, 11), summing to 1."""
    with torch.inference_mode(False):  # The window outlives this call, and training may need it.
        module = SSIM(data_range=DYNAMIC_RANGE, win_size=WINDOW, win_sigma=SIGMA, channel=channels)
    window: Tensor = module.win
    return window


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch off autocast and TF32: both round products to under four digits."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32
    products.allow_tf32 = False
    try:
        with (
            torch.autocast(device.type, enabled=False),
            convolutions.flags(
                enabled=convolutions.enabled,
                benchmark=convolutions.benchmark,
                deterministic=convolutions.deterministic,
                allow_tf32=False,
            ),
        ):
            yield
    finally:
        products.allow_tf32 = before


def check_images(
    reconstruction: Tensor, target: Tensor, *, least: int = WINDOW, measure: str = "SSIM"
) -> None:
    """Refuse what cannot be compared.

    Args:
        reconstruction: Should be (N, C, H, W).
        target: Should be of the same shape.
        least: Pixels that an edge must have.
        measure: That needs them.

    Raises:
        ValueError: If the shapes differ or an edge is shorter.
    """
    if reconstruction.shape != target.shape or target.ndim != 4:
        raise ValueError(
            f"images must be two (N, C, H, W) tensors of one shape, "
            f"got {tuple(reconstruction.shape)} and {tuple(target.shape)}"
        )
    if min(target.shape[-2:]) < least:
        raise ValueError(
            f"edges must be at least {least} pixels for {measure}, got {tuple(target.shape[-2:])}"
        )
