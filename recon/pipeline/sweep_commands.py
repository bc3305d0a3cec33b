"""Commands that a sweep prints for its user."""

import shlex
from collections.abc import Collection
from pathlib import Path

from recon.pipeline.commands import script_command
from recon.settings import Settings
from recon.sources import as_flags

__all__ = ["sweep_command", "training_command"]


def sweep_command(settings: Settings, asked: Collection[str]) -> str:
    """The command that goes on with a sweep: the one that began it."""
    return f"{script_command('Sweep.py')} {_flags(settings, asked)}".rstrip()


def training_command(
    settings: Settings, objective: str, asked: Collection[str], best: Path, swept: Collection[str]
) -> str:
    """The command that trains with the best settings and all else that was asked for."""
    # A flag would win over the file.
    kept = [name for name in asked if name not in swept and not name.startswith("sweep_")]
    script = script_command(f"Training_{objective.upper()}.py")
    return f"{script} --config {shlex.quote(str(best))} {_flags(settings, kept)}".rstrip()


def _flags(settings: Settings, names: Collection[str]) -> str:
    return as_flags(settings, [name for name in Settings.model_fields if name in names])
