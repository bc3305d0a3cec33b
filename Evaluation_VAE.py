"""Evaluate the variational autoencoder.

    python Evaluation_VAE.py
    python Evaluation_VAE.py --model_path_vae checkpoints/VAE/Final_Model_AE_VAE.pth

Settings come from `Config.py`; every one is also a flag (`--help`).
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
    from recon.pipeline import run_evaluation

    run_evaluation(settings, "vae", AutoEncoder, ImageFolderDataset, asked=asked)


if __name__ == "__main__":
    sys.exit(main())
