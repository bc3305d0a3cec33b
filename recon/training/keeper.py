"""Writes what a training run leaves behind: checkpoints, log, curve, best and final model."""

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recon.files import partial_name, publish, write_json
from recon.training.checkpoint import (
    Weights,
    hash_weights,
    read_model_file,
    save_final,
    save_torch,
    sidecar,
)
from recon.training.logs import EpochRow, as_columns, write_log
from recon.training.resume import LAST, epoch_name, kept_checkpoints
from recon.training.runtime import unwrap
from recon.training.state import RunState, get_random_state
from recon.training.trainer import Trainer

__all__ = ["Keeper"]

logger = logging.getLogger("recon")


@dataclass
class Keeper:
    """Keeps a run on disk.

    Args:
        folder: For checkpoints and models.
        loss_file: Csv of every epoch; the curve lies beside it as png.
        interval: Epochs between checkpoints that are kept.
        most: How many of them are kept at most; 0: all.
        tag: Of the objective, in the names of models: "MSE".
        provenance: What to record with every model.
        draw: From the columns of the log to a picture of them.
    """

    folder: Path
    loss_file: Path
    interval: int
    most: int
    tag: str
    provenance: Mapping[str, Any]
    draw: Callable[[Mapping[str, Sequence[float]], Path], None]

    @property
    def curve(self) -> Path:
        """The picture of the log."""
        return self.loss_file.with_suffix(".png")

    def keep(self, trainer: Trainer) -> None:
        """Write the newest checkpoint and the log; and, where they are due, the kept ones."""
        if trainer.ranks.first:
            self._write(trainer)
        trainer.ranks.gather(None)  # No rank runs ahead of what is on disk.

    def catch_up(self, trainer: Trainer, checkpoint: Path) -> None:
        """Write what a run that was killed right after its checkpoint had no time to write."""
        if trainer.ranks.first:
            self._follow(trainer, checkpoint)
            # What `_follow` has not just written.
            if trainer.state.step > 0 or trainer.state.best_epoch < trainer.state.epoch:
                self._bring_best(trainer.state, checkpoint.parent)

    def _bring_best(self, state: RunState, folder: Path) -> None:
        """Have the best model so far beside the run, also if it goes on in another folder."""
        own, epoch = self._model_path("Best"), state.best_epoch
        for path in (own, folder / own.name):
            if epoch > 0 and _last_epoch_of(path) == _figures(state.history[epoch - 1]):
                if path != own:
                    best = read_model_file(path)
                    save_final(own, best.weights, best.provenance)
                return
        if epoch > 0:
            logger.warning("The best model so far, of epoch %d, is not in %s", epoch, folder)

    def _write(self, trainer: Trainer) -> None:
        last = self.folder / LAST
        save_torch(last, self._content(trainer))
        self._follow(trainer, last)

    def _follow(self, trainer: Trainer, checkpoint: Path) -> None:
        """Write what belongs to a checkpoint, if it is of the end of an epoch."""
        state = trainer.state
        if state.step > 0 or not state.history:
            return
        write_log(self.loss_file, state.history)
        write_json(sidecar(self.loss_file), self._record(trainer))
        if state.epoch % self.interval == 0:
            kept = self.folder / epoch_name(state.epoch)
            if not (kept.is_file() and kept.samefile(checkpoint)):
                _link(checkpoint, kept)
            self._prune(checkpoint)
            self.draw(as_columns(state.history), self.curve)
        if state.best_epoch == state.epoch:
            self._save_model(trainer, "Best")

    def _prune(self, newest: Path) -> None:
        """Remove kept checkpoints, but never what the run stands at: it may be an old one."""
        for path in kept_checkpoints(self.folder)[self.most :] if self.most else []:
            if not path.samefile(newest):
                path.unlink()

    def finish(self, trainer: Trainer) -> Path:
        """Write the curve and the final model, and return its path; the log is written already."""
        if trainer.ranks.first:
            self.draw(as_columns(trainer.state.history), self.curve)
            self._save_model(trainer, "Final")
        trainer.ranks.gather(None)
        return self._model_path("Final")

    def _save_model(self, trainer: Trainer, kind: str) -> None:
        save_final(self._model_path(kind), _final_weights(trainer), self._record(trainer))

    def _record(self, trainer: Trainer) -> dict[str, Any]:
        return {**self.provenance, "results": _results(trainer.state)}

    def _model_path(self, kind: str) -> Path:
        return self.folder / f"{kind}_Model_AE_{self.tag}.pth"

    def _content(self, trainer: Trainer) -> dict[str, Any]:
        state, weights = trainer.state, _final_weights(trainer)
        return {
            "epoch": state.epoch,
            "model_state_dict": weights,
            "optimizer_state_dict": trainer.optimizer.state_dict(),
            "loss": state.history[-1].loss if state.history else None,
            "provenance": self._record(trainer) | {"weights_sha256": hash_weights(weights)},
            "run": {
                "state": state.to_record(),
                "scaler": trainer.scaler.state_dict(),
                "random": get_random_state(),
                "average": _average_record(trainer),
            },
        }


def _final_weights(trainer: Trainer) -> Weights:
    """What the run has learnt: the average of the weights where there is one."""
    average = trainer.average
    return _weights(unwrap(trainer.model) if average is None else average.module)


def _average_record(trainer: Trainer) -> dict[str, Any] | None:
    """What resume needs besides the averaged weights."""
    if trainer.average is None:
        return None
    last_step = _weights(unwrap(trainer.model))
    return {"updates": trainer.average.updates, "last_step": last_step}


def _weights(model: nn.Module) -> Weights:
    """Weights in the layout that every program expects."""
    return {
        name: value.detach().to("cpu", memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }


def _results(state: RunState) -> dict[str, Any]:
    return {
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "seconds": round(sum(row.seconds for row in state.history), 1),
        "unreadable": len(state.unreadable),
        "last_epoch": _figures(state.history[-1]) if state.history else {},
    }


def _figures(row: EpochRow) -> dict[str, float]:
    """What an epoch came to, as a record keeps it."""
    figures = row._asdict()
    figures |= figures.pop("further")
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _last_epoch_of(model: Path) -> object:
    """What the last epoch came to of the run that wrote a model; None where that is not known."""
    try:
        return json.loads(sidecar(model).read_text(encoding="utf-8"))["results"]["last_epoch"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _link(source: Path, target: Path) -> None:
    """A second name for a file that will be replaced, never changed; a copy where links fail."""
    partial = partial_name(target)
    partial.unlink(missing_ok=True)
    try:
        try:
            partial.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, partial)
        publish(target)
    finally:
        partial.unlink(missing_ok=True)
