"""What a network returns, and adapters that make all of them alike.

Images are (N, C, H, W) float tensors, prepared as the network expects them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

__all__ = ["Adaptive", "Output", "encode", "joined", "reconstruct", "sigmoid_output"]


class Output(NamedTuple):
    """One batch through a network. DataParallel gathers NamedTuples, and None in them."""

    reconstruction: Tensor  # (N, C, H, W) in [0, 1]
    latent: Tensor  # (N, ...), empty where the network does not return it
    penalty: Tensor  # (N,), added to the objective
    logits: Tensor | None = None  # (N, C, H, W), of which the reconstruction is the sigmoid
    codes: Tensor | None = None  # (N, h, w) int64, numbers of entries of a codebook

    def detached(self) -> "Output":
        """The same without its gradients."""
        return Output(*(None if part is None else part.detach() for part in self))  # type: ignore[arg-type]


@runtime_checkable
class Adaptive(Protocol):
    """A network that also learns outside of the gradient, as a codebook of moving averages does."""

    def adapt(self, output: Output, total: Callable[[Tensor], Tensor], *, first: bool) -> None:
        """Learn in place from a batch. Called after each step of the optimiser, while training.

        Args:
            output: Of this rank's part of the batch, detached.
            total: The sum of a tensor over all ranks.
            first: Whether this is the first rank, the one that chooses where all must agree.
        """


def reconstruct(model: nn.Module, images: Tensor) -> Output:
    """Run a network that returns an `Output` or, as `AutoEncoder` does, the decoded tensor alone.

    Args:
        model: The network, wrapped or not.
        images: (N, C, H, W).
    """
    result = model(images)
    if isinstance(result, Tensor):
        count = result.shape[0]
        return Output(result, result.new_empty((count, 0)), result.new_zeros(count))
    return Output(*result)


def joined(outputs: Sequence[Output]) -> Output:
    """The pieces of a batch as one."""
    columns = zip(*outputs, strict=True)
    return Output(*(None if c[0] is None else torch.cat(c) for c in columns))  # type: ignore[arg-type]


def sigmoid_output(logits: Tensor, latent: Tensor, penalty: Tensor | None = None) -> Output:
    """The output of a decoder that ends in logits.

    Args:
        logits: (N, C, H, W), in any precision.
        latent: (N, ...).
        penalty: (N,), or None for none.
    """
    logits = logits.float()  # A sigmoid in half precision leaves 256 grey levels, unevenly spaced.
    none = logits.new_zeros(len(logits)) if penalty is None else penalty
    return Output(torch.sigmoid(logits), latent, none, logits)


def encode(model: nn.Module, images: Tensor) -> Tensor:
    """What a network keeps of images, (N, ...): its `encode`, or else its `encoder`.

    The mean of a VAE, the code numbers of a VQ-VAE (int64), feature maps (N, F, h, w) elsewhere.

    Args:
        model: The plain network, unwrapped.
        images: (N, C, H, W).
    """
    encoder = getattr(model, "encode", None) or model.encoder
    return cast(Tensor, cast(nn.Module, encoder)(images))
