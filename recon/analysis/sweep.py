"""The study of a sweep, kept by Optuna: what to try next, what was tried, and what mattered.

A process that works on a trial holds a lock in the trial's folder. So a trial that the study calls
running, whose folder is here and whose lock is free, was left by a process that ended: it is put
down as failed, and its parameters are queued again together with the name of the folder, where
training goes on from the last checkpoint. Nothing else tells a process that was killed from one
that takes long, and Optuna's own heartbeat is bound to its own loop.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import OptunaError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from recon.errors import UserError

__all__ = [
    "CONTINUES", "ERROR", "FOLDER", "LOG", "RESUMES", "STORAGE_ERRORS", "Dimension", "ask",
    "failing_storage_told", "finished", "has_trials", "importances", "occupied", "open_study",
    "reclaim", "report", "study_in_memory", "values_of",
]  # fmt: skip

STORAGE_ERRORS = (SQLAlchemyError, OptunaError)
"""What a database raises by way of Optuna, beside `optuna.TrialPruned`, which is no failure."""

FOLDER, ERROR, LOG = "folder", "error", "log"
"""What is noted with a trial: its folder, while its lock is held; why it failed; how it went."""

CONTINUES, RESUMES = "continues", "resumes"
"""What is noted with one that is queued again: the number and the folder of the one that ended."""

SETTINGS = "settings"  # noted with the study

TENTHS = 10
"""Trials are compared at every tenth of their own epochs. Their learning rates then stand at the
same place of the schedule; after the same number of epochs, a trial that is planned to be short
would have annealed already, and longer ones would look worse than they will be."""

FEWEST = 4
"""Completed trials without which importances would be those of chance."""

BEST_PART = 0.25
"""The trials that importances explain: of 20, the best 5, which is what the method asks for."""

LOCK = ".trial.lock"


class Dimension(NamedTuple):
    """One setting and what to try for it.

    Attributes:
        distribution: As Optuna knows it. Choices that a database cannot hold are spelt out.
        choices: The values themselves, in the order of the distribution; none for a range.
    """

    distribution: CategoricalDistribution | FloatDistribution | IntDistribution
    choices: tuple[Any, ...] = ()

    def suggest(self, trial: Trial, name: str) -> None:
        """Choose a value, or take the one that the trial is queued with."""
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            trial.suggest_categorical(name, distribution.choices)
        elif isinstance(distribution, IntDistribution):
            trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
        else:
            trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)

    def value(self, parameter: Any) -> Any:
        """The value of the setting for a parameter of a trial."""
        if isinstance(self.distribution, CategoricalDistribution):
            return self.choices[self.distribution.choices.index(parameter)]
        return parameter


def values_of(
    parameters: Mapping[str, object], dimensions: Mapping[str, Dimension]
) -> dict[str, Any]:
    """The settings of a trial, from its parameters."""
    return {name: dimensions[name].value(spelt) for name, spelt in parameters.items()}


def without_password(url: str) -> str:
    """The URL of a database as it may be shown."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def open_study(url: str, name: str, settings: Mapping[str, Any], *, pruning: bool) -> Study:
    """Open a study, or begin it.

    Args:
        url: Of its database.
        name: Of the study.
        settings: What must be the same for all of its trials, as plain data.
        pruning: Whether trials that fall behind the median end early.

    Raises:
        UserError: If there is no such database, or the study is one of other settings.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner() if pruning else optuna.pruners.NopPruner()
    try:
        study = optuna.create_study(
            storage=url, study_name=name, pruner=pruner, load_if_exists=True
        )
    except (SQLAlchemyError, OptunaError, ImportError, ValueError) as error:
        reason = str(error).splitlines()[0].replace(url, shown := without_password(url))
        raise UserError(
            f"sweep_storage must be a database that Optuna can open, got {shown!r} ({reason})"
        ) from None
    saved = study.user_attrs.get(SETTINGS)
    if saved is None:
        study.set_user_attr(SETTINGS, dict(settings))
    elif changed := [
        f"{key} was {saved.get(key)!r}, now {settings.get(key)!r}"
        for key in {**saved, **settings}
        if saved.get(key) != settings.get(key)
    ]:
        raise UserError(
            f"sweep_name {name!r} has trials of other settings: {'; '.join(changed)}; set them "
            f"back, or choose another sweep_name"
        )
    return study


def has_trials(url: str, name: str) -> bool:
    """Whether a study has begun; its database is not created to find out."""
    try:
        place = make_url(url)
        if place.drivername.startswith("sqlite") and not Path(place.database or "").is_file():
            return False
        known = {study.study_name: study.n_trials for study in optuna.get_all_study_summaries(url)}
    except (SQLAlchemyError, OptunaError, ImportError, ValueError):
        return False  # Opening it will tell why.
    return known.get(name, 0) > 0


@contextmanager
def failing_storage_told() -> Iterator[None]:
    """Tell in one line that a database fails while a sweep is under way.

    Raises:
        UserError: In the place of what Optuna and the database raise.
    """
    try:
        yield
    except STORAGE_ERRORS as error:
        cause = error.__cause__ or error
        reason = without_password(next(iter(str(cause).splitlines()), type(cause).__name__))
        raise UserError(
            f"sweep_storage cannot be written or read ({reason}); start the sweep again to go on "
            f"with it once it can"
        ) from None


def study_in_memory() -> Study:
    """A study that is nowhere written, and draws as one at its beginning."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study()


def finished(study: Study) -> int:
    """How many trials have a result."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return len(study.get_trials(deepcopy=False, states=states))


def ask(study: Study, dimensions: Mapping[str, Dimension], seed: int) -> Trial:
    """Begin the next trial.

    The draw depends on the seed, the number of the trial and the results before it: processes that
    start at the same time draw differently, and a sweep that goes on draws as one that ran through.
    """
    trial = study.ask()
    drawn = np.random.SeedSequence((seed, trial.number)).generate_state(1)
    # Univariate: nothing has been drawn before the number was known.
    study.sampler = optuna.samplers.TPESampler(seed=int(drawn[0]), multivariate=False)
    for name, dimension in dimensions.items():
        dimension.suggest(trial, name)
    return trial


def report(trial: Trial, lowest: float, epoch: int, epochs: int) -> None:
    """Say how a trial does, whenever another tenth of its epochs is done.

    Args:
        trial: The trial.
        lowest: Validation loss so far.
        epoch: Epochs done.
        epochs: Planned for this trial.

    Raises:
        TrialPruned: If it has fallen behind.
    """
    tenth = TENTHS * epoch // epochs
    if tenth > TENTHS * (epoch - 1) // epochs:
        trial.report(lowest, tenth)
        if epoch < epochs and trial.should_prune():
            raise optuna.TrialPruned


@contextmanager
def occupied(folder: Path) -> Iterator[bool]:
    """Hold a trial's folder, if it is free; the lock goes with the process, however that ends.

    Yields:
        Whether it was free.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def reclaim(study: Study, root: Path) -> None:
    """Queue again the trials of this folder whose process has ended."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        name = trial.user_attrs.get(FOLDER)
        if name is not None and (root / name).is_dir():
            with occupied(root / name) as free:
                if free:
                    _queue_again(study, trial)


def _queue_again(study: Study, trial: FrozenTrial) -> None:
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except ValueError:  # Another process has just done it.
        return
    noted = {RESUMES: trial.user_attrs[FOLDER], CONTINUES: trial.number}
    study.enqueue_trial(dict(trial.params), user_attrs=noted)


def importances(study: Study) -> dict[str, float]:
    """The part of each setting in reaching the best results, by PED-ANOVA (arXiv:2304.10255).

    Returns:
        Shares that sum to 1, the largest first; empty where too few trials are completed.
    """
    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < FEWEST:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        kind = optuna.importance.PedAnovaImportanceEvaluator
        known = signature(kind).parameters
        # Older releases of Optuna know it as the baseline.
        name = "target_quantile" if "target_quantile" in known else "baseline_quantile"
        options: dict[str, Any] = {name: BEST_PART}
        evaluator = kind(**options)
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
