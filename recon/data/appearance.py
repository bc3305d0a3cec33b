"""Change stain, sharpness and colour of a batch, each image by parameters of its own.

Images are (N, C, H, W) float32 in [0, 1], C = 1 or 3.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from recon.data.ranges import (
    AugmentationRanges,
    Draws,
    between,
    factors,
    rotations,
    send,
    symmetric,
)

__all__ = ["blur", "colour_maps", "gaussian_kernels", "jitter", "perturb_stain", "stain_maps"]

# Luma weights as torchvision has them (ITU-R BT.601, cut to four digits): they sum to 0.9999.
GREY_WEIGHTS = (0.2989, 0.587, 0.114)
# RGB to YIQ, the NTSC colour space: rows Y, I, Q; rows I and Q are 0 on the grey axis.
YIQ_FROM_RGB = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
# Optical density of red, green, blue in haematoxylin, eosin, DAB: Ruifrok and Johnston 2001,
# Analytical and Quantitative Cytology and Histology 23(4), 291-299.
RGB_FROM_HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
# Black has no finite optical density; the darkest level of 8 bits above it stands in.
MIN_TRANSMITTANCE = 1 / 255
# Shift of a stain at strength 1, in natural optical density: at 0.2 white loses 5 % at most.
STAIN_SHIFT = 0.1


def stain_maps(draws: Draws, ranges: AugmentationRanges) -> tuple[Tensor, Tensor]:
    """Perturb stain amounts c to `a c + b`: Tellez et al. 2018, doi:10.1109/TMI.2018.2820199.

    a is drawn from [1 - s, 1 + s] and b from [-0.1 s, 0.1 s], per image and stain, s the strength.
    Amounts below zero are kept, so that the way there and back is one linear map of densities.

    Returns:
        (N, 3, 3) and (N, 3): logarithm of RGB after = matrix @ logarithm before + offset.
    """
    stains = torch.tensor(RGB_FROM_HED, dtype=torch.float64)
    gain = 1 + symmetric(draws["stain_gain"], ranges.stain)
    shift = symmetric(draws["stain_shift"], ranges.stain) * STAIN_SHIFT
    matrix = stains.T @ torch.diag_embed(gain) @ torch.linalg.inv(stains).T
    return matrix, -(shift @ stains)


def perturb_stain(images: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Mix the logarithms of (N, 3, H, W) images by `stain_maps`; nothing gets brighter than 1."""
    logarithms = images.clamp(min=MIN_TRANSMITTANCE).log_()
    mixed = _mix(logarithms, send(matrix, images.device), send(offset, images.device))
    return mixed.clamp_(max=0).exp_()


def gaussian_kernels(draws: Draws, ranges: AugmentationRanges) -> Tensor:
    """Return one normalised Gaussian per image, (N, k) float64, as torchvision samples it."""
    sigma = between(draws["blur_sigma"], *ranges.blur_sigma)
    offsets = torch.arange(ranges.blur_kernel, dtype=torch.float64) - ranges.blur_kernel // 2
    return torch.softmax(-0.5 * (offsets / sigma) ** 2, dim=1)


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Filter (N, C, H, W) images along both sides with (N, k) kernels, borders reflected.

    Shifted planes are added up: as fast as a grouped convolution on a CPU, and never in TF32.
    """
    weights = send(kernels, images.device)[..., None, None, None]  # (N, k, 1, 1, 1)
    padded = functional.pad(images, (kernels.shape[1] // 2,) * 4, mode="reflect")
    return _filter(_filter(padded, weights, 3), weights, 2)


def _filter(padded: Tensor, weights: Tensor, dim: int) -> Tensor:
    length = padded.shape[dim] - weights.shape[1] + 1
    result = padded.narrow(dim, 0, length) * weights[:, 0]
    for tap in range(1, weights.shape[1]):
        result.addcmul_(padded.narrow(dim, tap, length), weights[:, tap])
    return result


def colour_maps(draws: Draws, ranges: AugmentationRanges, channels: int) -> tuple[Tensor, Tensor]:
    """Fold brightness b, contrast c, saturation s and hue h, in this order, into one map.

    With the grey g = w . x and its mean m over the image, x -> b x, then c x + (1 - c) m, then
    s x + (1 - s) g, then a turn by 2 pi h about the grey axis in YIQ. torchvision shifts hue in
    HSV, which is not linear, keeps no luma, and jumps for the nearly grey; greys stay grey in both.

    Returns:
        (N, C, C) `direct` and `of_mean`: x after = direct @ x + of_mean @ (mean of x over pixels).
    """
    brightness = factors(draws, "brightness", ranges.brightness)
    contrast = factors(draws, "contrast", ranges.contrast)
    if channels == 1:
        return contrast * brightness, (1 - contrast) * brightness
    grey = torch.tensor(GREY_WEIGHTS, dtype=torch.float64).expand(3, 3)
    saturation = factors(draws, "saturation", ranges.saturation)
    saturate = saturation * torch.eye(3, dtype=torch.float64) + (1 - saturation) * grey
    colours = _hue_turns(symmetric(draws["hue"], ranges.hue)) @ saturate
    return contrast * brightness * colours, (1 - contrast) * brightness * (colours @ grey)


def _hue_turns(fractions: Tensor) -> Tensor:
    """Return (N, 3, 3) turns of RGB by (N, 1) fractions, from red towards yellow where positive."""
    yiq = torch.tensor(YIQ_FROM_RGB, dtype=torch.float64)
    turns = torch.eye(3, dtype=torch.float64).repeat(len(fractions), 1, 1)
    turns[:, 1:, 1:] = rotations(-2 * math.pi * fractions)
    return torch.inverse(yiq) @ turns @ yiq


def jitter(images: Tensor, direct: Tensor, of_mean: Tensor) -> Tensor:
    """Change the colours of (N, C, H, W) images by `colour_maps`; results can leave [0, 1]."""
    offset = (send(of_mean, images.device) * images.mean(dim=(2, 3))[:, None]).sum(dim=2)
    return _mix(images, send(direct, images.device), offset)


def _mix(images: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Return matrix (N, C, C) @ channels of images (N, C, H, W) + offset (N, C), plane by plane."""
    columns = matrix[..., None, None]  # (N, C, C, 1, 1)
    result = torch.addcmul(offset[..., None, None], columns[:, :, 0], images[:, :1])
    for channel in range(1, images.shape[1]):
        result.addcmul_(columns[:, :, channel], images[:, channel : channel + 1])
    return result
