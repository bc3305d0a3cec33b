"""Muon: steps of which every direction is of one length.

The gradient of a reconstruction is dominated by the few coarse patterns that images share, and an
optimiser that scales single weights learns the many fine ones slowly. Muon takes the momentum of
each weight matrix apart into directions, as a singular value decomposition does, and steps by the
same length along all of them. Biases and normalisations, which are no matrices, follow AdamW.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from recon.objectives.ssim import full_precision

__all__ = ["Muon", "orthogonalized"]

MATRICES = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)  # whose weights are one matrix each
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the iteration, by Jordan
ITERATIONS = 5
LIKE_ADAMW = 0.2  # root mean square of a step of AdamW, in learning rates, by Liu et al.
TINY = 1e-30  # a gradient of zero stays zero


class Muon(torch.optim.AdamW):
    """Muon for the weights of linear layers and convolutions, AdamW for all the rest.

    Both take learning rates of the same size.

    Args:
        model: Whose parameters are learnt.
        lr: Learning rate.
        weight_decay: Of every parameter, decoupled.
        momentum: Decay of the running average of the gradients, with Nesterov's correction.
        fused: Of AdamW.

    Source:
        Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the scale of the step is
        that of Liu et al. 2025, arXiv:2502.16982.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        fused: bool = False,
    ) -> None:
        layers = [layer for layer in model.modules() if isinstance(layer, MATRICES)]
        matrices = list(dict.fromkeys(layer.weight for layer in layers))
        others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "momentum": momentum},
            {"params": others, "momentum": None},
        ]
        super().__init__(groups, lr=lr, weight_decay=weight_decay, fused=fused)
        # A scaler of gradients shall leave out steps itself: AdamW alone would know how to.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Learn from the gradients; those of matrices are used up."""
        for group in self.param_groups:
            if group["momentum"] is not None:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self._step_matrix(weight, weight.grad, group)
                        weight.grad = None  # AdamW passes it over.
        return super().step(closure)

    def _step_matrix(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
            state["step"] = torch.zeros(())  # AdamW looks for it when a state is loaded.
        state["step"] += 1
        average = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        step = orthogonalized(gradient.lerp(average, group["momentum"]).flatten(1))
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        length = LIKE_ADAMW * max(step.shape) ** 0.5
        weight.add_(step.view_as(weight), alpha=-group["lr"] * length)


def orthogonalized(matrix: Tensor) -> Tensor:
    """The matrix with all its singular values brought near 1, from 0.7 to 1.2.

    Newton and Schulz's iteration of fifth order. It runs on the square matrix of inner products
    along the shorter edge, so that the longer edge enters two products rather than ten; in
    float32, whose rounding the iteration raises to a hundredth at most.

    Args:
        matrix: (M, N), finite.

    Returns:
        (M, N) float32. Directions whose singular value is under about a hundredth of the whole
        matrix's norm stay shorter.
    """
    wide = matrix.float() if matrix.shape[0] <= matrix.shape[1] else matrix.float().T
    wide = wide / wide.norm().clamp_min(TINY)
    with full_precision(matrix.device):
        inner = wide @ wide.T
        product = factor = _factor(inner)
        for _ in range(ITERATIONS - 1):
            inner = factor @ inner @ factor
            factor = _factor(inner)
            product = factor @ product
        result: Tensor = product @ wide
    return result if matrix.shape[0] <= matrix.shape[1] else result.T


def _factor(inner: Tensor) -> Tensor:
    """What an iteration multiplies a matrix by whose inner products are given."""
    a, b, c = COEFFICIENTS
    factor = torch.addmm(inner, inner, inner, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor
