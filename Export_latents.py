"""Write what a model keeps of every image, one row for each, for clustering and search.

    python Export_latents.py
    python Export_latents.py --folder_path_latents /data/tiles --latents_file latents/tiles.parquet

An export that was ended goes on where it stood. Settings come from `Config.py`; every one is also
a flag (`--help`).
"""

import sys
from collections.abc import Sequence

import Config
from recon.command import run_command
from recon.settings import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return the exit code."""
    return run_command(Config, argv, _job, __doc__)


def _job(settings: Settings, asked: frozenset[str]) -> None:
    # Only now: these import torch, and the GPUs must be chosen before.
    from Auto_encoder import AutoEncoder
    from datasets import ImageFolderDataset
    from recon.pipeline.exporting import run_export

    run_export(settings, AutoEncoder, ImageFolderDataset, asked=asked)


if __name__ == "__main__":
    sys.exit(main())
