"""Random numbers that depend on the place in a run alone: a resumed run draws the same."""

import numpy as np
import torch

__all__ = ["VALIDATION", "seed_of", "seed_torch"]

# Part of the seeds of validation noise: that of the training must not come back in it.
VALIDATION = int.from_bytes(b"val", "big")


def seed_of(*place: int) -> int:
    """A seed of 63 bits from whole numbers of at least 0, such as seed, epoch and step."""
    state = np.random.SeedSequence(place).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def seed_torch(seed: int, devices: int) -> None:
    """Seed what networks draw from, differently on each of several GPUs.

    Args:
        seed: Of the CPU and of the first GPU.
        devices: GPUs that share a batch.
    """
    torch.manual_seed(seed)
    for number in range(1, devices):  # Else all replicas would draw alike.
        torch.cuda.default_generators[number].manual_seed(seed + number)
