"""Split validation images off the training folder, once for a run."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.data.splits import shared_groups, split_by_group
from recon.errors import UserError
from recon.files import write_json
from recon.pipeline.paths import Paths, Relatives
from recon.settings import Settings

__all__ = ["SPLIT", "split_off", "write_split"]

logger = logging.getLogger("recon")

Indices = NDArray[np.int64]

SPLIT = "validation_split.json"
RULE = ("validation_group", "validation_fraction", "seed")  # settings that decide a choice
ODD_SHARE = 2.0  # a validation part so many times what was asked for is worth a word


def split_off(
    paths: Paths, settings: Settings, folder: Path, *, resumed: bool
) -> tuple[Indices, Indices]:
    """Choose the validation images, or those that the run has chosen before.

    Args:
        paths: Of all images.
        settings: Of the run.
        folder: Where `write_split` has put the choice of a resumed run.
        resumed: Whether this is one.

    Returns:
        Indices to train on and for validation.

    Raises:
        UserError: If the images cannot be split as asked, or a choice does not fit them.
    """
    file = folder / SPLIT
    # Of a run that was killed before it could write its own, the choice is made again.
    choice = _read(file, settings) if resumed and file.is_file() else None
    kept, aside = _choose(paths, settings) if choice is None else _sides(file, paths, choice)
    leaking = shared_groups(Relatives(paths), kept, aside, settings.validation_group)
    if leaking:
        raise UserError(
            f"{file} puts {leaking[0]!r} on both sides of the split; remove it and start anew"
        )
    return kept, aside


def _choose(paths: Paths, settings: Settings) -> tuple[Indices, Indices]:
    fraction, group = settings.validation_fraction, settings.validation_group
    try:
        kept, aside = split_by_group(Relatives(paths), fraction, group, settings.seed)
    except ValueError as error:
        raise UserError(str(error)) from None
    _comment(len(aside) / len(paths), fraction, group)
    if group == "folder":
        _comment_on_siblings(paths, kept, aside)
    return kept, aside


def _comment_on_siblings(paths: Paths, kept: Indices, aside: Indices) -> None:
    """Say where two folders within a third one are on different sides: are they one patient?"""
    sides = [{paths.relative(int(i)).rpartition("/")[0] for i in side} for side in (kept, aside)]
    within = [{folder.rpartition("/")[0]: folder for folder in sorted(side)} for side in sides]
    shared = sorted(within[0].keys() & within[1].keys() - {""})
    if shared:
        one, other = (part[shared[0]] for part in within)
        logger.warning(
            "Validation by folder: %r is trained on, %r held out. If %r is one slide or patient, "
            "set validation_group, such as '^[^/]+' for the folders at the top",
            *(one, other, shared[0]),
        )


def _comment(share: float, fraction: float, group: str) -> None:
    """Say what is remarkable about a split."""
    if fraction > 0 and share == 0:
        logger.warning(
            "No validation: all images are in one group (validation_group = %r). Give "
            "folder_path_validation, or validation_group = a regular expression that names the "
            "slide or patient in a path, or 'image' if neighbouring tiles may leak",
            group,
        )
    elif group == "image" and fraction > 0:
        logger.warning(
            "Validation by single images: neighbouring tiles of one slide are near-copies, so its "
            "scores flatter; set validation_group to keep slides or patients together"
        )
    elif share > ODD_SHARE * fraction:
        logger.warning(
            "Validation takes %.0f %% of the images, not %.0f %%: groups stay whole "
            "(validation_group = %r)",
            100 * share,
            100 * fraction,
            group,
        )


def write_split(paths: Paths, settings: Settings, aside: Indices, folder: Path) -> None:
    """Put the choice where a resumed run finds it."""
    chosen = [paths.relative(int(index)) for index in aside]
    record = {"folder": paths.folder, **_rule(settings), "validation": chosen}
    write_json(folder / SPLIT, record)


def _rule(settings: Settings) -> dict[str, Any]:
    """What a choice was made by."""
    return {name: getattr(settings, name) for name in RULE}


def _read(file: Path, settings: Settings) -> set[str] | None:
    """The validation images of a run; None if another run, by other rules, has chosen them."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        rule = {name: record[name] for name in RULE}
        wanted = set(record["validation"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is no record of a split ({error}); start anew") from None
    return wanted if rule == _rule(settings) else None


def _sides(file: Path, paths: Paths, wanted: set[str]) -> tuple[Indices, Indices]:
    held_out = np.fromiter((path in wanted for path in Relatives(paths)), bool, len(paths))
    if held_out.sum() != len(wanted):
        raise UserError(f"{file} names images that are gone; put them back, or start anew")
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
