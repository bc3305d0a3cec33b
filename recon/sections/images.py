"""Images: how they are read, and which are kept for validation. Imports no torch."""

import re
from typing import Literal

from pydantic import Field, field_validator

from recon.sections.base import Range, Section

__all__ = ["Images", "Validation"]


class Images(Section):
    """How image files become what the network is fed."""

    title = "Images"
    cache: Literal["memory", "disk", "none"] = Field(
        "memory",
        description="where decoded 8-bit tiles are kept, so that only the first epoch decodes "
        "them; deeper files are read anew",
    )
    cache_folder: str = Field(".tile_cache", min_length=1, description="for cache = 'disk'")
    cache_limit_gb: float = Field(
        4.0,
        ge=0,
        description="gigabytes, of a machine: tiles beyond it are decoded every time; processes "
        "that are not forked, on macOS and Windows, have no cache",
    )
    color_mode: Literal["rgb", "grey"] = Field("rgb", description="three channels or one")
    intensity_range: Range | Literal["image"] | None = Field(
        None,
        description="(lowest, highest) value that files deeper than 8 bit map to 0 and 1; "
        '"image": each file\'s own lowest and highest, of any depth; '
        "None: 16-bit files by 65535, float files within 0..1 as they are, others refused",
    )
    slice_axis: int = Field(
        2, ge=0, le=2, description="axis along which a volume (3-D NIfTI) is cut into images"
    )
    input_normalization: Literal["imagenet", "zscore", "none"] = Field(
        "imagenet",
        description="of the network's input alone, stored with the weights: ImageNet statistics, "
        "each image's own mean and deviation, or none; targets, losses and metrics stay in 0..1",
    )
    unreadable_images: Literal["skip", "stop"] = Field(
        "skip", description="skip them, counted and listed at the end, or stop the run"
    )
    image_check_file: str = Field(
        "image_check.xlsx",
        description="workbook that Check_images.py writes; beside it the same rows as csv, and "
        "their record as json",
    )


class Validation(Section):
    """Images that are never trained on and choose the best checkpoint."""

    title = "Validation"
    folder_path_validation: str = Field(
        "", description='folder of validation images; "": split them off the training folder'
    )
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="part of the training images to split off; 0: none"
    )
    validation_group: str = Field(
        "folder",
        min_length=1,
        description='what the split keeps together: "folder", "image" (neighbouring tiles leak '
        "from one side to the other), or a regular expression on the path whose first group, "
        "or whole match, names the slide or patient",
    )

    @field_validator("validation_group")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"must be a valid regular expression ({error})") from None
        return value
