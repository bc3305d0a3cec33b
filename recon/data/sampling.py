"""Which images an epoch draws, and in which order: a pure function of the seed and the epoch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["draw_epoch"]

Indices = NDArray[np.int64]


def draw_epoch(groups: Sequence[Indices], images: int, *, seed: int, epoch: int) -> Indices:
    """Draw the indices of an epoch, each group the same number of times give or take one.

    The groups that give one more take turns, so that all come to train even where an epoch has
    fewer images than there are groups. Within a group every image comes before any comes again,
    across epochs too: epochs are consecutive pieces of one endless sequence of shuffles.

    Args:
        groups: Indices of the images of each group; one group draws them all alike.
        images: To draw.
        seed: Of the run.
        epoch: From 0.

    Returns:
        (images,) indices.
    """
    drawn = []
    for number, group in enumerate(groups):
        # Of the endless deal of images to the groups in turn, those before and up to this epoch.
        before, now = (-(-(images * e - number) // len(groups)) for e in (epoch, epoch + 1))
        drawn.append(group[_piece(len(group), before, now - before, (seed, number))])
    return np.random.default_rng((seed, epoch)).permutation(np.concatenate(drawn))


def _piece(size: int, start: int, length: int, seed: tuple[int, int]) -> Indices:
    """A piece of the endless sequence of shuffles of range(size)."""
    first, last = start // size, -(-(start + length) // size)
    shuffles = [np.random.default_rng((*seed, n)).permutation(size) for n in range(first, last)]
    return np.concatenate([*shuffles, np.empty(0, np.int64)])[start - first * size :][:length]
