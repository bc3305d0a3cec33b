"""Augment a whole batch on its own device, with parameters of its own for every image.

Images are contiguous (N, C, H, W) float32 in [0, 1], C = 1 or 3; other layouts are made contiguous.
Ranges are the reference's. The order is warp, stain, blur, colour, and what differs has its reason:

- Rotation, flips, affine map and crop are one map, so pixels are interpolated once and not twice,
  and borders are reflected: the reference's black corners are tissue that does not exist.
- Brightness, contrast, saturation and hue are one affine map of the channels. It commutes with
  warp and blur, comes last, and is clipped once; torchvision shuffles its steps and clips each.

Parameters are drawn on the CPU and sent over without waiting for the device. Pixels pass only sums
and products of float32 planes: matrix products and convolutions TF32 would round to 11 bits.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from recon.data.appearance import (
    blur,
    colour_maps,
    gaussian_kernels,
    jitter,
    perturb_stain,
    stain_maps,
)
from recon.data.ranges import (
    NO_AUGMENTATION,
    AugmentationRanges,
    Draws,
    Size,
    between,
    draw,
    rotations,
    send,
    symmetric,
)

__all__ = ["NO_AUGMENTATION", "AugmentationRanges", "augment", "pixel_maps", "warp"]


@torch.no_grad()
def augment(
    images: Tensor,
    ranges: AugmentationRanges,
    *,
    seed: int,
    crop_size: Size | None = None,
    places: Tensor | None = None,
) -> Tensor:
    """Augment every image with its own parameters, which depend on the seed alone.

    A crop is a window at a random place; rotation and scale act about its centre.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3.
        ranges: what to draw from.
        seed: any integer of 64 bits; the same seed gives the same parameters on every device.
        crop_size: height and width of the result in pixels, at most H and W; None keeps both.

        places: (N,) places of the images in the whole batch, where some were left out or other
            processes have them: what an image draws depends on its place alone. None: all are here.

    Returns:
        (N, C, *crop_size) float32 in [0, 1], contiguous; where nothing is switched on, `images`.

    Raises:
        ValueError: the images or the crop are not as described.
    """
    whole = (images.shape[-2], images.shape[-1])
    size = crop_size or whole
    _check(images, ranges, size)
    turns = ranges.rotation or ranges.affine_rotation or ranges.translate or ranges.shear
    mode = "bilinear" if turns or ranges.scale != (1, 1) else "nearest"
    coloured = images.shape[1] == 3
    draws = draw(len(images), seed) if places is None else _draws_at(places, seed)
    result = images.contiguous()
    with torch.autocast(images.device.type, enabled=False):
        if mode == "bilinear" or ranges.horizontal_flip or ranges.vertical_flip or size != whole:
            result = warp(result, pixel_maps(draws, ranges, whole, size), size, mode)
        if coloured and ranges.stain > 0:
            result = perturb_stain(result, *stain_maps(draws, ranges))
        if ranges.blurs:
            result = blur(result, gaussian_kernels(draws, ranges))
        if ranges.brightness or ranges.contrast or (coloured and (ranges.saturation or ranges.hue)):
            result = jitter(result, *colour_maps(draws, ranges, images.shape[1]))
        if ranges.probability < 1:
            result = _spare(images.contiguous(), result, draws, ranges)
        return images if result is images else result.clamp_(0, 1)


def _draws_at(places: Tensor, seed: int) -> Draws:
    everyone = draw(int(places.max()) + 1, seed)
    return {name: numbers[places] for name, numbers in everyone.items()}


def _spare(images: Tensor, changed: Tensor, draws: Draws, ranges: AugmentationRanges) -> Tensor:
    """Put back, flipped and cropped but not changed, the images that were drawn to be spared."""
    whole = (images.shape[-2], images.shape[-1])
    size = (changed.shape[-2], changed.shape[-1])
    still = replace(
        NO_AUGMENTATION, horizontal_flip=ranges.horizontal_flip, vertical_flip=ranges.vertical_flip
    )
    plain = warp(images, pixel_maps(draws, still, whole, size), size, "nearest")
    is_changed = send(draws["change"] < ranges.probability, images.device).bool()
    return torch.where(is_changed[..., None, None], changed, plain)


def _check(images: Tensor, ranges: AugmentationRanges, size: Size) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != torch.float32:
        got = f"{tuple(images.shape)} {images.dtype}"
        raise ValueError(f"images must be (N, 1 or 3, H, W) float32, got {got}")
    if not (0 < size[0] <= images.shape[-2] and 0 < size[1] <= images.shape[-1]):
        raise ValueError(f"crop_size must fit into {tuple(images.shape[-2:])}, got {size}")
    if ranges.blurs and min(size) <= ranges.blur_kernel // 2:
        raise ValueError(f"blur_kernel must reach into images of {size}, got {ranges.blur_kernel}")


def pixel_maps(draws: Draws, ranges: AugmentationRanges, whole: Size, size: Size) -> Tensor:
    """Say for every image where in the input, `whole`, each pixel of the output, `size`, lies.

    Forwards, an image is rotated, flipped, and mapped by `s R(a) [[1, -tan h], [0, 1]]` and a
    shift, torchvision's RandomAffine; the map from output to input is the inverse.

    Returns:
        (N, 2, 3) float64 on the CPU: (x, y) = map @ (column, row, 1), in pixels between centres.
    """
    rotation = rotations(-symmetric(draws["rotation"], math.radians(ranges.rotation)))
    affine = rotations(symmetric(draws["affine_rotation"], math.radians(ranges.affine_rotation)))
    chances = torch.tensor((ranges.horizontal_flip, ranges.vertical_flip), dtype=torch.float64)
    flips = torch.diag_embed(1 - 2 * (draws["flips"] < chances).double())
    shear = torch.eye(2, dtype=torch.float64).repeat(len(affine), 1, 1)
    shear[:, 0, 1] = -symmetric(draws["shear"][:, 0], math.radians(ranges.shear)).tan()
    scale = between(draws["scale"], *ranges.scale)[:, :, None]
    inverse = torch.linalg.inv(scale * affine @ shear @ flips @ rotation)
    extent, outer = torch.tensor((size[::-1], whole[::-1]), dtype=torch.float64)
    centre = (extent - 1) / 2
    shift = symmetric(draws["translate"], ranges.translate) * extent
    window = torch.floor(draws["window"] * (outer - extent + 1))
    origin = window + centre - (inverse @ (centre + shift)[:, :, None])[:, :, 0]
    return torch.cat((inverse, origin[:, :, None]), dim=2)


def warp(images: Tensor, maps: Tensor, size: Size, mode: str = "bilinear") -> Tensor:
    """Sample (N, C, H, W) images at `pixel_maps`; beyond the border lies the mirrored image.

    Between whole pixels `mode="nearest"` is exact. At scale 0.8 and above no pixel is skipped.
    """
    extent = torch.tensor(images.shape[:-3:-1], dtype=torch.float64)  # (width, height)
    maps = maps * (2 / extent)[:, None]  # pixels to [-1, 1] from edge to edge, as grid_sample asks
    maps[:, :, 2] += 1 / extent - 1
    maps = send(maps, images.device)
    columns, rows = (torch.arange(n, device=images.device, dtype=torch.float32) for n in size[::-1])
    # affine_grid computes this by a matrix product, on GPUs in TF32: off by a tenth of a pixel.
    starts = maps[:, :, 1, None] * rows + maps[:, :, 2, None]  # (N, 2, H')
    grid = torch.addcmul(starts[..., None], maps[:, :, 0, None, None], columns)  # (N, 2, H', W')
    grid = grid.permute(0, 2, 3, 1)  # (N, H', W', 2)
    return functional.grid_sample(images, grid, mode, "reflection", align_corners=False)
