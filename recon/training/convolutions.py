"""Transposed convolutions as a CPU computes them fastest."""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["add_biases_apart"]


class ConvTranspose2d(nn.ConvTranspose2d):
    """The plain layer, but that in training its bias is added after the convolution.

    oneDNN takes as long for the gradient of the bias inside a transposed convolution as for all
    its other gradients together; outside, it is a plain sum.
    """

    def forward(self, images: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As the plain layer; sizes of the result other than its own stay with that."""
        if self.bias is None or output_size is not None or not torch.is_grad_enabled():
            return super().forward(images, output_size)
        result = functional.conv_transpose2d(
            images,
            self.weight,
            stride=self.stride,
            padding=self.padding,  # type: ignore[arg-type]  # never a name here
            output_padding=self.output_padding,
            groups=self.groups,
            dilation=self.dilation,
        )
        return result + self.bias.to(result.dtype)[:, None, None]


def add_biases_apart(model: nn.Module) -> None:
    """Make the network's plain transposed convolutions such, in place: all else of them stays."""
    for layer in model.modules():
        if type(layer) is nn.ConvTranspose2d:
            layer.__class__ = ConvTranspose2d
