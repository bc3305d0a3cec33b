"""Puts a trainer where the run of a checkpoint stood, if the checkpoint holds what a run leaves."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from recon.errors import UserError, shortened
from recon.training.archives import bare_dict
from recon.training.checkpoint import check_weights, load_strictly
from recon.training.runtime import unwrap
from recon.training.state import RunState, set_random_state
from recon.training.sums import Sums
from recon.training.tensors import plain_tensor
from recon.training.trainer import Trainer

__all__ = ["restore"]

# What comes of a checkpoint that holds other things than a run leaves.
MALFORMED = (
    LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError
)  # fmt: skip
MOST_SAID = 300  # letters of what is wrong
OPTIONS = {"lr", "betas", "eps", "weight_decay"}
APART = {"params", "lr", "fused", "foreach", "capturable"}  # how it computes, not what
# What optimisers keep of a weight besides the number of steps, and the least value it can have.
ADAM = {"exp_avg": -math.inf, "exp_avg_sq": 0.0}
MATRIX = {"momentum": -math.inf}  # Muon, of a matrix
Count = Annotated[int, Field(strict=True, ge=0, le=2**53)]  # beyond, floats leave some out
BOUND = sys.float_info.max


def restore(trainer: Trainer, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Put a trainer where the checkpoint's run stood.

    Raises:
        UserError: If the checkpoint holds another network, or not what belongs to a run.
    """
    try:
        _restore(trainer, checkpoint, path)
    except MALFORMED as error:
        raise UserError(
            f"{path} cannot be resumed: another version of this program wrote it "
            f"({shortened(repr(error), MOST_SAID)}); "
            f"start from its weights with initial_weights"
        ) from None


def _restore(trainer: Trainer, checkpoint: Mapping[str, Any], path: Path) -> None:
    weights, average = checkpoint["model_state_dict"], checkpoint["run"]["average"]
    if (trainer.average is None) != (average is None):
        raise ValueError("the average of the weights is of one side only")
    if trainer.average is not None and average is not None:
        load_strictly(trainer.average.module, weights, path)
        _check_kind("updates", Count, average["updates"])
        trainer.average.updates = average["updates"]
        weights = check_weights(bare_dict(average["last_step"]), path)
    load_strictly(unwrap(trainer.model), weights, path)
    _check_options(trainer.optimizer, checkpoint["optimizer_state_dict"])
    _check_moments(trainer, checkpoint)
    trainer.optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
    if checkpoint["run"]["scaler"]:  # Nothing, where the precision of that device needed none.
        trainer.scaler.load_state_dict(checkpoint["run"]["scaler"])
    trainer.state = _checked_state(checkpoint["run"]["state"], trainer.train.batches.batches)
    if not trainer.ranks.first:  # The first rank goes on with the sums of all.
        trainer.state.sums = Sums()
    set_random_state(checkpoint["run"]["random"])


def _checked_state(record: dict[str, Any], steps: int) -> RunState:
    """Read a run's state, whose values must be of their kinds and agree with each other.

    Args:
        record: Of the checkpoint.
        steps: Of an epoch.
    """
    state = RunState.from_record(record)
    for part in (state, state.sums):
        for name, kind in get_type_hints(type(part)).items():
            _check_kind(name, kind, getattr(part, name))
    for count in (state.epoch, state.step, state.best_epoch, state.sums.images, *state.sums.codes):
        _check_kind("epochs, steps, images and codes", Count, count)
    _check_history(state)
    if state.best_epoch > state.epoch or state.best_loss != _best_loss(state):
        raise ValueError("best_loss must be that of best_epoch in history")
    _check_numbers("seconds", state.seconds)
    if state.step > steps:
        raise ValueError(f"step must be at most {steps}, got {state.step}")
    _check_sums(state)
    return state


def _check_history(state: RunState) -> None:
    # By its length first: no list is made of the epochs that a spoilt number asks for.
    if len(state.history) != state.epoch or any(
        row.epoch != number for number, row in enumerate(state.history, start=1)
    ):
        raise ValueError(f"history must hold epochs 1 to {state.epoch}")
    for row in state.history:
        _check_numbers("loss and figures in history", row.loss, *row.further.values(), least=-BOUND)
        _check_numbers("rates and times in history", *row[5:8])
        validated = row[2:5]  # of which PSNR is infinite where images are the same
        if not all(map(math.isnan, validated)):
            psnr = min(row.validation_psnr, BOUND)
            _check_numbers("validation in history", validated[0], psnr, validated[2], least=-BOUND)
    if len({tuple(row.further) for row in state.history}) > 1:
        raise ValueError("history must hold the same figures for every epoch")


def _best_loss(state: RunState) -> float:
    """The loss that the best epoch of a run was judged by."""
    if state.best_epoch == 0:
        return math.inf
    row = state.history[state.best_epoch - 1]
    return row.loss if math.isnan(row.validation_loss) else row.validation_loss


def _check_sums(state: RunState) -> None:
    """Prove that there are sums only where there are images; none of these may be readable yet."""
    sums = state.sums
    _check_numbers("sums", sums.loss, sums.objective, sums.penalty, least=-BOUND)
    if state.step == 0 < sums.images or (sums.images == 0 and sums != Sums(codes=sums.codes)):
        raise ValueError("sums must be those of the images of the epoch under way")


def _check_numbers(name: str, *values: float, least: float = 0) -> None:
    for value in values:
        if not least <= value <= BOUND:  # So not where it is no number, either.
            raise ValueError(f"{name} must be finite and at least {least}, got {value}")


def _check_kind(name: str, kind: Any, value: object) -> None:
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        raise ValueError(f"{name}: {error.errors()[0]['msg']}") from None


def _check_options(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Prove that the options of an optimiser are those of its own, but for the learning rate.

    Releases of torch know other ones; those that decide a step must be there.
    """
    for own, others in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for name in (own.keys() & others.keys() | OPTIONS) - APART:
            if not (type(others[name]) is type(own[name]) and others[name] == own[name]):
                raise ValueError(f"{name} of the optimiser is {others[name]!r}, not {own[name]!r}")
        if not (isinstance(others["lr"], float) and 0 <= others["lr"] < math.inf):
            raise ValueError(f"lr of the optimiser is {others['lr']!r}")


def _check_moments(trainer: Trainer, content: Mapping[str, Any]) -> None:
    """Prove that an optimiser's state is of the kind that its own steps leave.

    A weight that the network does not use has no gradient, and so no state. Where a scaler of
    gradients was at work, it may have left out every step so far.
    """
    saved, run = content["optimizer_state_dict"], content["run"]
    states = bare_dict(saved["state"])
    groups, places = trainer.optimizer.param_groups, trainer.optimizer.state_dict()["param_groups"]
    for group, place, others in zip(groups, places, saved["param_groups"], strict=True):
        if others["params"] != place["params"]:
            raise ValueError("the optimiser must be over the weights of this network")
        names = MATRIX if group.get("momentum") is not None else ADAM
        for number, weight in zip(place["params"], group["params"], strict=True):
            if number in states:
                _check_state(bare_dict(states.pop(number)), names, weight)
    if states:
        raise ValueError("the optimiser must hold the state of weights of this network alone")
    learnt = run["state"]["epoch"] > 0 or run["state"]["sums"]["images"] > 0
    if learnt and not saved["state"] and not run["scaler"]:
        raise ValueError("the optimiser must hold the state of every weight that has learnt")


def _check_state(state: Mapping[str, Any], names: Mapping[str, float], weight: Tensor) -> None:
    """Hold what an optimiser keeps of a weight against names, shape and kind of number."""
    if state.keys() != {*names, "step"}:
        raise ValueError(f"the optimiser must keep {', '.join(names)} and step of every weight")
    for name, least in {**names, "step": 0}.items():  # A scaler of gradients may undo a step.
        value, step = plain_tensor(state[name]), name == "step"
        shape, dtype = ((), torch.float32) if step else (weight.shape, weight.dtype)
        if value is None or value.shape != shape or value.dtype != dtype:
            raise ValueError(f"{name} of the optimiser must be {dtype} of shape {tuple(shape)}")
        if value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(f"{name} of the optimiser must hold as many values as its shape")
        if not bool((value.isfinite() & (value >= least)).all()):
            raise ValueError(f"{name} of the optimiser must be finite and at least {least}")
