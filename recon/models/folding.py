"""Networks as they reconstruct fastest, once nothing more is learnt."""

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["fold_normalizations"]

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
ACTIVATIONS = (nn.LeakyReLU, nn.ReLU)


def fold_normalizations(model: nn.Module) -> nn.Module:
    """Let convolutions also do the work of the batch normalisations that follow them, in place.

    In evaluation a batch normalisation is one factor and one summand for each channel, which the
    weights of the convolution before it can take up. The network computes the same but for
    rounding, of which there is less; its state dict is another, and it can learn no more.

    Args:
        model: The plain network, in evaluation.

    Raises:
        ValueError: If it is in training.
    """
    if model.training:
        raise ValueError("model must be in evaluation, got one in training")
    for layers in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        _fold(layers)
    return model


def _fold(layers: nn.Sequential) -> None:
    for place, (before, after) in enumerate(pairwise(layers)):
        if isinstance(before, CONVOLUTIONS) and isinstance(after, nn.BatchNorm2d):
            transposed = isinstance(before, nn.ConvTranspose2d)
            layers[place] = fuse_conv_bn_eval(before, after, transpose=transposed)
            layers[place + 1] = nn.Identity()
        if isinstance(before, nn.BatchNorm2d) and isinstance(after, ACTIVATIONS):
            after.inplace = True  # Nobody else needs what the convolution returns.
