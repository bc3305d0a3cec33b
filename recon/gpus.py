"""Choose the GPUs of a run before CUDA wakes. Imports no torch.

CUDA reads ``CUDA_VISIBLE_DEVICES`` once, when it is initialised; later changes are ignored
without a word. So the choice is made here, before anything imports torch.
"""

import logging
import os
import shutil
import subprocess
import sys

from recon.errors import UserError

__all__ = ["count_machine_gpus", "select_gpus"]

logger = logging.getLogger("recon")

ALL = "all"


def select_gpus(gpus: str) -> None:
    """Make the GPUs named by the setting, and no others, visible to CUDA.

    Args:
        gpus: Comma-separated GPU numbers as `nvidia-smi` lists them ("0" or "0,1"), "" for the
            CPU, or "all" to leave the environment's own choice (a cluster's, say) untouched.

    Raises:
        UserError: If CUDA is awake already with another choice.
    """
    if gpus == ALL:
        return
    torch = sys.modules.get("torch")
    if _visible() != gpus and torch is not None and torch.cuda.is_initialized():
        raise UserError(
            f"GPUs = {gpus!r} cannot be chosen any more: CUDA is already in use by this process "
            f"with CUDA_VISIBLE_DEVICES={_visible()!r}; restart it, or choose before using a GPU"
        )
    if gpus and _visible() not in (None, gpus):
        logger.warning(
            "GPUs = %r replaces CUDA_VISIBLE_DEVICES = %r; GPUs = 'all' would keep that",
            *(gpus, _visible()),
        )
    # The order of nvidia-smi; CUDA's own default puts the fastest device first.
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus


def count_machine_gpus() -> int:
    """Count the NVIDIA GPUs of this machine, visible to this process or not."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    listing = subprocess.run([program, "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def _visible() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")
