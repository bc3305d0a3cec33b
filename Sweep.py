"""Try settings: many short trainings, guided by those before, and the settings that did best.

    python Sweep.py
    python Sweep.py --sweep_space "{'learning_rate': (1e-4, 1e-2, 'log')}" --sweep_trials 30

The same command goes on with a sweep that was ended, and joins one that another process works on.
Settings come from `Config.py`; every one is also a flag (`--help`).
"""

import sys
from collections.abc import Sequence

import Config
from recon.command import run_command
from recon.errors import UserError
from recon.settings import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return the exit code."""
    return run_command(Config, argv, _job, __doc__)


def _job(settings: Settings, asked: frozenset[str]) -> None:
    # Only now: these import torch, and the GPUs must be chosen before.
    from Auto_encoder import AutoEncoder
    from datasets import ImageFolderDataset

    try:
        from recon.pipeline.sweeping import run_sweep
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError("Sweep.py needs the package optuna: pip install optuna") from None
    run_sweep(settings, AutoEncoder, ImageFolderDataset, asked=asked)


if __name__ == "__main__":
    sys.exit(main())
