"""Split images into training and validation by group, so that neighbours stay together."""

import re
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

__all__ = ["split_by_group"]

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
    keys = np.array([_group_of(path, group) for path in paths])
    names, member = np.unique(keys, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    sizes = np.bincount(member, minlength=len(names))
    held_out = np.isin(member, _choose(sizes, order, fraction * len(paths)))
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _choose(sizes: Indices, order: Indices, target: float) -> list[int]:
    """The groups, taken in this order, that bring the sum of sizes nearest to the target."""
    if target == 0 or len(sizes) < 2:
        return []
    chosen: list[int] = []
    total = 0
    for index in order:
        if abs(total + sizes[index] - target) < abs(total - target):
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
