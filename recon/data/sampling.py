"""Which images an epoch draws, and in which order: a pure function of the seed and the epoch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["draw_epoch"]

Indices = NDArray[np.int64]


def draw_epoch(groups: Sequence[Indices], images: int, *, seed: int, epoch: int) -> Indices:
    """Draw the indices of an epoch, each group the same number of times give or take one.

    Within a group every image comes before any comes again, across epochs too: epochs are
    consecutive pieces of one endless sequence of shuffles.

    Args:
        groups: Indices of the images of each group; one group draws them all alike.
        images: To draw.
        seed: Of the run.
        epoch: From 0.

    Returns:
        (images,) indices.
    """
    shares = [len(part) for part in np.array_split(np.arange(images), len(groups))]
    drawn = np.concatenate(
        [
            group[_piece(len(group), epoch * share, share, (seed, number))]
            for number, (group, share) in enumerate(zip(groups, shares, strict=True))
        ]
    )
    return np.random.default_rng((seed, epoch)).permutation(drawn)


def _piece(size: int, start: int, length: int, seed: tuple[int, int]) -> Indices:
    """A piece of the endless sequence of shuffles of range(size)."""
    first, last = start // size, -(-(start + length) // size)
    shuffles = [np.random.default_rng((*seed, n)).permutation(size) for n in range(first, last)]
    return np.concatenate([*shuffles, np.empty(0, np.int64)])[start - first * size :][:length]
