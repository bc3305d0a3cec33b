"""The residual autoencoder, whose latent is a small picture of the image.

Images are (N, C, H, W) float tensors, reconstructions in [0, 1]. Latents are (N, L, h, w) float32,
where h and w are a quarter of the height and width, rounded up: 1x46x46 for images of 3x181x181.
"""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from recon.models.output import Output, sigmoid_output

__all__ = ["ResidualAutoEncoder"]

WIDTHS = (64, 32, 8)  # channels of the features at each scale
STRIDES = (2, 2, 1, 1)  # of the convolutions before, between and after them

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}

Kind = type[nn.Conv2d] | type[nn.ConvTranspose2d]


class ResidualAutoEncoder(nn.Module):
    """Encoder and decoder of the reference system (udion/mscopy-AE).

    Args:
        channels: Channels of the images.
        blocks: Residual blocks at each scale.
        latent_channels: L, channels of the latent.
        activation: Inside the blocks, a key of `ACTIVATIONS`.

    Raises:
        ValueError: If there is no such activation.
    """

    def __init__(
        self, channels: int, blocks: int, *, latent_channels: int, activation: str
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation must be one of {known}, got {activation!r}")
        widths = (channels, *WIDTHS, latent_channels)

        def stages(kind: Kind, widths: tuple[int, ...], strides: tuple[int, ...]) -> list[_Stage]:
            depths = (*(blocks for _ in WIDTHS), 0)
            steps = zip(pairwise(widths), strides, depths, strict=True)
            return [_Stage(kind, step, stride, depth, activation) for step, stride, depth in steps]

        encoder = stages(nn.Conv2d, widths, STRIDES)
        decoder = stages(nn.ConvTranspose2d, widths[::-1], STRIDES[::-1])
        self.encoder = nn.Sequential(
            OrderedDict((f"enc_conv{place}", stage) for place, stage in enumerate(encoder, 1))
        )
        self.decoder = nn.ModuleDict(
            {f"dec_conv{place}": stage for place, stage in enumerate(decoder, 1)}
        )

    def forward(self, images: Tensor) -> Output:
        """Encode and decode images, (N, C, H, W) of any size."""
        latent = self.encode(images)
        return sigmoid_output(self._logits(latent, images.shape[-2:]), latent)

    def encode(self, images: Tensor) -> Tensor:
        """Latents, (N, L, h, w), of images, (N, C, H, W)."""
        return cast(Tensor, self.encoder(images).float())

    def decode(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Reconstructions in [0, 1], (N, C, H, W), of latents, (N, L, h, w).

        Args:
            latents: Of images of that size.
            size: H and W in pixels: an odd size and the next even one have latents of one size.
        """
        return sigmoid_output(self._logits(latents, size), latents).reconstruction

    def _logits(self, latents: Tensor, size: tuple[int, ...]) -> Tensor:
        quarter = latents.shape[-2:]
        half = tuple((edge + 1) // 2 for edge in size)
        features = latents
        for stage, edges in zip(self.decoder.values(), (quarter, quarter, half, size), strict=True):
            features = stage(features, edges)
        return features


class _Stage(nn.Module):
    """A convolution from one width to the next, and residual blocks."""

    def __init__(
        self, kind: Kind, widths: tuple[int, int], stride: int, blocks: int, activation: str
    ) -> None:
        super().__init__()
        self.layer = kind(*widths, kernel_size=3, stride=stride, padding=1)
        # No normalisation follows: torch's own start would shrink the signal a hundredfold on its
        # way to the latent and back. A transposed convolution's inputs come first in its weight.
        nn.init.kaiming_normal_(
            self.layer.weight,
            mode="fan_out" if kind is nn.ConvTranspose2d else "fan_in",
            nonlinearity="linear",
        )
        made = (_Block(kind, widths[1], ACTIVATIONS[activation]) for _ in range(blocks))
        self.blocks = nn.Sequential(*made)

    def forward(self, features: Tensor, size: tuple[int, ...] | None = None) -> Tensor:
        """Map features; a transposed convolution to the given height and width.

        Of two sizes that its stride cannot tell apart, a transposed convolution takes the smaller
        one unless told: so an image of any size comes back at its own.
        """
        features = self.layer(features) if size is None else self.layer(features, list(size))
        return cast(Tensor, self.blocks(features))


class _Block(nn.Module):
    """Two convolutions with batch normalisation, added to what goes in."""

    def __init__(self, kind: Kind, width: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        last = nn.BatchNorm2d(width)
        # Every block starts as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1):
        # the 60 blocks of a network of 10 a scale would else bury its input.
        nn.init.zeros_(last.weight)
        # Without bias, which the normalisation would take off again.
        self.layers = nn.Sequential(
            kind(width, width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            activation(),
            kind(width, width, kernel_size=3, padding=1, bias=False),
            last,
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, F, h, w) to the same shape."""
        return features + cast(Tensor, self.layers(features))
