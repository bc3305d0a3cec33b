"""Split images into training and validation by group, so that neighbours stay together."""

import hashlib
import os
import re
from array import array
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

__all__ = ["by_group", "shared_groups", "split_by_group"]

Indices = NDArray[np.int64]


def split_by_group(
    paths: Sequence[str], fraction: float, group: str, seed: int
) -> tuple[Indices, Indices]:
    """Choose whole groups at random until about `fraction` of the images is set aside.

    Args:
        paths: Paths of the images.
        fraction: Part to set aside, in [0, 1).
        group: "folder", "image", or a regular expression whose first group, or whole match, names
            the group of a path.
        seed: Of the choice.

    Returns:
        Indices for training and for validation, each rising. The second is empty where the
        fraction is 0 or where all images make one group.

    Raises:
        ValueError: If the expression does not match a path.
    """
    if group == "image":
        order = np.argsort(np.fromiter((_lot(path, seed) for path in paths), np.uint64, len(paths)))
        aside = round(fraction * len(paths))
        return np.sort(order[aside:]), np.sort(order[:aside])
    groups = by_group(paths, group)
    order = np.random.default_rng(seed).permutation(len(groups))
    sizes = np.array([len(members) for members in groups])
    chosen = _choose(sizes, order, fraction * len(paths))
    held_out = np.zeros(len(paths), dtype=bool)
    for index in chosen:
        held_out[groups[index]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def by_group(paths: Sequence[str], group: str) -> list[Indices]:
    """The indices of the members of every group, rising, the groups in the order of their names.

    Args:
        paths: Paths of the images.
        group: As for `split_by_group`.

    Raises:
        ValueError: If an expression does not match a path.
    """
    members: dict[str, array[int]] = {}  # Eight bytes an image: there may be millions.
    for index, path in enumerate(paths):
        members.setdefault(_group_of(path, group), array("q")).append(index)
    return [np.array(members[name], dtype=np.int64) for name in sorted(members)]


def shared_groups(paths: Sequence[str], kept: Indices, aside: Indices, group: str) -> list[str]:
    """Names of the groups that have members on both sides, sorted; none if nothing leaks."""
    if group == "image":
        return []
    held_out = {_group_of(paths[index], group) for index in aside}
    return sorted(held_out & {_group_of(paths[index], group) for index in kept})


def _choose(sizes: Indices, order: Indices, target: float) -> list[int]:
    """The groups, taken in this order, that bring the sum of sizes nearest to the target.

    At least one group is chosen and at least one is left.
    """
    if target == 0 or len(sizes) < 2:
        return []
    chosen: list[int] = []
    total = 0
    for index in order:
        left = len(sizes) - len(chosen)
        if left > 1 and abs(total + sizes[index] - target) < abs(total - target):
            chosen.append(int(index))
            total += int(sizes[index])
    return chosen or [int(order[np.argmin(sizes[order])])]


def _group_of(path: str, group: str) -> str:
    if group == "image":
        return path
    if group == "folder":
        return str(PurePath(path).parent)
    match = re.search(group, path)
    if match is None:
        raise ValueError(f"validation_group must match every path, got {group!r} for {path!r}")
    return (match[1] if match.re.groups else match[0]) or ""


def _lot(path: str, seed: int) -> int:
    """A number that a path draws, whatever other paths there are."""
    drawn = hashlib.blake2b(os.fsencode(f"{seed} {path}"), digest_size=8)
    return int.from_bytes(drawn.digest(), "little")
