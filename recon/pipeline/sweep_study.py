"""A sweep as the settings describe it: checked, and opened."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.study import Study

from recon.analysis.sweep import Dimension, has_trials, open_study, reclaim
from recon.data.splits import split_by_group
from recon.errors import UserError
from recon.files import check_writable
from recon.pipeline.images import Datasets, open_folder
from recon.pipeline.models import architecture_of, preparation_of
from recon.pipeline.paths import Relatives
from recon.pipeline.sweep_results import Results
from recon.pipeline.sweep_space import leave_out_idle, read_space
from recon.provenance import describe_run, flatten
from recon.ranks import ranks_of_environment
from recon.settings import Settings, recorded
from recon.training.resume import FIXED, FIXED_PREFIXES

__all__ = ["Sweep", "open_sweep"]

DATABASE_LOCK = ".database.lock"


@dataclass(frozen=True)
class Sweep:
    """What a sweep works with."""

    settings: Settings
    asked: frozenset[str]
    dimensions: Mapping[str, Dimension]
    study: Study
    folder: Path
    results: Results

    @property
    def objective(self) -> str:
        """What the trials train."""
        return self.settings.sweep_objective


def open_sweep(
    settings: Settings,
    datasets: Datasets,
    asked: frozenset[str],
    rehearse: Callable[[Mapping[str, Dimension]], None],
) -> Sweep:
    """Check everything, then open the study, and queue what an ended process has left.

    Args:
        settings: Of the sweep.
        datasets: `datasets.ImageFolderDataset`.
        asked: Names of the settings given on the command line.
        rehearse: Refuses a space of which no training can come; asked before the first trial.

    Raises:
        UserError: For anything that the user can put right.
    """
    _check(settings)
    objective = settings.sweep_objective
    space = read_space(settings.sweep_space, objective)
    dimensions = leave_out_idle(space, architecture_of(settings, objective))
    _check_validation(settings, datasets)
    folder = Path(settings.sweep_folder) / settings.sweep_name
    url = settings.sweep_storage or f"sqlite:///{folder.parent / settings.sweep_name}.db"
    if not has_trials(url, settings.sweep_name):
        rehearse(dimensions)
    check_writable(folder, "sweep_folder")
    with FileLock(folder / DATABASE_LOCK):  # Two processes that create tables at once would fail.
        study = open_study(
            url,
            settings.sweep_name,
            _fixed(settings, dimensions),
            pruning=settings.sweep_pruning,
        )
        reclaim(study, folder)
    run = {**describe_run(), "settings": recorded(settings)}
    others = {
        name: getattr(settings, name)
        for name in Settings.model_fields
        if name in asked and name not in dimensions and not name.startswith("sweep_")
    }
    results = Results(study, dimensions, folder, flatten(run), others)
    return Sweep(settings, asked, dimensions, study, folder, results)


def _check(settings: Settings) -> None:
    if ranks_of_environment().world > 1:
        raise UserError(
            "Sweep.py must be started without torchrun: several processes share a sweep when each "
            "is started by itself, with the same sweep_storage"
        )
    if not re.fullmatch(r"[\w-][\w.-]*", settings.sweep_name):
        raise UserError(
            f"sweep_name must be letters, digits, '_', '-' and '.', got {settings.sweep_name!r}"
        )
    if settings.resume:
        raise UserError(
            f"resume must be '' for a sweep, which goes on by itself, got {settings.resume!r}"
        )


def _check_validation(settings: Settings, datasets: Datasets) -> None:
    """Trials are chosen by images that none of them has learnt from."""
    preparation = preparation_of(settings)
    folder = settings.folder_path_train
    paths = open_folder(datasets, "folder_path_train", folder, preparation).paths
    if settings.folder_path_validation:
        return
    fraction, group = settings.validation_fraction, settings.validation_group
    try:
        _, aside = split_by_group(Relatives(paths), fraction, group, settings.seed)
    except ValueError as error:
        raise UserError(str(error)) from None
    if len(aside) == 0:
        raise UserError(
            f"a sweep must have validation images, got none with validation_fraction = {fraction} "
            f"and validation_group = {group!r}; give folder_path_validation, or another group"
        )


def _fixed(settings: Settings, dimensions: Mapping[str, Dimension]) -> dict[str, Any]:
    """What must be the same for all trials of a study, as plain data."""
    names = [
        name
        for name in Settings.model_fields
        if name in (*FIXED, "num_epochs", "sweep_objective", "sweep_space")
        or name.startswith(FIXED_PREFIXES)
    ]
    record = settings.model_dump(mode="json", include={*names} - {*dimensions})
    plain: dict[str, Any] = json.loads(json.dumps(record))
    # A list is choices and a tuple is a range; JSON would make them one.
    plain["sweep_space"] = {name: repr(tried) for name, tried in settings.sweep_space.items()}
    return plain
