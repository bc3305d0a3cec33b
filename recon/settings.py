"""The settings of a run: typed, validated, frozen. Imports no torch.

Order of precedence: the defaults of `recon.sections`, `Config.py`, `--config FILE` (repeatable,
later wins), flags of the same spelling.
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationInfo, field_validator

from recon.sections import (
    MIN_EDGE,
    SECTIONS,
    Arithmetic,
    Augmentation,
    Denoising,
    Evaluation,
    Images,
    Latents,
    Layers,
    Networks,
    Optimisation,
    Range,
    Size,
    Sweep,
    System,
    Tracking,
    Training,
    Validation,
)
from recon.sources import Source, merge, read_flags, read_module, read_settings_file

__all__ = ["SECTIONS", "Settings", "Size", "load", "recorded"]


class Settings(
    Tracking,
    Sweep,
    Layers,
    Latents,
    Denoising,
    Augmentation,
    Arithmetic,
    Optimisation,
    Networks,
    Validation,
    Images,
    Evaluation,
    Training,
    System,
):
    """Every setting of a run."""

    @field_validator("tile_size", "crop_size")
    @classmethod
    def _edges(cls, value: Size | None) -> Size | None:
        edges = value if isinstance(value, tuple) else (value,)
        if any(edge is not None and edge < MIN_EDGE for edge in edges):
            raise ValueError(f"must be at least {MIN_EDGE} pixels, the window of SSIM")
        return value

    @field_validator(
        "reconstruction_metrics_mse",
        "reconstruction_metrics_ssim",
        "reconstruction_metrics_vae",
        "reconstruction_metrics_vqvae",
        "image_check_file",
    )
    @classmethod
    def _is_workbook(cls, value: str) -> str:
        if not value.lower().endswith(".xlsx"):
            raise ValueError("must end in .xlsx")
        return value

    @field_validator("intensity_range", "augment_scale", "augment_blur_sigma")
    @classmethod
    def _rises(cls, value: Range | str | None) -> Range | str | None:
        if isinstance(value, tuple) and not value[0] <= value[1]:
            raise ValueError("must be (lowest, highest)")
        return value

    @field_validator("intensity_range")
    @classmethod
    def _spans(cls, value: Range | str | None) -> Range | str | None:
        if isinstance(value, tuple) and value[0] == value[1]:
            raise ValueError("must span more than one value")
        return value

    @field_validator("augment_scale", "augment_blur_sigma")
    @classmethod
    def _positive(cls, value: Range, info: ValidationInfo) -> Range:
        off = value == (0, 0) and info.field_name == "augment_blur_sigma"
        if value[0] <= 0 and not off:
            raise ValueError("must be above 0")
        return value

    def of(self, name: str, objective: str) -> str:
        """The value of an objective's own setting: `of("model_path", "ssim")`."""
        return str(getattr(self, f"{name}_{objective}"))


def load(
    config: ModuleType | Mapping[str, Any], argv: list[str], about: str | None = None
) -> tuple[Settings, frozenset[str]]:
    """Merge defaults, `Config.py`, settings files and flags.

    Args:
        config: The imported `Config` module, or its names and values.
        argv: Arguments of the command line, without the program's name.
        about: What the program does, for `--help`: its docstring.

    Returns:
        The settings, and the names that were asked for on this command line.

    Raises:
        UserError: For an unknown name, a wrong type or a value out of range, in one line.
    """
    sources = [read_module(config)]
    flags, files = read_flags(argv, SECTIONS, sources[0].values, about)
    sources += [read_settings_file(Path(file)) for file in files]
    sources.append(flags)
    return merge(Settings, sources), _asked_for(sources[1:])


def recorded(settings: Settings) -> dict[str, Any]:
    """Settings as a record holds them: without the URL of a database, which may hold a password."""
    return settings.model_copy(update={"sweep_storage": ""}).model_dump(mode="json")


def _asked_for(sources: list[Source]) -> frozenset[str]:
    return frozenset(name for source in sources for name in source.values)
