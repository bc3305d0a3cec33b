"""What a network keeps of images, as one row of numbers for each.

Images are (N, C, H, W) float tensors, prepared as the network expects them. Rows are (N, ...):
float32, or int64 where they are the code numbers of a codebook.
"""

from torch import Tensor, nn

from recon.models.codebook import Codebook
from recon.models.output import encode

__all__ = ["Encoder", "pool"]


class Encoder(nn.Module):
    """A network's encoder alone; a module, so that it can be spread over GPUs.

    Args:
        model: The plain network.
        pooling: "mean" for one number for each feature map, or "none". A VQ-VAE gives the mean of
            the entries that its codes stand for, so that tiles of similar codes are near each
            other; with "none" the code numbers, which have no distances.
    """

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model, self.pooling = model, pooling

    def forward(self, images: Tensor) -> Tensor:
        """Rows, (N, F) if pooled, else (N, ...), of images, (N, C, H, W)."""
        latents = encode(self.model, images)
        if self.pooling == "none":
            return latents.float() if latents.is_floating_point() else latents
        codebook = getattr(self.model, "codebook", None)
        return pool(codebook.look_up(latents) if isinstance(codebook, Codebook) else latents)


def pool(latents: Tensor) -> Tensor:
    """Average over height and width, in float32.

    Args:
        latents: Feature maps, (N, F, h, w), or vectors, (N, F), which stay as they are.

    Returns:
        (N, F).
    """
    latents = latents.float()
    return latents.flatten(2).mean(2) if latents.ndim > 2 else latents
