"""One sweep: trainings one after the other, each with settings that those before suggest.

Several processes, on one machine or many, work on the same sweep through its storage.
"""

import gc
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import Trial, TrialState

from recon.analysis.sweep import (
    ERROR,
    FOLDER,
    LOG,
    RESUMES,
    STORAGE_ERRORS,
    Dimension,
    ask,
    failing_storage_told,
    finished,
    occupied,
    report,
    study_in_memory,
    values_of,
)
from recon.errors import InterruptedRunError, UserError
from recon.models.registry import Builder
from recon.pipeline.images import Datasets
from recon.pipeline.sweep_commands import sweep_command, training_command
from recon.pipeline.sweep_results import BEST, IMPORTANCE
from recon.pipeline.sweep_study import Sweep, open_sweep
from recon.pipeline.training import check_training, run_training
from recon.settings import Settings
from recon.sources import Source, merge
from recon.training.logs import EpochRow, read_log

__all__ = ["run_sweep"]

logger = logging.getLogger("recon")

HOPELESS = 5
"""As many failures in a row are not the fault of what is swept."""


def run_sweep(
    settings: Settings,
    auto_encoder: Builder,
    datasets: Datasets,
    *,
    asked: frozenset[str] = frozenset(),
) -> Path:
    """Train until the sweep has as many results as the settings say.

    A sweep that was ended goes on when it is started again: what is finished stands, and the
    training that was under way goes on where it was saved.

    Args:
        settings: Of the sweep, and of all that is not swept.
        auto_encoder: `Auto_encoder.AutoEncoder`.
        datasets: `datasets.ImageFolderDataset`.
        asked: Names of the settings given on the command line, for the commands that are printed.

    Returns:
        The path of the file of the best settings.

    Raises:
        UserError: For anything that the user can put right.
        InterruptedRunError: If a signal ended the sweep.
    """
    rehearse = partial(_rehearse, settings, auto_encoder, datasets)
    with failing_storage_told():
        sweep = open_sweep(settings, datasets, asked, rehearse)
        try:
            _work(sweep, auto_encoder, datasets)
        except (InterruptedRunError, KeyboardInterrupt):
            command = sweep_command(settings, asked)
            logger.info("Go on with the sweep, this trial first, with:\n  %s", command)
            raise
        return _conclude(sweep)


def _rehearse(
    settings: Settings,
    auto_encoder: Builder,
    datasets: Datasets,
    dimensions: Mapping[str, Dimension],
) -> None:
    """Refuse now what would end the sweep after its first trials."""
    study, reason = study_in_memory(), ""
    for _ in range(HOPELESS):
        trial = ask(study, dimensions, settings.seed)
        values = values_of(trial.params, dimensions)
        folder = Path(settings.sweep_folder) / settings.sweep_name / f"trial_{trial.number:04d}"
        try:
            tried = _merged(settings, {**values, **_places(settings, folder), "resume": ""})
            check_training(tried, settings.sweep_objective, auto_encoder, datasets)
        except UserError as error:
            reason = str(error)
        else:
            return
        finally:
            _free_memory()
    raise UserError(f"none of the first {HOPELESS} trials could be trained: {reason}")


def _work(sweep: Sweep, auto_encoder: Builder, datasets: Datasets) -> None:
    """Train until there are results enough."""
    failures = 0
    while finished(sweep.study) < sweep.settings.sweep_trials:
        error = _run_trial(sweep, auto_encoder, datasets)
        _free_memory()
        sweep.results.write()
        failures = 0 if error is None else failures + 1
        if failures == HOPELESS:
            raise UserError(f"{HOPELESS} trials in a row have failed, the last with: {error}")


def _run_trial(sweep: Sweep, auto_encoder: Builder, datasets: Datasets) -> str | None:
    """Train once; returns why it failed, if it did."""
    trial = ask(sweep.study, sweep.dimensions, sweep.settings.seed)
    folder, resume = _folder(sweep, trial)
    with occupied(folder):
        trial.set_user_attr(FOLDER, folder.name)
        try:
            lowest = _train(sweep, trial, folder, resume, auto_encoder, datasets)
        except optuna.TrialPruned:
            logger.info("Trial %d ends early: it is behind the median", trial.number)
            sweep.study.tell(trial, state=TrialState.PRUNED)
        except UserError as error:
            logger.warning("Trial %d failed: %s", trial.number, error)
            _fail(sweep, trial, str(error))
            return str(error)
        except (OSError, *STORAGE_ERRORS):
            raise  # Left as it is, as after a signal, to be gone on with.
        except Exception as error:
            _fail(sweep, trial, repr(error))  # Else it would come back at every start.
            raise
        else:
            sweep.study.tell(trial, lowest)
    return None


def _fail(sweep: Sweep, trial: Trial, error: str) -> None:
    trial.set_user_attr(ERROR, error)
    sweep.study.tell(trial, state=TrialState.FAIL)


def _folder(sweep: Sweep, trial: Trial) -> tuple[Path, str]:
    """Where a trial trains, and what to resume there."""
    before = sweep.folder / trial.user_attrs.get(RESUMES, "-")
    if before.is_dir():
        return before, "auto"
    folder = sweep.folder / f"trial_{trial.number:04d}"
    try:
        folder.mkdir()
    except FileExistsError:
        sweep.study.tell(trial, state=TrialState.FAIL)
        raise UserError(
            f"{folder} must not exist before its trial, and is of another sweep; choose another "
            f"sweep_name or sweep_folder, or remove it"
        ) from None
    return folder, ""


def _train(
    sweep: Sweep,
    trial: Trial,
    folder: Path,
    resume: str,
    auto_encoder: Builder,
    datasets: Datasets,
) -> float:
    """Train with the settings of a trial; returns the lowest validation loss."""
    values = values_of(trial.params, sweep.dimensions)
    settings, asked = _settings_of(sweep, values, folder, resume)
    loss_file = Path(settings.of("training_loss_file", sweep.objective))
    spelt = ", ".join(f"{name} = {value!r}" for name, value in values.items())
    logger.info("Trial %d: %s", trial.number, spelt)

    def after_epoch(row: EpochRow) -> None:
        report(trial, _note(trial, loss_file), row.epoch, settings.num_epochs)

    run_training(
        settings, sweep.objective, auto_encoder, datasets, asked=asked, after_epoch=after_epoch
    )
    return _note(trial, loss_file)  # A training that had ended already has called nothing.


def _note(trial: Trial, loss_file: Path) -> float:
    """Keep the log of a trial with the study; returns the lowest validation loss.

    From the file and not from the call: it also knows the epochs before a training was resumed.
    """
    columns = read_log(loss_file)
    losses = columns["Validation Loss"]
    trial.set_user_attr(LOG, [losses, sum(columns["Seconds"])])
    return min(losses)


def _settings_of(
    sweep: Sweep, values: Mapping[str, Any], folder: Path, resume: str
) -> tuple[Settings, frozenset[str]]:
    """The settings of a trial, and the names of those that a command must repeat."""
    given = sweep.settings
    moved = {
        **_places(given, folder),
        # The one that is kept is the last, and a second name for it: it takes no space.
        "save_interval": values.get("num_epochs", given.num_epochs),
        "keep_checkpoints": 1,
        "resume": resume,
    }
    settings = _merged(given, {**values, **moved})
    asked = {name for name in sweep.asked if not name.startswith("sweep_")}
    return settings, frozenset(asked | values.keys() | moved.keys())


def _places(given: Settings, folder: Path) -> dict[str, str]:
    """Where a trial writes."""
    objective = given.sweep_objective
    return {
        f"model_saved_location_{objective}": str(folder),
        f"training_loss_file_{objective}": str(folder / "training_loss.csv"),
        "tracking_folder": str(Path(given.tracking_folder) / given.sweep_name / folder.name),
    }


def _merged(given: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings of a sweep, but for some values."""
    whole = Source("Config.py", given.model_dump(exclude={"sweep_storage"}))
    return merge(Settings, [whole, Source("sweep_space", values)])


def _free_memory() -> None:
    """Give back what a training held; a failed one is also held by its error."""
    gc.collect()
    torch.cuda.empty_cache()


def _conclude(sweep: Sweep) -> Path:
    """Say what came out of a sweep."""
    best, path = sweep.results.write(), sweep.folder / BEST
    failed = [row for row in sweep.results.rows() if row.state == "failed" and row.note]
    for row in failed:
        logger.warning("Trial %d failed: %s", row.number, row.note)
    logger.info("Trials: %s", sweep.folder / "trials.xlsx")
    if not (sweep.folder / IMPORTANCE).exists():
        logger.info("%s needs more completed trials", IMPORTANCE)
    if best is None:
        raise UserError("no trial is completed; raise sweep_trials")
    logger.info(
        "Best of %d trials: trial %d, validation loss %.6g after epoch %s",
        finished(sweep.study), best.number, best.loss, best.best_epoch,
    )  # fmt: skip
    swept, settings, asked = sweep.dimensions.keys(), sweep.settings, sweep.asked
    command = training_command(settings, sweep.objective, asked, path, swept)
    logger.info("Train with its settings:\n  %s", command)
    return path
