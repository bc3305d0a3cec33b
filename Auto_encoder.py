"""The convolutional autoencoder for image tiles, in one file that needs torch alone.

Images are (N, C, H, W) float tensors. The decoder ends in a sigmoid, so reconstructions are in
[0, 1]. The encoder halves height and width five times: its latent is (N, 512, H/32, W/32).
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["AutoEncoder"]

STRIDE = 32  # pixels of the image to one of the latent
WIDTHS = (32, 64, 128, 256, 512, 512)  # channels after each convolution of the encoder


class AutoEncoder(nn.Module):
    """Encoder and decoder of the reference system (AE_CRC, arXiv:2511.00383).

    `encoder` and `decoder` are `nn.Sequential` and the names of their weights, `encoder.0.weight`
    to `decoder.15.bias`, are fixed: other programs load such files by name.

    Args:
        channels: Channels of the images, 3 for RGB or 1 for grey.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *_block(nn.Conv2d(channels, WIDTHS[0], kernel_size=3, stride=1, padding=1)),
            *_down(WIDTHS),
        )
        self.decoder = nn.Sequential(
            *_up(WIDTHS[::-1]),
            nn.Conv2d(WIDTHS[0], channels, kernel_size=3, stride=1, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Encode and decode.

        Args:
            images: (N, C, H, W). Edges that 32 does not divide are padded by repeating the border
                on the right and at the bottom, and the result is cropped back.

        Returns:
            Reconstructions in [0, 1], (N, C, H, W).
        """
        height, width = images.shape[-2:]
        bottom, right = -height % STRIDE, -width % STRIDE
        if bottom or right:
            images = functional.pad(images, (0, right, 0, bottom), mode="replicate")
        logits = self.decoder[:-1](self.encoder(images))
        # Under autocast a sigmoid in half precision would leave 256 grey levels, unevenly spaced.
        decoded: Tensor = self.decoder[-1](logits.float())
        return decoded[..., :height, :width]


def _block(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    """A convolution with its batch normalisation and activation."""
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.LeakyReLU(0.01)]


def _down(widths: tuple[int, ...]) -> list[nn.Module]:
    """A block of stride 2 for each step from one width to the next."""
    modules: list[nn.Module] = []
    for before, after in pairwise(widths):
        modules += _block(nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1))
    return modules


def _up(widths: tuple[int, ...]) -> list[nn.Module]:
    """A transposed block of stride 2 for each step from one width to the next."""
    modules: list[nn.Module] = []
    for before, after in pairwise(widths):
        modules += _block(
            nn.ConvTranspose2d(before, after, kernel_size=3, stride=2, padding=1, output_padding=1)
        )
    return modules
