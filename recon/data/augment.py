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
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

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
# How many numbers every image takes, used or not: no part shifts the draws of another.
DRAWS = {"rotation": 1, "flips": 2, "affine_rotation": 1, "translate": 2, "scale": 1, "shear": 1}
DRAWS |= {"window": 2, "brightness": 1, "contrast": 1, "saturation": 1, "hue": 1}
DRAWS |= {"blur_sigma": 1, "stain_gain": 3, "stain_shift": 3}

Size = tuple[int, int]  # height, width in pixels
Draws = dict[str, Tensor]  # part of the augmentation to numbers from [0, 1): (N, k) float64, CPU


@dataclass(frozen=True)
class AugmentationRanges:
    """What to draw from; the defaults are the reference's, and zeros switch a part off.

    Raises:
        ValueError: a field is outside its range.
    """

    rotation: float = 45.0  # degrees, drawn from [-rotation, rotation]
    horizontal_flip: float = 0.5  # probability of swapping left and right
    vertical_flip: float = 0.5  # probability of swapping top and bottom
    affine_rotation: float = 10.0  # degrees, a second rotation, after the flips
    translate: float = 0.1  # fraction of width and height, drawn from [-translate, translate]
    scale: tuple[float, float] = (0.9, 1.1)  # smallest and largest factor; above 1 magnifies
    shear: float = 5.0  # degrees along the rows, drawn from [-shear, shear]
    brightness: float = 0.2  # factor, drawn from [max(0, 1 - brightness), 1 + brightness]
    contrast: float = 0.2  # factor likewise, about the mean grey of the image
    saturation: float = 0.2  # factor likewise, about the grey of the pixel; 3 channels only
    hue: float = 0.1  # fraction of a full turn, drawn from [-hue, hue]; 3 channels only
    blur_kernel: int = 5  # pixels, odd; 1 is no blur
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels, smallest and largest; (0, 0) is no blur
    stain: float = 0.0  # strength, 0 to 1, of the perturbation of stains; 3 channels only

    def __post_init__(self) -> None:
        tops = {"rotation": 360.0, "affine_rotation": 360.0, "shear": 89.0, "hue": 0.5}
        tops["blur_kernel"] = math.inf
        for name, value in vars(self).items():
            if isinstance(value, float | int) and not 0 <= value <= tops.get(name, 1.0):
                raise ValueError(f"{name} must be in [0, {tops.get(name, 1.0):g}], got {value}")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"scale must be 0 < low <= high, got {self.scale}")
        low, high = self.blur_sigma
        if not (0 < low <= high < math.inf or low == high == 0):
            raise ValueError(f"blur_sigma must be (0, 0) or 0 < low <= high, got {low, high}")
        if self.blur_kernel % 2 != 1:
            raise ValueError(f"blur_kernel must be odd and positive, got {self.blur_kernel}")

    @property
    def blurs(self) -> bool:
        """Whether any image can be blurred."""
        return self.blur_kernel > 1 and self.blur_sigma[1] > 0


# Nothing switched on: a start for `dataclasses.replace`.
NO_AUGMENTATION = AugmentationRanges(*(0.0,) * 5, (1.0, 1.0), *(0.0,) * 5, 1, (0.0, 0.0), 0.0)


@torch.no_grad()
def augment(
    images: Tensor, ranges: AugmentationRanges, *, seed: int, crop_size: Size | None = None
) -> Tensor:
    """Augment every image with its own parameters, which depend on the seed alone.

    A crop is a window at a random place; rotation and scale act about its centre.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3.
        ranges: what to draw from.
        seed: any integer of 64 bits; the same seed gives the same parameters on every device.
        crop_size: height and width of the result in pixels, at most H and W; None keeps both.

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
    draws = draw(len(images), seed)
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
        return images if result is images else result.clamp_(0, 1)


def _check(images: Tensor, ranges: AugmentationRanges, size: Size) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != torch.float32:
        got = f"{tuple(images.shape)} {images.dtype}"
        raise ValueError(f"images must be (N, 1 or 3, H, W) float32, got {got}")
    if not (0 < size[0] <= images.shape[-2] and 0 < size[1] <= images.shape[-1]):
        raise ValueError(f"crop_size must fit into {tuple(images.shape[-2:])}, got {size}")
    if ranges.blurs and min(size) <= ranges.blur_kernel // 2:
        raise ValueError(f"blur_kernel must reach into images of {size}, got {ranges.blur_kernel}")


def draw(count: int, seed: int) -> Draws:
    """Draw the numbers of `DRAWS` for `count` images."""
    # torch's CPU generator keeps only 32 bits of its seed: a prime modulus lets all 64 bits count.
    generator = torch.Generator().manual_seed(seed % 4294967291)
    table = torch.rand(count, sum(DRAWS.values()), generator=generator, dtype=torch.float64)
    return dict(zip(DRAWS, torch.split(table, list(DRAWS.values()), dim=1), strict=True))


def _symmetric(drawn: Tensor, reach: float) -> Tensor:
    return (2 * drawn - 1) * reach


def _between(drawn: Tensor, low: float, high: float) -> Tensor:
    return low + drawn * (high - low)


def _factors(draws: Draws, name: str, reach: float) -> Tensor:
    return _between(draws[name], max(0.0, 1 - reach), 1 + reach)[:, :, None]


def pixel_maps(draws: Draws, ranges: AugmentationRanges, whole: Size, size: Size) -> Tensor:
    """Say for every image where in the input, `whole`, each pixel of the output, `size`, lies.

    Forwards, an image is rotated, flipped, and mapped by `s R(a) [[1, -tan h], [0, 1]]` and a
    shift, torchvision's RandomAffine; the map from output to input is the inverse.

    Returns:
        (N, 2, 3) float64 on the CPU: (x, y) = map @ (column, row, 1), in pixels between centres.
    """
    rotation = _rotations(-_symmetric(draws["rotation"], math.radians(ranges.rotation)))
    affine = _rotations(_symmetric(draws["affine_rotation"], math.radians(ranges.affine_rotation)))
    chances = torch.tensor((ranges.horizontal_flip, ranges.vertical_flip), dtype=torch.float64)
    flips = torch.diag_embed(1 - 2 * (draws["flips"] < chances).double())
    shear = torch.eye(2, dtype=torch.float64).repeat(len(affine), 1, 1)
    shear[:, 0, 1] = -_symmetric(draws["shear"][:, 0], math.radians(ranges.shear)).tan()
    scale = _between(draws["scale"], *ranges.scale)[:, :, None]
    inverse = torch.linalg.inv(scale * affine @ shear @ flips @ rotation)
    extent, outer = torch.tensor((size[::-1], whole[::-1]), dtype=torch.float64)
    centre = (extent - 1) / 2
    shift = _symmetric(draws["translate"], ranges.translate) * extent
    window = torch.floor(draws["window"] * (outer - extent + 1))
    origin = window + centre - (inverse @ (centre + shift)[:, :, None])[:, :, 0]
    return torch.cat((inverse, origin[:, :, None]), dim=2)


def _rotations(angles: Tensor) -> Tensor:
    """Return (N, 2, 2) turns by (N, 1) radians, clockwise to the eye where rows run downwards."""
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, -sin, sin, cos), dim=1).view(-1, 2, 2)


def warp(images: Tensor, maps: Tensor, size: Size, mode: str = "bilinear") -> Tensor:
    """Sample (N, C, H, W) images at `pixel_maps`; beyond the border lies the mirrored image.

    Between whole pixels `mode="nearest"` is exact. At scale 0.8 and above no pixel is skipped.
    """
    extent = torch.tensor(images.shape[:-3:-1], dtype=torch.float64)  # (width, height)
    maps = maps * (2 / extent)[:, None]  # pixels to [-1, 1] from edge to edge, as grid_sample asks
    maps[:, :, 2] += 1 / extent - 1
    maps = _send(maps, images.device)
    columns, rows = (torch.arange(n, device=images.device, dtype=torch.float32) for n in size[::-1])
    # affine_grid computes this by a matrix product, on GPUs in TF32: off by a tenth of a pixel.
    starts = maps[:, :, 1, None] * rows + maps[:, :, 2, None]  # (N, 2, H')
    grid = torch.addcmul(starts[..., None], maps[:, :, 0, None, None], columns)  # (N, 2, H', W')
    grid = grid.permute(0, 2, 3, 1)  # (N, H', W', 2)
    return functional.grid_sample(images, grid, mode, "reflection", align_corners=False)


def stain_maps(draws: Draws, ranges: AugmentationRanges) -> tuple[Tensor, Tensor]:
    """Perturb stain amounts c to `a c + b`: Tellez et al. 2018, doi:10.1109/TMI.2018.2820199.

    a is drawn from [1 - s, 1 + s] and b from [-0.1 s, 0.1 s], per image and stain, s the strength.
    Amounts below zero are kept, so that the way there and back is one linear map of densities.

    Returns:
        (N, 3, 3) and (N, 3): logarithm of RGB after = matrix @ logarithm before + offset.
    """
    stains = torch.tensor(RGB_FROM_HED, dtype=torch.float64)
    gain = 1 + _symmetric(draws["stain_gain"], ranges.stain)
    shift = _symmetric(draws["stain_shift"], ranges.stain) * STAIN_SHIFT
    matrix = stains.T @ torch.diag_embed(gain) @ torch.linalg.inv(stains).T
    return matrix, -(shift @ stains)


def perturb_stain(images: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Mix the logarithms of (N, 3, H, W) images by `stain_maps`; nothing gets brighter than 1."""
    logarithms = images.clamp(min=MIN_TRANSMITTANCE).log_()
    mixed = _mix(logarithms, _send(matrix, images.device), _send(offset, images.device))
    return mixed.clamp_(max=0).exp_()


def gaussian_kernels(draws: Draws, ranges: AugmentationRanges) -> Tensor:
    """Return one normalised Gaussian per image, (N, k) float64, as torchvision samples it."""
    sigma = _between(draws["blur_sigma"], *ranges.blur_sigma)
    offsets = torch.arange(ranges.blur_kernel, dtype=torch.float64) - ranges.blur_kernel // 2
    return torch.softmax(-0.5 * (offsets / sigma) ** 2, dim=1)


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Filter (N, C, H, W) images along both sides with (N, k) kernels, borders reflected.

    Shifted planes are added up: as fast as a grouped convolution on a CPU, and never in TF32.
    """
    weights = _send(kernels, images.device)[..., None, None, None]  # (N, k, 1, 1, 1)
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
    brightness = _factors(draws, "brightness", ranges.brightness)
    contrast = _factors(draws, "contrast", ranges.contrast)
    if channels == 1:
        return contrast * brightness, (1 - contrast) * brightness
    grey = torch.tensor(GREY_WEIGHTS, dtype=torch.float64).expand(3, 3)
    saturation = _factors(draws, "saturation", ranges.saturation)
    saturate = saturation * torch.eye(3, dtype=torch.float64) + (1 - saturation) * grey
    colours = _hue_turns(_symmetric(draws["hue"], ranges.hue)) @ saturate
    return contrast * brightness * colours, (1 - contrast) * brightness * (colours @ grey)


def _hue_turns(fractions: Tensor) -> Tensor:
    """Return (N, 3, 3) turns of RGB by (N, 1) fractions, from red towards yellow where positive."""
    yiq = torch.tensor(YIQ_FROM_RGB, dtype=torch.float64)
    turns = torch.eye(3, dtype=torch.float64).repeat(len(fractions), 1, 1)
    turns[:, 1:, 1:] = _rotations(-2 * math.pi * fractions)
    return torch.inverse(yiq) @ turns @ yiq


def jitter(images: Tensor, direct: Tensor, of_mean: Tensor) -> Tensor:
    """Change the colours of (N, C, H, W) images by `colour_maps`; results can leave [0, 1]."""
    offset = (_send(of_mean, images.device) * images.mean(dim=(2, 3))[:, None]).sum(dim=2)
    return _mix(images, _send(direct, images.device), offset)


def _mix(images: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Return matrix (N, C, C) @ channels of images (N, C, H, W) + offset (N, C), plane by plane."""
    columns = matrix[..., None, None]  # (N, C, C, 1, 1)
    result = torch.addcmul(offset[..., None, None], columns[:, :, 0], images[:, :1])
    for channel in range(1, images.shape[1]):
        result.addcmul_(columns[:, :, channel], images[:, channel : channel + 1])
    return result


def _send(parameters: Tensor, device: torch.device) -> Tensor:
    return parameters.float().to(device, non_blocking=True)
