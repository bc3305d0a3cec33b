"""The SSIM that is reported: that of float64 to five digits, for less than half of its price.

CPUs compute float32 twice as fast, but next to areas of pure black or white its variances lose
their digits. Images are therefore cut into blocks, and each block's own mean is taken off, which
leaves numbers that are small where variances are. How far rounding can have reached is then
estimated for each image, and an image for which that is too far is computed again in float64.
"""

import torch
from torch import Tensor
from torch.nn import functional

from recon.objectives.ssim import (
    WINDOW,
    check_images,
    full_precision,
    luminance,
    ssim,
    structure,
    window_band,
)

__all__ = ["reported_ssim"]

BLOCK = 16  # places of a block along each edge, at most; more let the mean of a block fit it less
OVERLAP = WINDOW - 1
FINEST = (torch.float32, torch.float16, torch.bfloat16)  # what float32 holds without rounding

# The error of a place is some units of rounding, 2**-24, of the local mean square over the
# denominator. Averaged over an image it was 0.1 units for photographs, and 6.5 at most in a
# thousand patterns of flat areas and edges made to be hard; sixteen are reckoned with.
UNITS = 16 * 2**-24
TOLERANCE = 8e-6


def reported_ssim(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity of each image, within 1e-5 of `ssim` in float64.

    An image's value depends on nothing but the image. On GPUs, whose float32 products TF32 would
    round, everything is computed in float64.

    Args:
        reconstruction: (N, C, H, W) in [0, 1].
        target: (N, C, H, W) in [0, 1].

    Returns:
        (N,) float64 in [-1, 1].

    Raises:
        ValueError: If the shapes differ or an edge is under 11 pixels.
    """
    check_images(reconstruction, target)
    images = reconstruction, target
    if target.device.type != "cpu" or any(x.dtype not in FINEST for x in images):
        return ssim(reconstruction.double(), target.double())
    with full_precision(target.device):
        values = [_measure(x.float(), y.float()) for x, y in zip(*images, strict=True)]
    return torch.stack(values) if values else target.new_empty(0, dtype=torch.float64)


def _measure(x: Tensor, y: Tensor) -> Tensor:
    """SSIM of an image, (C, H, W) float32, as a float64 scalar."""
    value, spread = _compare_blocks(x, y)
    if UNITS * spread <= TOLERANCE:  # False for NaN.
        return value
    return ssim(x[None].double(), y[None].double())[0]


def _compare_blocks(x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """SSIM, a float64 scalar, and the mean over all places of the mean square per denominator."""
    height, width = (extent - OVERLAP for extent in x.shape[1:])
    blocks = _cut(x), _cut(y)
    centre_x, centre_y = (part.mean((0, 4), keepdim=True) for part in blocks)
    light_x, light_y = (centre.movedim(0, 4) for centre in (centre_x, centre_y))
    maps = x.new_empty(len(blocks[0]), 4, *blocks[0].shape[1:])  # filled in place: no copies
    x, y, squares, products = maps.unbind(1)
    torch.sub(blocks[0], centre_x, out=x)
    torch.sub(blocks[1], centre_y, out=y)
    torch.mul(x, x, out=squares).addcmul_(y, y)
    torch.mul(x, y, out=products)
    mean_x, mean_y, square, product = _filter(maps)  # (C, rows, columns, width, height) each
    variances = square - mean_x * mean_x - mean_y * mean_y
    shape = structure(variances, product - mean_x * mean_y)
    light = luminance(mean_x + light_x, mean_y + light_y)
    places = (light * shape).permute(0, 1, 4, 2, 3).flatten(3, 4).flatten(1, 2)
    valid = places[:, :height, :width]  # (C, height, width)
    return valid.mean(dtype=torch.float64), float(structure(variances, square / 2).mean())


def _cut(images: Tensor) -> Tensor:
    """Blocks of places and what the window sees from them, of (C, H, W) images.

    Returns:
        (edge + 10, C, rows, columns, edge + 10), lines of a block first and places of a line last,
        a view; what lies beyond the image repeats its border.
    """
    edges, missing = [], []
    for extent in images.shape[1:]:
        places = extent - OVERLAP
        count = -(-places // BLOCK)
        edges.append(-(-places // count))
        missing.append(count * edges[-1] - places)
    padded = functional.pad(images[None], (0, missing[1], 0, missing[0]), mode="replicate")[0]
    rows = padded.unfold(1, edges[0] + OVERLAP, edges[0])
    return rows.unfold(2, edges[1] + OVERLAP, edges[1]).permute(3, 0, 1, 2, 4)


def _filter(maps: Tensor) -> Tensor:
    """Gaussian-weighted local means at the places of each block, from (edge + 10, ..., edge + 10).

    Each direction is one product of two matrices, whose long edge is that of the result's rows:
    threads share rows, and no bit depends on how many there are.

    Returns:
        (..., edge, edge), places of a line before the lines of a block.
    """
    down, across = (
        window_band(extent - OVERLAP, maps.device).float()
        for extent in (maps.shape[0], maps.shape[-1])
    )
    lines = maps @ across.T  # (edge + 10, ..., edge)
    places = lines.flatten(1).T @ down.T  # (... x edge, edge)
    return places.view(*lines.shape[1:], -1)
