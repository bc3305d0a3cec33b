"""What is found out before a run begins, so that nothing is lost and no hour is spent in vain."""

import json
import logging
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from recon.data.loaders import why_unreadable
from recon.errors import UserError
from recon.ranks import Ranks
from recon.settings import Settings
from recon.training.checkpoint import sidecar
from recon.training.keeper import Keeper
from recon.training.tracking import missing_package
from recon.training.trainer import Trainer

__all__ = [
    "check_place",
    "check_readable",
    "check_space",
    "check_trackers",
    "comment_on_log",
    "demand_agreement",
    "spare_sidecars",
]

logger = logging.getLogger("recon")


def check_place(loss_file: Path, settings: Settings, objective: str) -> None:
    """Keep the log, whose curve is a picture, from lying among the images to train on."""
    if loss_file.resolve().is_relative_to(Path(settings.folder_path_train).resolve()):
        raise UserError(
            f"training_loss_file_{objective} must lie outside folder_path_train, got "
            f"{str(loss_file)!r}: its curve would be trained on the next time"
        )


def comment_on_log(keeper: Keeper) -> None:
    """Say that a log is replaced which is of a run in another folder."""
    setting = f"model_saved_location_{keeper.tag.lower()}"
    try:
        record = json.loads(sidecar(keeper.loss_file).read_text(encoding="utf-8"))
        folder = Path(record["settings"][setting])
    except (OSError, ValueError, LookupError, TypeError):
        return  # Of no run of this program.
    if folder.resolve() != keeper.folder.resolve():
        logger.warning(
            "%s is of the run in %s, and is replaced: training_loss_file_%s names another one",
            *(keeper.loss_file, folder, keeper.tag.lower()),
        )


def check_readable(trainer: Trainer) -> None:
    """Prove that there is an image to learn from, and one to validate with."""
    for split, title in ((trainer.train, "training"), (trainer.validation, "validation")):
        reason = why_unreadable(split.loader) if split is not None else None
        if split is not None and reason is not None:
            count = split.batches.count
            raise UserError(f"none of the {count} {title} images can be read: {reason}")


def check_space(folder: Path, model: nn.Module) -> None:
    """Weights and both moments of the optimiser, twice over: old and new side by side."""
    needed = 6 * sum(weight.nbytes for weight in model.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} must have {needed / 1e6:.0f} MB free for checkpoints, it has "
            f"{free / 1e6:.0f} MB; make room or choose another folder"
        )


def check_trackers(tracking: str) -> None:
    """Prove that the packages of trackers are there.

    Args:
        tracking: As for `open_trackers`.

    Raises:
        UserError: If one is missing.
    """
    for kind in filter(None, tracking.split(",")):
        if find_spec(kind) is None:
            raise missing_package(kind)


def spare_sidecars(record: Path, setting: str) -> None:
    """Keep the record of a model from being replaced by another one.

    Args:
        record: The `.json` that is to be written.
        setting: That says where.

    Raises:
        UserError: If a model bears the same name.
    """
    model = record.with_suffix(".pth")
    if model.is_file():
        raise UserError(
            f"{setting} must not bear the name of a model, got {str(record)!r}: it tells what "
            f"{model.name} is; choose another name"
        )


def demand_agreement(
    ranks: Ranks, found: tuple[Path, dict[str, Any]] | None, data: dict[str, Any]
) -> None:
    """Refuse machines that hold different images, or go on from different checkpoints.

    Raises:
        UserError: On every rank.
    """
    ranks.demand_same(
        [data[part].get("fingerprint") for part in ("train", "validation")],
        "the processes of torchrun must train on the same images, and they see different ones; "
        "give every machine the same folders",
    )
    ranks.demand_same(
        found and (found[1]["epoch"], found[1]["provenance"].get("weights_sha256")),
        "the processes of torchrun must go on from the same checkpoint, and they find different "
        "ones; give every machine the folder of the first, or start anew with resume = ''",
    )
