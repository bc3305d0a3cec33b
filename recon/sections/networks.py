"""What the networks can be varied in. Imports no torch."""

from typing import Literal

from pydantic import Field

from recon.sections.base import Section

__all__ = ["Networks"]


class Networks(Section):
    """What the networks can be varied in; stored with the weights."""

    title = "Networks"
    latent_dim: int = Field(512, ge=1, description="numbers that dense and vae keep of an image")
    residual_blocks: int = Field(5, ge=1, description="blocks at each scale of residual")
    latent_channels: int = Field(1, ge=1, description="channels of the latent of residual")
    activation: Literal["relu", "leaky_relu", "elu", "gelu", "silu"] = Field(
        "relu", description="of residual"
    )
    codebook: Literal["ema", "gradient"] = Field(
        "ema", description="how vqvae learns its codes: by moving averages, or by gradient"
    )
    codebook_size: int = Field(512, ge=2, description="codes of vqvae")
    code_dim: int = Field(64, ge=1, description="numbers in a code of vqvae")
    commitment: float = Field(
        0.25, ge=0, description="weight that keeps vqvae's encoder near its codes"
    )
    codebook_decay: float = Field(
        0.99, gt=0, lt=1, description="of the moving averages of codebook = 'ema', per step"
    )
    unet_width: int = Field(32, ge=1, description="channels of unet at full resolution")
