"""Split validation images off the training folder, once for a run."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recon.data.splits import shared_groups, split_by_group
from recon.errors import UserError
from recon.files import write_json
from recon.pipeline.paths import Paths, Relatives
from recon.provenance import Sampled, copied
from recon.settings import Settings

__all__ = ["SPLIT", "Sides", "split_off", "write_split"]

logger = logging.getLogger("recon")

Indices = NDArray[np.int64]

SPLIT = "validation_split.json"
RULE = ("validation_group", "validation_fraction", "seed")  # settings that decide a choice
COPIES = "copies left out"  # in the file of a split
ODD_SHARE = 2.0  # a validation part so many times what was asked for is worth a word


class Sides(NamedTuple):
    """Indices of the images of a run."""

    kept: Indices  # to train on
    aside: Indices  # for validation
    left_out: Indices  # of it, since they are copies of images to train on


def split_off(
    paths: Paths,
    samples: NDArray[np.uint64] | None,
    settings: Settings,
    folder: Path,
    *,
    resumed: bool,
) -> Sides:
    """Choose the validation images, or those that the run has chosen before.

    Args:
        paths: Of all images.
        samples: Of their files, the same for copies; None where they are too many.
        settings: Of the run.
        folder: Where `write_split` has put the choice of a resumed run.
        resumed: Whether this is one.

    Raises:
        UserError: If the images cannot be split as asked, or a choice does not fit them.
    """
    file = folder / SPLIT
    # Of a run that was killed before it could write its own, the choice is made again.
    choice = _read(file, settings) if resumed and file.is_file() else None
    if choice is None:
        sides = _without_copies(paths, samples, *_choose(paths, settings))
    else:
        sides = _sides(file, paths, *choice)
    group = settings.validation_group
    leaking = shared_groups(Relatives(paths), sides.kept, sides.aside, group)
    if leaking:
        raise UserError(
            f"{file} puts {leaking[0]!r} on both sides of the split; remove it and start anew"
        )
    return sides


def _without_copies(
    paths: Paths, samples: NDArray[np.uint64] | None, kept: Indices, aside: Indices
) -> Sides:
    """Leave out of validation what is trained on under another name."""
    if samples is None:
        return Sides(kept, aside, aside[:0])
    copies = copied(
        Sampled(lambda index: paths[int(aside[index])], samples[aside]),
        Sampled(lambda index: paths[int(kept[index])], samples[kept]),
    )
    if copies.any():
        logger.warning(
            "Left out of validation: %d of %d images, which are byte for byte among those to train "
            "on; Check_images.py lists them",
            copies.sum(),
            len(aside),
        )
    if len(aside) and copies.all():
        raise UserError(
            f"validation needs images that are not trained on, and each of the {len(aside)} of "
            f"validation_fraction is byte for byte among those; remove the copies, or give "
            f"folder_path_validation"
        )
    return Sides(kept, aside[~copies], aside[copies])


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


def write_split(paths: Paths, settings: Settings, sides: Sides, folder: Path) -> None:
    """Put the choice where a resumed run finds it."""
    chosen, left_out = (
        [paths.relative(int(index)) for index in part] for part in (sides.aside, sides.left_out)
    )
    record = {"folder": paths.folder, **_rule(settings), "validation": chosen, COPIES: left_out}
    write_json(folder / SPLIT, record)


def _rule(settings: Settings) -> dict[str, Any]:
    """What a choice was made by."""
    return {name: getattr(settings, name) for name in RULE}


def _read(file: Path, settings: Settings) -> tuple[set[str], set[str]] | None:
    """The images that a run has for validation, and those that it left out.

    None if another run, by other rules, has chosen them.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        rule = {name: record[name] for name in RULE}
        wanted, left_out = set(record["validation"]), set(record.get(COPIES, []))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{file} is no record of a split ({error}); remove it: the same split is chosen again"
        ) from None
    return (wanted, left_out) if rule == _rule(settings) else None


def _sides(file: Path, paths: Paths, wanted: set[str], left_out: set[str]) -> Sides:
    held_out, copies = (
        np.fromiter((path in names for path in Relatives(paths)), bool, len(paths))
        for names in (wanted, left_out)
    )
    if (held_out.sum(), copies.sum()) != (len(wanted), len(left_out)):
        raise UserError(f"{file} names images that are gone; put them back, or start anew")
    return Sides(*map(np.flatnonzero, (~(held_out | copies), held_out, copies)))
