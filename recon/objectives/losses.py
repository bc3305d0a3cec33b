"""What training minimises: named terms, one value per image, mixed by weights.

Images are (N, C, H, W) float tensors in [0, 1]; every term is (N,) float32. A new term is one
function and one line in `TERMS`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from recon.objectives.ms_ssim import ms_ssim
from recon.objectives.ssim import full_precision, ssim

__all__ = ["TERMS", "Objective", "Prediction", "Term"]


class Prediction(NamedTuple):
    """What a network makes of a batch."""

    reconstruction: Tensor  # (N, C, H, W) in [0, 1], in any floating precision
    logits: Tensor | None = None  # of which it is the sigmoid, where the network gives them


# The least that float32 resolves below 1: probabilities are kept this far from 0 and 1.
LEAST_PROBABILITY = torch.finfo(torch.float32).eps

Term = Callable[[Prediction, Tensor], Tensor]  # of the prediction and its target, (N,)


def mse(prediction: Prediction, target: Tensor) -> Tensor:
    """Mean squared error over channels and pixels, (N,)."""
    return (prediction.reconstruction.float() - target).square().flatten(1).mean(1)


def l1(prediction: Prediction, target: Tensor) -> Tensor:
    """Mean absolute error over channels and pixels, (N,)."""
    return (prediction.reconstruction.float() - target).abs().flatten(1).mean(1)


def dissimilarity(prediction: Prediction, target: Tensor) -> Tensor:
    """1 - SSIM, (N,): 0 for equal images."""
    return 1 - ssim(prediction.reconstruction, target)


def multiscale_dissimilarity(prediction: Prediction, target: Tensor) -> Tensor:
    """1 - MS-SSIM, (N,): 0 for equal images."""
    return 1 - ms_ssim(prediction.reconstruction, target)


def bce(prediction: Prediction, target: Tensor) -> Tensor:
    """Mean binary cross entropy over channels and pixels, (N,), in nats.

    From the logits where the network gives them. Otherwise from the reconstruction, kept between
    1.2e-7 and 1 - 1.2e-7: a pixel costs at most 15.9. Equal images cost their own entropy, 0 only
    where every value is 0 or 1.

    Raises:
        ValueError: If the target leaves [0, 1]. Looked at on CPUs alone: GPUs would be waited for.
    """
    if target.is_cpu and not ((target >= 0) & (target <= 1)).all():
        lowest, highest = target.aminmax()
        raise ValueError(f"target must be in 0..1, got {lowest:g}..{highest:g}")
    if prediction.logits is not None:
        logits = prediction.logits.float()
        costs = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    else:
        probabilities = prediction.reconstruction.float()
        probabilities = probabilities.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        costs = functional.binary_cross_entropy(probabilities, target, reduction="none")
    return costs.flatten(1).mean(1)


TERMS: dict[str, Term] = {
    "mse": mse,
    "l1": l1,
    "ssim": dissimilarity,
    "ms_ssim": multiscale_dissimilarity,
    "bce": bce,
}

FEATURE = "feature"  # a term with a network of its own, which is given where it is wanted


class Objective:
    """The weighted sum of named terms.

    Args:
        weights: Weight of each term, by its name in `TERMS` or `further`.
        further: Terms that need more than a prediction and its target, such as a network.
        summed: Sum over pixels and channels instead of averaging, as the likelihood of a VAE
            does; terms such as SSIM are multiplied by the same number.

    Raises:
        ValueError: If a name is unknown.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        further: Mapping[str, Term] | None = None,
        *,
        summed: bool = False,
    ) -> None:
        terms = {**TERMS, **(further or {})}
        unknown = [name for name in weights if name not in terms]
        if unknown:
            known = ", ".join(sorted({*terms, FEATURE}))
            raise ValueError(f"loss terms must be among {known}, got {unknown[0]!r}")
        self.terms = [(weight, terms[name]) for name, weight in weights.items() if weight > 0]
        self.summed = summed

    def __call__(self, prediction: Prediction, target: Tensor) -> Tensor:
        """The objective of each image, (N,) float32.

        Args:
            prediction: Of the network.
            target: (N, C, H, W) float32 in [0, 1].
        """
        with full_precision(target.device):
            values = [weight * term(prediction, target) for weight, term in self.terms]
        total = torch.stack(values).sum(0)
        return total * target[0].numel() if self.summed else total
