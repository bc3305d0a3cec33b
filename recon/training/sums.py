"""What is added up over the images of an epoch."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import zip_longest

import torch

from recon.models.codebook import perplexity

__all__ = ["Sums", "further_figures"]


@dataclass
class Sums:
    """Sums over images, in plain numbers."""

    images: int = 0
    loss: float = 0.0
    objective: float = 0.0  # the loss without the penalty
    penalty: float = 0.0  # before it is weighted
    codes: list[int] = field(default_factory=list)  # how often each code was used

    def add(self, other: "Sums") -> None:
        """Take more images into account."""
        self.images += other.images
        self.loss += other.loss
        self.objective += other.objective
        self.penalty += other.penalty
        counts = zip_longest(self.codes, other.codes, fillvalue=0)
        self.codes = [one + another for one, another in counts]

    @classmethod
    def over(cls, parts: Iterable["Sums"]) -> "Sums":
        """The sums over all parts."""
        total = cls()
        for part in parts:
            total.add(part)
        return total


def further_figures(sums: Sums, penalty_name: str) -> dict[str, float]:
    """What a network with a penalty or a codebook adds to the figures of an epoch.

    The perplexity is that of all codes of the epoch together: a mean over batches is lower.

    Args:
        sums: Over the images of the epoch.
        penalty_name: Under which the penalty is logged; "": not at all.
    """
    figures: dict[str, float] = {}
    if penalty_name:
        figures["Reconstruction Loss"] = sums.objective / sums.images
        figures[penalty_name] = sums.penalty / sums.images
    if sums.codes:
        figures["Perplexity"] = perplexity(torch.tensor(sums.codes))
        figures["Codes Used"] = float(sum(count > 0 for count in sums.codes))
    return figures
