"""How much a network with a codebook compresses, and how it uses its codes."""

import logging
from pathlib import Path
from threading import Lock
from typing import Any, cast

import torch
from torch import Tensor

from recon.analysis.feature_pictures import draw_code_use
from recon.files import replacing
from recon.models.codebook import perplexity
from recon.pipeline.models import LoadedModel
from recon.training.runtime import unwrap

__all__ = ["CodeCount"]

logger = logging.getLogger("recon")

CHANNEL_BITS = 8  # of the images that compression is compared with


class CodeCount:
    """Counts codes while images are reconstructed; counts none for a network without codes."""

    def __init__(self, model: LoadedModel) -> None:
        self.model, self.network = model, cast(Any, unwrap(model.model))
        self.compresses = hasattr(self.network, "bits_per_pixel")
        size = len(self.network.codebook.usage) if self.compresses else 0
        self.counts = torch.zeros(size, dtype=torch.int64)
        self.lock = Lock()

    def reconstruct(self, images: Tensor) -> Tensor:
        """Reconstruct images in [0, 1], (N, C, H, W); in several threads at once, if wanted."""
        output = self.model.output(images)
        if output.codes is not None:
            counts = output.codes.flatten().cpu().bincount(minlength=len(self.counts))
            with self.lock:
                self.counts += counts
        return output.reconstruction

    def facts(self) -> tuple[tuple[str, float], ...]:
        """Names and values, over the images of all processes. Waits for all of them."""
        if not self.compresses:
            return ()
        parts = self.model.runtime.ranks.gather(self.counts)
        self.counts = counts = sum(parts, torch.zeros_like(self.counts))
        bits = self.network.bits_per_pixel(*self.model.preparation.tile_size)
        return (
            ("Bits per Pixel", bits),
            ("Compression Ratio", CHANNEL_BITS * self.model.preparation.channels / bits),
            ("Codes Used", int((counts > 0).sum())),
            ("Codes", len(counts)),
            ("Perplexity", perplexity(counts)),
        )

    def draw(self, path: Path) -> None:
        """Write how often each code was used as a picture, after `facts`."""
        if self.compresses and self.model.runtime.ranks.first:
            with replacing(path) as partial:
                draw_code_use(self.counts.numpy()).savefig(partial, format="png")
            logger.info("Codes: %s", path)
