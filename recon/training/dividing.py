"""How a batch is divided into what a network can learn from."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from recon.models.output import reconstruct

__all__ = ["divided", "learns_from"]


def divided(
    parts: Sequence[tuple[int, int]], accumulation: int, learns_from_one: Callable[[], bool]
) -> tuple[int, int]:
    """Images of a whole batch, and how many pieces every rank computes its part of it in.

    No pieces where the part of a rank is too small to learn from: all ranks take a step, or none,
    since they exchange gradients.

    Args:
        parts: Of every rank: images that could be read, and those that could not.
        accumulation: Pieces that are asked for.
        learns_from_one: Whether the network can, asked only where images are missing.
    """
    counts, failures = zip(*parts, strict=True)
    least = 1  # images in a piece
    if sum(failures) > 0 and min(counts) > 0 and not learns_from_one():
        least = 2
    return sum(counts), min(accumulation, *(count // least for count in counts))


@torch.no_grad()
def learns_from(model: nn.Module, fed: Tensor) -> bool:
    """Whether a network in training takes this batch, (N, C, H, W), as its input.

    A batch normalisation refuses a single image of which one value is left.
    """
    probe = copy.deepcopy(model).train()
    try:
        reconstruct(probe, fed)
    except ValueError:
        return False
    return True
