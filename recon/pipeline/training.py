"""One training run, from settings to a final model."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from recon.errors import InterruptedRunError, UserError, quoted
from recon.evaluation.curves import plot_curves
from recon.files import check_target, check_writable, exclusive
from recon.models.registry import Builder
from recon.pipeline.assembling import assemble
from recon.pipeline.commands import evaluation_command, resume_command
from recon.pipeline.explaining import explained
from recon.pipeline.foresight import (
    check_place,
    check_readable,
    check_space,
    check_trackers,
    comment_on_log,
    demand_agreement,
    spare_sidecars,
)
from recon.pipeline.images import Datasets, report_unreadable
from recon.pipeline.models import architecture_of, options_of, preparation_of
from recon.provenance import INITIAL, describe_run, without_members
from recon.ranks import join_ranks
from recon.settings import Settings, recorded
from recon.training.checkpoint import sidecar
from recon.training.keeper import Keeper
from recon.training.logs import EpochRow, as_columns
from recon.training.panels import panel_of
from recon.training.restoring import restore
from recon.training.resume import find_checkpoint, refuse_changes
from recon.training.runtime import Runtime, start_runtime
from recon.training.tracking import EpochTracking, open_trackers, run_name
from recon.training.trainer import Trainer

__all__ = ["check_training", "run_training"]

logger = logging.getLogger("recon")

PARTS = {"objective", "settings", "data"}  # of a record, that a resumed run is compared with


def run_training(
    settings: Settings,
    objective: str,
    auto_encoder: Builder,
    datasets: Datasets,
    *,
    asked: frozenset[str] = frozenset(),
    after_epoch: Callable[[EpochRow], None] | None = None,
) -> Path:
    """Train, and write checkpoints, log, curve and the final model.

    Args:
        settings: Of the run.
        objective: "mse", "ssim", "vae" or "vqvae".
        auto_encoder: `Auto_encoder.AutoEncoder`.
        datasets: `datasets.ImageFolderDataset`.
        asked: Names of the settings given on the command line, for the command printed at the end.
        after_epoch: Called with the figures of each epoch, on every rank, once it is saved.

    Returns:
        The path of the final model.

    Raises:
        UserError: For anything that the user can put right.
        InterruptedRunError: If a signal ended the run; it has been saved.
    """
    folder = Path(settings.of("model_saved_location", objective))
    loss_file = Path(settings.of("training_loss_file", objective))
    check_writable(folder, f"model_saved_location_{objective}")
    check_target(loss_file, f"training_loss_file_{objective}")
    spare_sidecars(sidecar(loss_file), f"training_loss_file_{objective}")
    check_place(loss_file, settings, objective)
    runtime = start_runtime(
        settings.GPUs, settings.precision, seed=settings.seed, deterministic=settings.deterministic
    )
    with ExitStack() as stack:
        if runtime.ranks.first:
            stack.enter_context(exclusive(folder, f"model_saved_location_{objective}"))
            stack.enter_context(exclusive(loss_file, f"training_loss_file_{objective}"))
        join_ranks(runtime.ranks, runtime.device)
        stack.enter_context(explained(settings, "batch_size_train"))
        stack.enter_context(_one_value_explained(settings))
        trainer, keeper, tracking = _start(settings, objective, auto_encoder, datasets, runtime)
        stack.callback(tracking.finish)
        stack.enter_context(_workers_of(trainer))
        with _going_on(settings, objective, asked):
            trainer.fit(lambda trainer: _keep(trainer, keeper, tracking, after_epoch))
            final = keeper.finish(trainer)
    report_unreadable(list(trainer.state.unreadable.values()))
    logger.info("Loss of every epoch: %s, as a curve: %s", loss_file, keeper.curve)
    logger.info("Model: %s", final)
    logger.info("Evaluate it with:\n  %s", evaluation_command(settings, objective, asked, final))
    return final


def check_training(
    settings: Settings, objective: str, auto_encoder: Builder, datasets: Datasets
) -> None:
    """Refuse settings and images that training refuses before its first step.

    Nothing is written; what the disk and its owners say against writing is not asked.

    Args:
        settings: Of the run.
        objective: "mse", "ssim", "vae" or "vqvae".
        auto_encoder: `Auto_encoder.AutoEncoder`.
        datasets: `datasets.ImageFolderDataset`.

    Raises:
        UserError: For anything that the user can put right.
    """
    check_place(Path(settings.of("training_loss_file", objective)), settings, objective)
    check_trackers(settings.tracking)
    uncached = settings.model_copy(update={"cache": "none"})
    runtime = start_runtime(
        settings.GPUs, settings.precision, seed=settings.seed, deterministic=settings.deterministic
    )
    with explained(settings, "batch_size_train"):
        trainer, _ = assemble(uncached, objective, auto_encoder, datasets, runtime, resumed=False)
        with _workers_of(trainer):
            check_readable(trainer)


def _start(
    settings: Settings, objective: str, auto_encoder: Builder, datasets: Datasets, runtime: Runtime
) -> tuple[Trainer, Keeper, EpochTracking]:
    """A trainer at its place in the run, and that place on disk.

    Whatever may refuse the run comes before it takes the place of another.
    """
    folder = Path(settings.of("model_saved_location", objective))
    found = find_checkpoint(settings.resume, folder)
    trainer, data = assemble(
        settings, objective, auto_encoder, datasets, runtime, resumed=found is not None
    )
    demand_agreement(runtime.ranks, found, data.record)
    check_space(folder, trainer.model)
    keeper = _keeper(settings, objective, trainer, data.record)
    if found is not None:
        _resume(trainer, keeper, *found)
        before = found[1]["provenance"]["data"]
        if INITIAL in before:
            data.record[INITIAL] = before[INITIAL]
    check_readable(trainer)
    tracking = _tracking(settings, objective, trainer, keeper)
    if found is None:
        comment_on_log(keeper)
        keeper.keep(trainer)  # From here on the folder is this run's, and resuming means it.
    if runtime.ranks.first:
        data.write_split()
    return trainer, keeper, tracking


def _keeper(settings: Settings, objective: str, trainer: Trainer, data: dict[str, Any]) -> Keeper:
    return Keeper(
        folder=Path(settings.of("model_saved_location", objective)),
        loss_file=Path(settings.of("training_loss_file", objective)),
        interval=settings.save_interval,
        most=settings.keep_checkpoints,
        tag=objective.upper(),
        provenance=_provenance(settings, objective, trainer, data),
        draw=plot_curves,
    )


def _keep(
    trainer: Trainer,
    keeper: Keeper,
    tracking: EpochTracking,
    after_epoch: Callable[[EpochRow], None] | None,
) -> None:
    keeper.keep(trainer)
    if trainer.state.step > 0:  # An interruption, not the end of an epoch.
        return
    row = trainer.state.history[-1]
    tracking.record({name: values[0] for name, values in as_columns([row]).items()}, row.epoch)
    if after_epoch is not None:
        after_epoch(row)


def _tracking(
    settings: Settings, objective: str, trainer: Trainer, keeper: Keeper
) -> EpochTracking:
    """The loggers beside the csv, on the first rank."""
    if not (settings.tracking and trainer.ranks.first):
        return EpochTracking([])
    state = trainer.state
    trackers = open_trackers(
        settings.tracking,
        Path(settings.tracking_folder),
        name=run_name(objective, keeper.folder),
        config=without_members(keeper.provenance),
        project=settings.wandb_project,
        mode=settings.wandb_mode,
        epoch=state.epoch if state.epoch or state.step else None,
    )
    return EpochTracking(trackers, panel_of(trainer, settings.tracking_images))


def _provenance(
    settings: Settings, objective: str, trainer: Trainer, data: dict[str, Any]
) -> dict[str, Any]:
    return {
        **describe_run(),
        "objective": objective,
        "architecture": architecture_of(settings, objective),
        "network": options_of(settings)._asdict(),
        "preparation": preparation_of(settings)._asdict(),
        "settings": recorded(settings),
        "data": data,
        "device": trainer.runtime.name,
        "precision": trainer.runtime.precision,
    }


def _resume(trainer: Trainer, keeper: Keeper, path: Path, checkpoint: dict[str, Any]) -> None:
    saved = checkpoint["provenance"]
    lacking = PARTS - {name for name, part in saved.items() if part}
    if lacking:
        raise UserError(f"{path} cannot be resumed: its record lacks {', '.join(sorted(lacking))}")
    if saved["objective"] != keeper.provenance["objective"]:
        raise UserError(
            f"{path} cannot be resumed: its objective was {quoted(saved['objective'])}, now "
            f"{keeper.provenance['objective']!r}"
        )
    refuse_changes(saved["settings"], keeper.provenance["settings"], path)
    _refuse_other_images(saved["data"], keeper.provenance["data"], path)
    restore(trainer, checkpoint, path)
    done, epochs = trainer.state.epoch, trainer.plan.epochs
    if done >= epochs and trainer.state.step > 0:
        raise UserError(
            f"num_epochs must be at least {done + 1} to go on with {path}, which is in the middle "
            f"of epoch {done + 1}, got {epochs}"
        )
    keeper.catch_up(trainer, path)
    logger.info("Resuming %s after epoch %d", path, done)
    if done >= epochs:
        logger.info("All %d epochs are done; a higher num_epochs would go on", epochs)


def _refuse_other_images(saved: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Compare names and sizes, and contents where both records hold some of them."""
    for part, title in (("train", "training"), ("validation", "validation")):
        for fact in ("fingerprint", "members"):
            values = [data.get(part, {}).get(fact) for data in (saved, now)]
            known = fact == "fingerprint" or None not in values
            if known and values[0] != values[1]:
                raise UserError(
                    f"{path} cannot be resumed: the {title} images have changed since; "
                    f"put them back, or start anew with resume = ''"
                )


@contextmanager
def _workers_of(trainer: Trainer) -> Iterator[None]:
    """End all of them in the end, also if Ctrl-C comes while one loader ends its own."""
    with ExitStack() as stack:
        for split in (trainer.train, trainer.validation):
            if split is not None:
                stack.enter_context(split.loader)
        yield


@contextmanager
def _going_on(settings: Settings, objective: str, asked: frozenset[str]) -> Iterator[None]:
    """Say how to go on with a run that has begun."""
    try:
        yield
    except (InterruptedRunError, KeyboardInterrupt):
        logger.info("Go on with:\n  %s", resume_command(settings, objective, asked))
        raise


@contextmanager
def _one_value_explained(settings: Settings) -> Iterator[None]:
    """Say what to do where batch normalisation is left without anything to learn from."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"batch normalisation cannot learn from one image of tile_size = {settings.tile_size}, "
            f"of which the network leaves one value; raise tile_size or batch_size_train"
            + (", or lower accumulation" if settings.accumulation > 1 else "")
        ) from None
