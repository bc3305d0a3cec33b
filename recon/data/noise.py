"""Gaussian noise on what a denoising network is fed.

Images are (N, C, H, W) float32 in [0, 1]. What is added to an image depends on its own seed, its
shape and sigma alone: it is drawn on the CPU, image by image, whatever else is in the batch.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["add_noise", "noise_seeds"]

# torch's CPU generator keeps only 32 bits of its seed: a prime modulus lets all 64 bits count.
SEEDS = 4294967291


def noise_seeds(places: Iterable[int], *key: int) -> list[int]:
    """A seed for every image, from what it shares with others and from its own number.

    Args:
        places: Of the images, at least 0: in the dataset for noise that stays the same, in the
            whole batch for noise that is new at every step.
        key: Whole numbers of at least 0, such as the seed of the run, the epoch and the step.
    """
    states = [np.random.SeedSequence((*key, place)) for place in places]
    return [int(state.generate_state(1, np.uint64)[0] >> np.uint64(1)) for state in states]


@torch.no_grad()
def add_noise(images: Tensor, sigma: float, seeds: Sequence[int] | Tensor) -> Tensor:
    """Add normally distributed noise to every pixel and channel, and clamp to [0, 1].

    Args:
        images: (N, C, H, W) in [0, 1], on any device.
        sigma: Standard deviation before clamping, in intensities.
        seeds: (N,) integers of 64 bits, one for each image.

    Returns:
        (N, C, H, W) in [0, 1]; for a sigma of 0, `images`.

    Raises:
        ValueError: If sigma is negative, or there is not one seed for each image.
    """
    if sigma < 0:
        raise ValueError(f"sigma must be at least 0, got {sigma}")
    numbers = seeds.tolist() if isinstance(seeds, Tensor) else list(seeds)
    if len(numbers) != len(images):
        raise ValueError(f"seeds must be one for each of {len(images)} images, got {len(numbers)}")
    if sigma == 0:
        return images
    noise = torch.empty(images.shape, pin_memory=images.is_cuda)
    for plane, seed in zip(noise, numbers, strict=True):  # (C, H, W)
        plane.normal_(0, sigma, generator=torch.Generator().manual_seed(seed % SEEDS))
    return noise.to(images.device, non_blocking=True).add_(images).clamp_(0, 1)
