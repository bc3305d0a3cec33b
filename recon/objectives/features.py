"""The distance of images as a frozen network sees them, one value per image.

Images are (N, C, H, W) float tensors in [0, 1]; distances are (N,) float32.
"""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from recon.objectives.losses import Prediction

__all__ = ["FeatureDistance"]


class FeatureDistance:
    """Mean squared distance between what one layer makes of reconstruction and target.

    The perceptual loss of Johnson, Alahi and Fei-Fei (2016, equation 2, arXiv:1603.08155).

    Args:
        network: That looks at the images. It is frozen: in evaluation mode, without gradients to
            its weights.
        layer: Name of the layer whose output is compared, among `network.named_modules()`; "" is
            the network itself. Layers after it are not computed.
        prepare: From images in [0, 1], (N, C, H, W), to the network's input.

    Raises:
        ValueError: If the network has no layer of that name.
    """

    def __init__(self, network: nn.Module, layer: str, prepare: Callable[[Tensor], Tensor]) -> None:
        layers = dict(network.named_modules())
        if layer not in layers:
            nearest = ", ".join(map(repr, get_close_matches(layer, layers, cutoff=0)))
            raise ValueError(
                f"feature_layer must be one of the network, such as {nearest}, got {layer!r}"
            )
        self.network = network.eval().requires_grad_(False)
        self.layer = layer
        self.prepare = prepare
        layers[layer].register_forward_hook(_stop)

    def __call__(self, prediction: Prediction, target: Tensor) -> Tensor:
        """The mean squared distance of each image, (N,).

        Args:
            prediction: Its reconstruction receives gradients.
            target: (N, C, H, W) in [0, 1].

        Raises:
            ValueError: If the network does not run the layer, or its output cannot be compared.
        """
        with torch.no_grad():
            expected = self._features(target)
        found = self._features(prediction.reconstruction.float())
        return (found - expected).square().flatten(1).mean(1)

    def _features(self, images: Tensor) -> Tensor:
        """The output of the layer, (N, ...)."""
        try:
            self.network(self.prepare(images))
        except _ReachedError as reached:
            features = reached.output
        else:
            raise ValueError(f"feature_layer must be one that the network runs, got {self.layer!r}")
        if not (isinstance(features, Tensor) and features.is_floating_point()):
            kind = features.dtype if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"feature_layer must be one whose output is a tensor of floats, "
                f"got {self.layer!r} ({kind})"
            )
        return features.float()


class _ReachedError(Exception):
    """Leaves a network with the output of a layer."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def _stop(_layer: nn.Module, _inputs: Any, output: Any) -> None:
    raise _ReachedError(output)
