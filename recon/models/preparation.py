"""How images are prepared for a network: stored with its weights, so that no use can differ."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Preparation"]

# Means and standard deviations of the ImageNet training images, in [0, 1], RGB.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preparation(NamedTuple):
    """From an image file to the network's input."""

    tile_size: tuple[int, int]  # pixels, (height, width)
    channels: int
    input_normalization: str  # "imagenet" or "none"
    intensity_range: tuple[float, float] | None

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images in [0, 1], (N, C, H, W), as the network expects its input."""
        if self.input_normalization == "none":
            return images
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
            height, width = record["tile_size"]
            span = record["intensity_range"]
            if record["input_normalization"] not in ("imagenet", "none"):
                raise ValueError(f"unknown input_normalization {record['input_normalization']!r}")
            return cls(
                (int(height), int(width)),
                int(record["channels"]),
                str(record["input_normalization"]),
                None if span is None else (float(span[0]), float(span[1])),
            )
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"not a record of an input preparation: {error!r}") from None
