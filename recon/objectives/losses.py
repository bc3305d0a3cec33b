"""What training minimises: named terms, one value per image, mixed by weights.

Images are (N, C, H, W) float tensors in [0, 1]; every term is (N,) float32. A new term is one
function and one line in `TERMS`.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from recon.objectives.ssim import full_precision, ssim

__all__ = ["TERMS", "Objective"]

Term = Callable[[Tensor, Tensor], Tensor]


def mse(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over channels and pixels, (N,)."""
    return (reconstruction.float() - target).square().flatten(1).mean(1)


def l1(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error over channels and pixels, (N,)."""
    return (reconstruction.float() - target).abs().flatten(1).mean(1)


def dissimilarity(reconstruction: Tensor, target: Tensor) -> Tensor:
    """1 - SSIM, (N,): 0 for equal images."""
    return 1 - ssim(reconstruction, target)


TERMS: dict[str, Term] = {"mse": mse, "l1": l1, "ssim": dissimilarity}


class Objective:
    """The weighted sum of named terms.

    Args:
        weights: Weight of each term, by its name in `TERMS`.

    Raises:
        ValueError: If a name is unknown.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        unknown = [name for name in weights if name not in TERMS]
        if unknown:
            raise ValueError(
                f"loss terms must be among {', '.join(sorted(TERMS))}, got {unknown[0]!r}"
            )
        self.weights = dict(weights)

    def __call__(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """The objective of each image, (N,) float32.

        Args:
            reconstruction: (N, C, H, W) in [0, 1], in any floating precision.
            target: (N, C, H, W) float32 in [0, 1].
        """
        with full_precision(target.device):
            terms = [
                weight * TERMS[name](reconstruction, target)
                for name, weight in self.weights.items()
                if weight > 0
            ]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total
