"""What to do about the failures of a machine that any run over images can meet."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from recon.errors import UserError
from recon.settings import Settings

__all__ = ["explained"]

BatchSize = Literal["batch_size_train", "batch_size_test"]

# What torch says where memory on the host cannot be had.
NO_MEMORY = ("DefaultCPUAllocator", "not enough memory", "Storage size calculation overflowed")
# The same of a GPU, where it is another library or another program that takes it.
NO_GPU_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
# What torch says of a reading process that is gone; any other error of one is told as it is.
ENDS = ("is killed by signal", "exited unexpectedly")
ENDED = ("Terminated", "Interrupt", "Hangup", "Alarm clock")  # signals that tell of no lack
PEER_GONE = ("by peer", "NCCL communicator was aborted")  # of gloo and NCCL
NO_SHARED_MEMORY = "unable to allocate shared memory"
# What takes the memory of the host.
LOWER = {
    "batch_size_train": "lower tile_size, crop_size, batch_size_train or the numbers that make the "
    "network large",
    "batch_size_test": "lower batch_size_test or num_workers, or take smaller images",
}
READING = {
    "batch_size_train": "lower num_workers or cache_limit_gb",
    "batch_size_test": "lower num_workers",
}


@contextmanager
def explained(settings: Settings, batch_size: BatchSize) -> Iterator[None]:
    """Tell lack of memory and the death of a reading process in one line.

    Args:
        settings: Of the run.
        batch_size: The setting that decides how many images the network is fed at once.

    Raises:
        UserError: In the place of what torch raises.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(_gpu_memory(batch_size, getattr(settings, batch_size))) from None
    except RuntimeError as error:
        message = _failure(settings, batch_size, str(error))
        if message is None:
            raise
        raise UserError(message) from None


def _gpu_memory(batch_size: BatchSize, size: int) -> str:
    lower = f"try --{batch_size} {size // 2}" if size > 1 else "take a larger GPU or smaller images"
    return f"the GPU's memory is too small for {batch_size} = {size}; {lower}"


def _failure(settings: Settings, batch_size: BatchSize, said: str) -> str | None:
    """What to tell about an error of torch; None where it is of another kind."""
    first = next(iter(said.splitlines()), "")
    if any(sign in said for sign in NO_GPU_MEMORY):
        told = _gpu_memory(batch_size, getattr(settings, batch_size))
        return f"{told}; or another program holds the GPU: nvidia-smi lists them"
    if any(sign in said for sign in NO_MEMORY):
        return (
            f"the machine's memory is too small for this network and these images ({first}); "
            f"{LOWER[batch_size]}"
        )
    if "DataLoader worker" in said and any(end in said for end in ENDS):
        cause = f"mostly memory has run out: {READING[batch_size]}"
        if any(sign in said for sign in ENDED):
            cause = "something else on this machine has ended it: start again"
        return f"a process that reads images has died ({first}); {cause}"
    if any(sign in said for sign in PEER_GONE):
        return "another process of this run has ended; its own output says why"
    if NO_SHARED_MEMORY in said:
        return (
            f"the machine's shared memory (/dev/shm) is too small for what the processes that "
            f"read images hand over; lower {batch_size} or num_workers, or have more of it, as by "
            f"docker run --shm-size=8g"
        )
    return None
