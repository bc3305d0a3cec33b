"""Look through the images before training on them: damage, duplicates, leakage, odd files.

    python Check_images.py
    python Check_images.py --folder_path_train /data/train --folder_path_test /data/test

Exits with 1 where training on them would be wrong. Settings come from `Config.py`; every one is
also a flag (`--help`).
"""

import sys
from collections.abc import Sequence

import Config
from recon.command import run_command
from recon.settings import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return the exit code."""
    return run_command(Config, argv, _job, __doc__)


def _job(settings: Settings, _asked: frozenset[str]) -> int:
    # Only now: these import torch, and the GPUs must be chosen before.
    from datasets import ImageFolderDataset, read_image
    from recon.pipeline.checking import run_check

    return run_check(settings, ImageFolderDataset, read_image)


if __name__ == "__main__":
    sys.exit(main())
