"""Find the checkpoint to go on from, and refuse to go on with other settings."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recon.errors import UserError, quoted
from recon.training.checkpoint import read_checkpoint

__all__ = ["LAST", "epoch_name", "find_checkpoint", "kept_checkpoints", "refuse_changes"]

logger = logging.getLogger("recon")

LAST = "Last_Model_AE.pth"

# What decides the weights bit by bit, and so must stay as it was. All else (devices, workers,
# paths, intervals, the number of epochs) may change.
FIXED = (
    "tile_size", "batch_size_train", "color_mode", "intensity_range", "input_normalization",
    "validation_fraction", "validation_group", "architecture", "optimizer", "learning_rate",
    "weight_decay", "weight_averaging", "images_per_epoch", "balance_folders", "schedule",
    "warmup_fraction", "gradient_clip", "seed", "precision", "accumulation", "slice_axis",
    "latent_dim", "residual_blocks", "latent_channels", "activation", "unet_width", "code_dim",
    "commitment", "beta", "beta_warmup", "noise_std", "noise_fixed",
)  # fmt: skip
FIXED_PREFIXES = ("augment", "crop_size", "loss_weights_", "codebook", "feature_")


def epoch_name(epoch: int) -> str:
    """Name of the checkpoint that is kept after an epoch."""
    return f"Model_AE_epoch_{epoch:03d}.pth"


def kept_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that are kept, the newest first.

    By the time they were written: an older run may have left higher numbers in the folder.
    """

    def age(path: Path) -> tuple[int, int, str]:
        return path.stat().st_mtime_ns, len(path.name), path.name

    return sorted(folder.glob("Model_AE_epoch_*.pth"), key=age, reverse=True)


def find_checkpoint(resume: str, folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Read the checkpoint that the setting asks for.

    Args:
        resume: "" for none, "auto" for the newest intact one in the folder, or a path.
        folder: Of the run's checkpoints.

    Returns:
        Its path and content, or None to start anew.

    Raises:
        UserError: If a path is given and cannot be resumed, or there are checkpoints of which none
            can be read: starting anew would write over them.
    """
    if not resume:
        return None
    if resume != "auto":
        return Path(resume), read_checkpoint(Path(resume))
    found = [path for path in (folder / LAST, *kept_checkpoints(folder)) if path.is_file()]
    for path in found:
        try:
            return path, read_checkpoint(path)
        except UserError as error:
            logger.warning("Passed over: %s", error)
    if found:
        raise UserError(
            f"resume = 'auto' must find a checkpoint that can be read, got {len(found)} in "
            f"{folder} that cannot; mend or remove them, or start anew with resume = ''"
        )
    logger.info("Nothing to resume in %s: starting anew", folder)
    return None


def refuse_changes(saved: Mapping[str, Any], current: Mapping[str, Any], path: Path) -> None:
    """Compare the settings of a checkpoint with those of this run.

    Raises:
        UserError: Naming the settings that may not change within a run and have.
    """
    names = [n for n in current if n in FIXED or n.startswith(FIXED_PREFIXES)]
    changed = [
        f"{name} was {quoted(saved[name])}, now {quoted(current[name])}"
        for name in names
        if name in saved and saved[name] != current[name]
    ]
    if changed:
        raise UserError(
            f"{path} cannot be resumed with other settings: {'; '.join(changed)}; "
            f"set them back, or start anew with resume = ''"
        )
