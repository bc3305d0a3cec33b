"""What augmentation draws from, and the numbers it draws for every image."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "NO_AUGMENTATION",
    "AugmentationRanges",
    "Draws",
    "Size",
    "between",
    "draw",
    "factors",
    "rotations",
    "send",
    "symmetric",
]

# How many numbers every image takes, used or not: no part shifts the draws of another.
DRAWS = {"rotation": 1, "flips": 2, "affine_rotation": 1, "translate": 2, "scale": 1, "shear": 1}
DRAWS |= {"window": 2, "brightness": 1, "contrast": 1, "saturation": 1, "hue": 1}
DRAWS |= {"blur_sigma": 1, "stain_gain": 3, "stain_shift": 3, "change": 1}

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
    probability: float = 1.0  # of any change but flips and crops, which every image gets

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


def draw(count: int, seed: int) -> Draws:
    """Draw the numbers of `DRAWS` for `count` images."""
    # torch's CPU generator keeps only 32 bits of its seed: a prime modulus lets all 64 bits count.
    generator = torch.Generator().manual_seed(seed % 4294967291)
    table = torch.rand(count, sum(DRAWS.values()), generator=generator, dtype=torch.float64)
    return dict(zip(DRAWS, torch.split(table, list(DRAWS.values()), dim=1), strict=True))


def symmetric(drawn: Tensor, reach: float) -> Tensor:
    """Map numbers from [0, 1) to [-reach, reach)."""
    return (2 * drawn - 1) * reach


def between(drawn: Tensor, low: float, high: float) -> Tensor:
    """Map numbers from [0, 1) to [low, high)."""
    return low + drawn * (high - low)


def factors(draws: Draws, name: str, reach: float) -> Tensor:
    """Draw (N, 1, 1) factors about 1, at least 0."""
    return between(draws[name], max(0.0, 1 - reach), 1 + reach)[:, :, None]


def rotations(angles: Tensor) -> Tensor:
    """Return (N, 2, 2) turns by (N, 1) radians, clockwise to the eye where rows run downwards."""
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, -sin, sin, cos), dim=1).view(-1, 2, 2)


def send(parameters: Tensor, device: torch.device) -> Tensor:
    """Copy small parameters to the device without waiting."""
    return parameters.float().to(device, non_blocking=True)
