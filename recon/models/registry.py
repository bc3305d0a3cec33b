"""Networks by name. A new one is one file and one line in `BUILDERS`."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import nn

from recon.errors import UserError
from recon.models.dense import DenseAutoEncoder, VariationalAutoEncoder
from recon.models.residual import ResidualAutoEncoder
from recon.models.unet import UNet
from recon.models.vqvae import VectorQuantizedAutoEncoder

__all__ = ["BUILDERS", "Builder", "Form", "Options", "build_model"]


class Form(NamedTuple):
    """The images that a network is built for."""

    channels: int
    size: tuple[int, int]  # pixels, (height, width)


class Options(NamedTuple):
    """What networks can be varied in; each bears the name of its setting."""

    latent_dim: int = 512
    residual_blocks: int = 5
    latent_channels: int = 1
    activation: str = "relu"
    codebook: str = "ema"
    codebook_size: int = 512
    code_dim: int = 64
    commitment: float = 0.25
    codebook_decay: float = 0.99
    unet_width: int = 32


Builder = Callable[[int], nn.Module]  # `Auto_encoder.AutoEncoder`, from the number of channels
Build = Callable[[Form, Options], nn.Module]

BUILDERS: dict[str, Build] = {
    "dense": lambda form, options: DenseAutoEncoder(*form, options.latent_dim),
    "residual": lambda form, options: ResidualAutoEncoder(
        form.channels,
        options.residual_blocks,
        latent_channels=options.latent_channels,
        activation=options.activation,
    ),
    "unet": lambda form, options: UNet(form.channels, options.unet_width),
    "vae": lambda form, options: VariationalAutoEncoder(*form, options.latent_dim),
    "vqvae": lambda form, options: VectorQuantizedAutoEncoder(
        form.channels,
        options.codebook,
        codebook_size=options.codebook_size,
        code_dim=options.code_dim,
        commitment=options.commitment,
        codebook_decay=options.codebook_decay,
    ),
}


def build_model(
    architecture: str, form: Form, options: Options, auto_encoder: Builder
) -> nn.Module:
    """Build a network.

    Args:
        architecture: Its name.
        form: Of the images.
        options: Of the network.
        auto_encoder: `Auto_encoder.AutoEncoder`.

    Raises:
        UserError: If there is none of that name, or it cannot be built for such images.
    """
    builders: Mapping[str, Build] = BUILDERS | {
        "auto_encoder": lambda form, _options: auto_encoder(form.channels)
    }
    if architecture not in builders:
        known = ", ".join(sorted(builders))
        raise UserError(f"architecture must be one of {known}, got {architecture!r}")
    try:
        return builders[architecture](form, options)
    except ValueError as error:
        raise UserError(f"architecture {architecture!r}: {error}") from None
