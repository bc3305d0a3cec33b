"""A running average of the weights: steadier than those of the last step, and better."""

import copy

import torch
from torch import nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """Exponential moving average of weights and batch statistics.

    The decay rises to its value as (1 + t) / (10 + t), as TensorFlow's
    `ExponentialMovingAverage` does it, so that the first steps are soon forgotten.

    Args:
        model: The plain network; it is read, never changed.
        decay: Per step, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.pairs = list(
            zip(self.module.state_dict().values(), model.state_dict().values(), strict=True)
        )

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of another step into account."""
        self.updates += 1
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for mean, value in self.pairs:
            if mean.is_floating_point():
                mean.lerp_(value, share)
            else:
                mean.copy_(value)
