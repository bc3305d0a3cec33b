"""How images are prepared for a network: stored with its weights, so that no use can differ."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor

__all__ = ["IntensityRange", "Preparation"]

IntensityRange = tuple[float, float] | Literal["image"] | None

# Means and standard deviations of the ImageNet training images, in [0, 1], RGB.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NORMALIZATIONS = ("imagenet", "zscore", "none")
LARGEST_EDGE = 65535  # pixels: what JPEG can hold, and more than any network is fed
FLAT = 1e-6  # a deviation below it is rounding: images become nearly 0, not noise or NaN


class Preparation(NamedTuple):
    """From an image file to the network's input."""

    tile_size: tuple[int, int]  # pixels, (height, width)
    channels: int
    input_normalization: str  # one of NORMALIZATIONS
    intensity_range: IntensityRange
    slice_axis: int = 2  # along which volumes are cut into images

    @property
    def refuses_constants(self) -> bool:
        """Whether an image of a single value cannot be normalised."""
        return self.input_normalization == "zscore"

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images in [0, 1], (N, C, H, W), as the network expects its input.

        By "zscore" each image alone gets mean 0 and (population) deviation 1 over its channels and
        pixels. What is constant, as a crop of an image may be, becomes 0.
        """
        if self.input_normalization == "none":
            return images
        if self.input_normalization == "zscore":
            axes = (1, 2, 3)
            centred = images - images.mean(axes, keepdim=True)
            return centred / centred.std(axes, correction=0, keepdim=True).clamp_min(FLAT)
        mean, std = (images.new_tensor(v) for v in (IMAGENET_MEAN, IMAGENET_STD))
        if self.channels == 1:
            mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
        return (images - mean[:, None, None]) / std[:, None, None]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Preparation":
        """Read back what `_asdict` gave, through JSON or not.

        Raises:
            ValueError: If the record is not one of a preparation.
        """
        try:
            height, width = map(_checked_edge, record["tile_size"])
            channels = int(record["channels"])
            if channels < 1:
                raise ValueError(f"channels must be at least 1, got {channels}")
            if record["input_normalization"] not in NORMALIZATIONS:
                raise ValueError(f"unknown input_normalization {record['input_normalization']!r}")
            slice_axis = int(record.get("slice_axis", 2))  # older records hold no volumes
            if slice_axis not in (0, 1, 2):
                raise ValueError(f"slice_axis must be 0, 1 or 2, got {slice_axis}")
            return cls(
                (height, width),
                channels,
                str(record["input_normalization"]),
                _checked_range(record["intensity_range"]),
                slice_axis,
            )
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not a record of an input preparation: {error!r}") from None


def _checked_edge(edge: Any) -> int:
    if not 1 <= edge <= LARGEST_EDGE:
        raise ValueError(f"tile_size must be 1 to {LARGEST_EDGE} pixels, got {edge}")
    return int(edge)


def _checked_range(span: Any) -> IntensityRange:
    if span is None or (isinstance(span, str) and span == "image"):
        return cast(IntensityRange, span)
    lowest, highest = map(float, span)
    if not -math.inf < lowest < highest < math.inf:
        raise ValueError(f"intensity_range must be (lowest, highest), got {span}")
    return lowest, highest
