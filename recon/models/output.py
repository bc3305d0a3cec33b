"""What a network returns, and one adapter that makes all of them alike."""

from typing import NamedTuple

from torch import Tensor, nn

__all__ = ["Output", "reconstruct"]


class Output(NamedTuple):
    """One batch through a network. DataParallel gathers NamedTuples."""

    reconstruction: Tensor  # (N, C, H, W) in [0, 1]
    latent: Tensor  # (N, ...), empty where the network does not return it
    penalty: Tensor  # (N,), added to the objective


def reconstruct(model: nn.Module, images: Tensor) -> Output:
    """Run a network that returns an `Output` or, as `AutoEncoder` does, the decoded tensor alone.

    Args:
        model: The network, wrapped or not.
        images: (N, C, H, W), prepared as the network expects them.
    """
    result = model(images)
    if isinstance(result, Tensor):
        count = result.shape[0]
        return Output(result, result.new_empty((count, 0)), result.new_zeros(count))
    return Output(*result)
