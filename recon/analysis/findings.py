"""What is to be said of each image of the sets that a run would use."""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np

from recon.analysis.duplicates import COPY, NEAR, SHARED, Matches, Prints, between, within
from recon.data.inspection import AMBIGUOUS, EMPTY, UNREADABLE, VANISHED, Facts

__all__ = ["GLASS", "UNREAD", "Finding", "ImageSet", "Kind", "find"]

GLASS = 14.0
"""Grey levels of 255: a tile whose grey levels deviate by less is glass. It is the bound by which
glass is left out when slides are cut into tiles."""


class Kind(Enum):
    """Kinds of findings, the gravest first."""

    UNREADABLE = UNREADABLE
    VANISHED = VANISHED
    EMPTY = EMPTY
    AMBIGUOUS = AMBIGUOUS
    TRAINING_FILE = "also a training image by its path"
    TRAINING_COPY = "same pixels as a training image"
    TRAINING_NEAR = "nearly the same as a training image"
    COPY = "same pixels as an image of its set"
    NEAR = "nearly the same as an image of its set"
    BLANK = "near-blank"
    RESIZED = "not of tile_size, will be resized"


UNREAD = (Kind.UNREADABLE, Kind.VANISHED, Kind.EMPTY, Kind.AMBIGUOUS)
OF_TRAINING = {SHARED: Kind.TRAINING_FILE, COPY: Kind.TRAINING_COPY, NEAR: Kind.TRAINING_NEAR}
OF_ITS_SET = {COPY: Kind.COPY, NEAR: Kind.NEAR}


class Finding(NamedTuple):
    """One thing about one image.

    Attributes:
        kind: What.
        detail: A reason, a number, a size; "" where there is nothing to add.
        other: Path of the image that this one repeats, else "".
    """

    kind: Kind
    detail: str = ""
    other: str = ""


class ImageSet(NamedTuple):
    """The images of one folder.

    Attributes:
        name: "training", "validation" or "test".
        folder: As the user gave it.
        path_of: From an index to the path.
        relative_of: From an index to the path below the folder.
        facts: Of every image.
    """

    name: str
    folder: str
    path_of: Callable[[int], str]
    relative_of: Callable[[int], str]
    facts: Sequence[Facts]


def find(sets: Sequence[ImageSet], tile_size: tuple[int, int]) -> list[list[list[Finding]]]:
    """The findings of every image of every set, the gravest first.

    Args:
        sets: The training images first; the others are compared with them.
        tile_size: Height and width in pixels.
    """
    prints = [_prints(images.facts) for images in sets]
    found: list[list[list[Finding]]] = []
    for place, (images, own) in enumerate(zip(sets, prints, strict=True)):
        findings = [_alone(facts, tile_size) for facts in images.facts]
        _add(findings, within(own), OF_ITS_SET, images.path_of)
        if place:
            _add(findings, between(own, prints[0]), OF_TRAINING, sets[0].path_of)
        found.append([sorted(of_image, key=_gravity) for of_image in findings])
    return found


def _prints(facts: Sequence[Facts]) -> Prints:
    count = len(facts)
    deviation = np.fromiter((f.deviation for f in facts), np.float64, count)
    return Prints(
        places=np.fromiter((f.place for f in facts), np.uint64, count),
        pixels=np.fromiter((f.pixels for f in facts), np.uint64, count),
        looks=np.fromiter((f.look for f in facts), np.uint64, count),
        readable=deviation > 0,  # NaN, of an unreadable image, is not
        textured=deviation >= GLASS,
    )


def _alone(facts: Facts, tile_size: tuple[int, int]) -> list[Finding]:
    """What can be said of an image without the others."""
    if facts.problem:
        return [Finding(Kind(facts.problem), facts.reason)]
    findings = []
    if facts.deviation < GLASS:
        findings.append(Finding(Kind.BLANK, f"grey levels vary by {facts.deviation:.1f}"))
    if (facts.height, facts.width) != tile_size:
        findings.append(Finding(Kind.RESIZED, f"{facts.width} x {facts.height}"))
    return findings


def _add(
    findings: list[list[Finding]],
    matches: Matches,
    kinds: dict[int, Kind],
    path_of: Callable[[int], str],
) -> None:
    for index in np.flatnonzero(matches.kind):
        other = path_of(int(matches.other[index]))
        findings[index].append(Finding(kinds[int(matches.kind[index])], "", other))


def _gravity(finding: Finding) -> int:
    return GRAVITY[finding.kind]


GRAVITY = {kind: place for place, kind in enumerate(Kind)}
