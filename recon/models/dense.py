"""An autoencoder and a variational one that keep an image as one vector.

Images are (N, C, H, W) float tensors of the size that the network is built for. Latents are
(N, D) float32. The layers are those of reference system 3; each convolution of the encoder and
the decoder is a module of its own name, `encoder.enc_conv1` to `decoder.dec_conv5`.
"""

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn

from recon.models.output import Output, sigmoid_output

__all__ = ["DenseAutoEncoder", "VariationalAutoEncoder", "divergence"]

WIDTHS = (32, 64, 128, 256, 512)  # channels after each convolution of the encoder
STRIDE = 2 ** len(WIDTHS)  # pixels of the image to one place of the last convolution
LOG_VARIANCES = (-30.0, 20.0)  # so that the exponential neither vanishes nor overflows


class _Dense(nn.Module):
    """What both networks share: the convolutions, and the way from a latent to an image."""

    def __init__(self, channels: int, size: tuple[int, int], latent_dim: int) -> None:
        super().__init__()
        if any(edge < STRIDE or edge % STRIDE for edge in size):
            raise ValueError(f"tile_size must be multiples of {STRIDE} pixels, got {tuple(size)}")
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
        self.form = (channels, *size)
        self.latent_dim = latent_dim
        grid = (WIDTHS[-1], size[0] // STRIDE, size[1] // STRIDE)
        self.features = grid[0] * grid[1] * grid[2]
        self.encoder = nn.Sequential(_down((channels, *WIDTHS)))
        self.decoder = nn.Sequential(_up((channels, *WIDTHS)[::-1], grid, latent_dim))

    def decode(self, latents: Tensor) -> Tensor:
        """Reconstructions in [0, 1], (N, C, H, W), of latents, (N, D)."""
        return sigmoid_output(self.decoder(latents), latents).reconstruction

    def _encoded(self, images: Tensor) -> Tensor:
        """The encoder's features, (N, F), of images, (N, C, H, W)."""
        if tuple(images.shape[1:]) != self.form:
            expected = ", ".join(map(str, self.form))
            raise ValueError(
                f"images must be (N, {expected}), as the network is built, "
                f"got {tuple(images.shape)}"
            )
        features: Tensor = self.encoder(images)
        return features.flatten(1)  # (N, 512, H/32, W/32) to (N, F)


class DenseAutoEncoder(_Dense):
    """Autoencoder with a vector as its latent.

    Args:
        channels: Channels of the images, 3 for RGB or 1 for grey.
        size: Height and width of the images in pixels, multiples of 32.
        latent_dim: Numbers that are kept of an image, D.

    Raises:
        ValueError: If the size is no multiple of 32, or nothing is to be kept.
    """

    def __init__(self, channels: int, size: tuple[int, int], latent_dim: int) -> None:
        super().__init__(channels, size, latent_dim)
        self.to_latent = nn.Linear(self.features, latent_dim)

    def forward(self, images: Tensor) -> Output:
        """Encode and decode images, (N, C, H, W).

        Raises:
            ValueError: If they are not of the channels and size that the network is built for.
        """
        latents = self.encode(images)
        return sigmoid_output(self.decoder(latents), latents)

    def encode(self, images: Tensor) -> Tensor:
        """Latents, (N, D), of images, (N, C, H, W).

        Raises:
            ValueError: If they are not of the channels and size that the network is built for.
        """
        latents: Tensor = self.to_latent(self._encoded(images))
        return latents.float()


class VariationalAutoEncoder(_Dense):
    """VAE (Kingma and Welling 2014, arXiv:1312.6114) with the layers of `DenseAutoEncoder`.

    Its penalty is the divergence, of weight 1. In training the latent is drawn, with the global
    generator; in evaluation it is the mean. The output's latent is the mean in both.

    Args:
        channels: Channels of the images, 3 for RGB or 1 for grey.
        size: Height and width of the images in pixels, multiples of 32.
        latent_dim: Numbers that are kept of an image, D.

    Raises:
        ValueError: If the size is no multiple of 32, or nothing is to be kept.
    """

    def __init__(self, channels: int, size: tuple[int, int], latent_dim: int) -> None:
        super().__init__(channels, size, latent_dim)
        self.to_mean = nn.Linear(self.features, latent_dim)
        self.to_log_variance = nn.Linear(self.features, latent_dim)

    def forward(self, images: Tensor) -> Output:
        """Encode, draw where in training, and decode images, (N, C, H, W).

        Raises:
            ValueError: If they are not of the channels and size that the network is built for.
        """
        features = self._encoded(images)
        # Under autocast the heads are of half precision: sums over them would lose digits.
        mean = self.to_mean(features).float()
        log_variance = self.to_log_variance(features).float().clamp(*LOG_VARIANCES)
        latents = mean
        if self.training:
            latents = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        return sigmoid_output(self.decoder(latents), mean, divergence(mean, log_variance))

    def encode(self, images: Tensor) -> Tensor:
        """Means, (N, D), of images, (N, C, H, W).

        Raises:
            ValueError: If they are not of the channels and size that the network is built for.
        """
        means: Tensor = self.to_mean(self._encoded(images))
        return means.float()

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """New images in [0, 1], (count, C, H, W), of latents from the standard normal.

        Args:
            count: How many.
            generator: Of any device; one of the CPU draws the same for every device.
        """
        shape = (count, self.latent_dim)
        latents = torch.randn(shape, generator=generator, device=generator.device)
        return self.decode(latents.to(self.to_mean.weight.device))

    def interpolate(self, first: Tensor, second: Tensor, steps: int) -> Tensor:
        """Reconstructions in [0, 1], (steps, C, H, W), on the line between two latents.

        Args:
            first: Image that it begins with, (C, H, W).
            second: Image that it ends with, (C, H, W).
            steps: How many, both ends among them.
        """
        begin, end = self.encode(torch.stack([first, second]))
        places = torch.linspace(0, 1, steps, device=begin.device)
        return self.decode(torch.lerp(begin, end, places[:, None]))


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the standard normal, in nats, (N,).

    Appendix B of arXiv:1312.6114, -1/2 sum(1 + log s^2 - m^2 - s^2), with s^2 - 1 in one function:
    near s = 1 the difference of the two would lose its digits.

    Args:
        mean: (N, D), in float32 or wider.
        log_variance: (N, D), of the natural logarithm, likewise.
    """
    terms = mean.square() + torch.expm1(log_variance) - log_variance
    return terms.sum(dim=1) / 2


def _down(widths: tuple[int, ...]) -> OrderedDict[str, nn.Module]:
    """A block that halves height and width for each step from one width to the next."""
    return OrderedDict(
        (f"enc_conv{place}", _block(nn.Conv2d(before, after, 3, stride=2, padding=1)))
        for place, (before, after) in enumerate(pairwise(widths), start=1)
    )


def _up(
    widths: tuple[int, ...], grid: tuple[int, int, int], latent_dim: int
) -> OrderedDict[str, nn.Module]:
    """From a latent to a grid of features, and a doubling for each step between widths.

    Args:
        widths: Channels, those of the image last.
        grid: Channels, height and width of the features.
        latent_dim: Numbers in the latent.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["from_latent"] = nn.Linear(latent_dim, grid[0] * grid[1] * grid[2])
    layers["grid"] = nn.Unflatten(1, grid)
    last = len(widths) - 1
    for place, (before, after) in enumerate(pairwise(widths), start=1):
        convolution = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
        layers[f"dec_conv{place}"] = convolution if place == last else _block(convolution)
    return layers


def _block(convolution: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    """A convolution with its batch normalisation and activation."""
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.LeakyReLU(0.01))
