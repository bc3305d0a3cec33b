"""Commands that a run prints for its user, exact enough to paste."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from recon.sections import Arithmetic, Evaluation, System
from recon.settings import Settings
from recon.sources import as_flags

__all__ = ["evaluation_command", "resume_command"]


def evaluation_command(
    settings: Settings, objective: str, asked: frozenset[str], model: Path
) -> str:
    """The command that evaluates a model, with the flags of this run that concern it."""
    path = f"model_path_{objective}"
    names = [
        name
        for section in (System, Evaluation, Arithmetic)
        for name in section.model_fields
        if name in asked and not name.startswith("model_path_")
    ]
    flags = as_flags(settings.model_copy(update={path: str(model)}), [path, *names])
    return f"{script_command(f'Evaluation_{objective.upper()}.py')} {flags}"


def resume_command(settings: Settings, objective: str, asked: frozenset[str]) -> str:
    """The command that goes on with a run that was interrupted."""
    names = [name for name in Settings.model_fields if name in asked - {"resume"}]
    flags = as_flags(settings.model_copy(update={"resume": "auto"}), ["resume", *names])
    return f"{script_command(f'Training_{objective.upper()}.py')} {flags}"


def script_command(name: str) -> str:
    """Interpreter and script, as short as they work from here."""
    found = shutil.which("python")
    same = found is not None and Path(found).resolve() == Path(sys.executable).resolve()
    in_use = same and Path(found or "").parent == Path(sys.executable).parent
    interpreter = "python" if in_use else _near(Path(sys.executable))
    return shlex.join([interpreter, _near(Path(sys.argv[0]).absolute().with_name(name))])


def _near(path: Path) -> str:
    """Relative to the current folder where it lies below it."""
    here = Path.cwd()
    return os.path.relpath(path, here) if path.is_relative_to(here) else str(path)
