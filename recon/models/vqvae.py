"""The vector-quantised autoencoder (VQ-VAE): images as pictures of code numbers.

Images are (N, C, H, W) float tensors, reconstructions in [0, 1]. Latents are (N, D, h, w) float32
and codes (N, h, w) int64, where h and w are a quarter of the height and width, rounded up.

Source:
    van den Oord, Vinyals and Kavukcuoglu (2017), arXiv:1711.00937.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from recon.models.codebook import Codebook, straight_through
from recon.models.output import Output, sigmoid_output

__all__ = ["VectorQuantizedAutoEncoder"]

STRIDE = 4  # pixels of the image to one code
HIDDEN = 128
RESIDUAL_HIDDEN = 32
RESIDUAL_LAYERS = 2


class VectorQuantizedAutoEncoder(nn.Module):
    """Encoder, codebook and decoder.

    Args:
        channels: Channels of the images.
        codebook: How the codes learn, "ema" or "gradient".
        codebook_size: K, codes.
        code_dim: D, numbers in a code.
        commitment: Weight of the distance from the encoder's output to its codes.
        codebook_decay: Of the codebook's moving averages, per step, in (0, 1).

    Raises:
        ValueError: If there is no such codebook.
    """

    def __init__(
        self,
        channels: int,
        codebook: str,
        *,
        codebook_size: int,
        code_dim: int,
        commitment: float,
        codebook_decay: float,
    ) -> None:
        super().__init__()
        self.commitment = commitment
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, HIDDEN // 2, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(HIDDEN // 2, HIDDEN, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(HIDDEN, HIDDEN, kernel_size=3, padding=1),
            *_residual_stack(),
            nn.Conv2d(HIDDEN, code_dim, kernel_size=1),
        )
        self.codebook = Codebook(codebook_size, code_dim, learning=codebook, decay=codebook_decay)
        self.decoder = nn.Sequential(
            nn.Conv2d(code_dim, HIDDEN, kernel_size=3, padding=1),
            *_residual_stack(),
            nn.ConvTranspose2d(HIDDEN, HIDDEN // 2, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(HIDDEN // 2, channels, kernel_size=4, stride=2, padding=1),
        )

    def forward(self, images: Tensor) -> Output:
        """Encode, quantise and decode.

        Args:
            images: (N, C, H, W). Edges that 4 does not divide are padded by repeating the border
                on the right and at the bottom, and the result is cropped back.

        Returns:
            With the latent before quantisation, detached, and the codes.
        """
        height, width = images.shape[-2:]
        latent = self._latent(images)
        codes = self.codebook(latent)
        entries = self.codebook.look_up(codes)
        logits = self.decoder(straight_through(latent, entries))[..., :height, :width]
        penalty = self._penalty(latent, entries)
        return sigmoid_output(logits, latent.detach(), penalty)._replace(codes=codes)

    def encode(self, images: Tensor) -> Tensor:
        """Code numbers of images, (N, h, w) int64.

        Args:
            images: (N, C, H, W).
        """
        return cast(Tensor, self.codebook(self._latent(images)))

    def decode(self, codes: Tensor) -> Tensor:
        """Reconstructions in [0, 1] from code numbers, (N, C, 4h, 4w): with what was padded.

        Args:
            codes: (N, h, w) int64.
        """
        return torch.sigmoid(self.decoder(self.codebook.look_up(codes)).float())

    def adapt(self, output: Output, total: Callable[[Tensor], Tensor], *, first: bool) -> None:
        """Let the codebook learn from a batch, as `Adaptive` describes.

        Raises:
            ValueError: If the output is not one of this network.
        """
        if output.codes is None:
            raise ValueError("codes must be those of the latent, got None")
        self.codebook.adapt(output.latent, output.codes, total, first=first)

    def bits_per_pixel(self, height: int, width: int) -> float:
        """What the codes of an image take, at log2(K) bits each.

        Args:
            height: Of the image, in pixels.
            width: Likewise.
        """
        codes = math.ceil(height / STRIDE) * math.ceil(width / STRIDE)
        return math.log2(len(self.codebook.usage)) * codes / (height * width)

    def _latent(self, images: Tensor) -> Tensor:
        bottom, right = (-edge % STRIDE for edge in images.shape[-2:])
        if bottom or right:
            images = functional.pad(images, (0, right, 0, bottom), mode="replicate")
        return cast(Tensor, self.encoder(images).float())

    def _penalty(self, latent: Tensor, entries: Tensor) -> Tensor:
        """Mean squared distances of latents and entries, (N,), each to be learnt by one side."""
        commitment = self.commitment * _distance(latent, entries.detach())
        if self.codebook.learning == "ema":
            return commitment
        return commitment + _distance(entries, latent.detach())


class ResidualLayer(nn.Module):
    """A convolution behind a narrow bottleneck, added to what goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(HIDDEN, RESIDUAL_HIDDEN, kernel_size=3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(RESIDUAL_HIDDEN, HIDDEN, kernel_size=1, bias=False),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, 128, h, w) to the same shape."""
        return features + cast(Tensor, self.layers(features))


def _residual_stack() -> list[nn.Module]:
    return [*(ResidualLayer() for _ in range(RESIDUAL_LAYERS)), nn.ReLU()]


def _distance(values: Tensor, others: Tensor) -> Tensor:
    """Mean squared difference over all but the first dimension, (N,)."""
    return (values - others).square().flatten(1).mean(1)
