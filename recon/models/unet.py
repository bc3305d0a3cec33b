"""A U-Net for denoising.

Images are (N, C, H, W) float tensors of any size. The output's latent is the feature map of the
lowest scale, (N, 16 x width, H/16, W/16).
"""

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from recon.models.output import Output, sigmoid_output

__all__ = ["UNet"]

SCALES = 4  # times that height and width are halved
STRIDE = 2**SCALES  # pixels of the image to one of the latent


class UNet(nn.Module):
    """U-Net (Ronneberger, Fischer, Brox 2015, arXiv:1505.04597) that gives an image.

    It is meant for denoising. Its skips carry the image past the latent at full resolution, so
    that plain reconstruction is trivial to it: a good score there says nothing of the latent, and
    the latent alone cannot be decoded.

    It deviates from the paper by padded convolutions, batch normalisation and LeakyReLU.

    Args:
        channels: Channels of the images, 3 for RGB or 1 for grey.
        width: Channels of the features at full resolution; they double at each lower scale.

    Raises:
        ValueError: If the width is below 1.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"unet_width must be at least 1, got {width}")
        widths = tuple(width * 2**scale for scale in range(SCALES + 1))
        self.encoder = nn.Sequential(_down(channels, widths))
        self.decoder = nn.ModuleDict(_up(widths[::-1]))
        self.to_logits = nn.Conv2d(width, channels, kernel_size=1)

    def forward(self, images: Tensor) -> Output:
        """Encode and decode.

        Args:
            images: (N, C, H, W). Edges that 16 does not divide are padded by repeating the border
                on the right and at the bottom, and the result is cropped back.
        """
        height, width = images.shape[-2:]
        features, skips = _padded(images), []
        for stage in self.encoder:
            features = stage(features)
            skips.append(features)
        latent = skips.pop()
        for stage in self.decoder.values():
            features = stage(features, skips.pop())
        logits: Tensor = self.to_logits(features)
        return sigmoid_output(logits[..., :height, :width], latent)

    def encode(self, images: Tensor) -> Tensor:
        """Features at the lowest scale, (N, 16 x width, H/16, W/16), of images, (N, C, H, W)."""
        latent: Tensor = self.encoder(_padded(images))
        return latent


class _Rise(nn.Module):
    """Double height and width, and join what the encoder saw at that scale."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(before, after, kernel_size=2, stride=2)
        self.block = nn.Sequential(*_block(2 * after, after))

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """(N, before, h, w) and (N, after, 2h, 2w) to (N, after, 2h, 2w)."""
        joined: Tensor = self.block(torch.cat([self.up(features), skip], dim=1))
        return joined


def _padded(images: Tensor) -> Tensor:
    """Repeat the border on the right and at the bottom, up to the next multiple of 16."""
    height, width = images.shape[-2:]
    bottom, right = -height % STRIDE, -width % STRIDE
    if not (bottom or right):
        return images
    return functional.pad(images, (0, right, 0, bottom), mode="replicate")


def _down(channels: int, widths: tuple[int, ...]) -> OrderedDict[str, nn.Module]:
    """A block at full resolution, and one of half the last for each further width."""
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stages["enc_conv1"] = nn.Sequential(*_block(channels, widths[0]))
    for place, (before, after) in enumerate(pairwise(widths), start=2):
        stages[f"enc_conv{place}"] = nn.Sequential(nn.MaxPool2d(2), *_block(before, after))
    return stages


def _up(widths: tuple[int, ...]) -> OrderedDict[str, nn.Module]:
    """A rise for each step from one width to the next."""
    return OrderedDict(
        (f"dec_conv{place}", _Rise(before, after))
        for place, (before, after) in enumerate(pairwise(widths), start=1)
    )


def _block(before: int, after: int) -> list[nn.Module]:
    """Two convolutions, each with its batch normalisation and activation."""
    modules: list[nn.Module] = []
    for channels in (before, after):
        # Without bias, which the normalisation would take off again.
        modules.append(nn.Conv2d(channels, after, kernel_size=3, padding=1, bias=False))
        modules += [nn.BatchNorm2d(after), nn.LeakyReLU(0.01)]
    return modules
