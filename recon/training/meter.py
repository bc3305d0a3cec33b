"""The sums of an epoch, and the bar that shows them."""

import math
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from recon.errors import UserError
from recon.training.runtime import Runtime
from recon.training.state import RunState
from recon.training.sums import Sums

__all__ = ["Losses", "Meter", "bar_hidden", "not_finite", "weights_are_finite"]

GPU_CHECK_INTERVAL = 20  # steps between looks at the loss, each of which waits for the GPU


class Losses(NamedTuple):
    """What a batch costs, image by image, on the device."""

    loss: Tensor  # (N,)
    objective: Tensor  # (N,), the loss without the penalty
    penalty: Tensor  # (N,), before it is weighted
    codes: Tensor | None = None  # (N, h, w) int64

    def sums(self) -> Tensor:
        """Over the images, (3,) float64."""
        return torch.stack([x.double().sum() for x in (self.loss, self.objective, self.penalty)])

    def code_counts(self) -> list[int]:
        """How often each code was used; empty for a network without a codebook."""
        return [] if self.codes is None else list(self.codes.flatten().bincount().tolist())

    def detached(self) -> "Losses":
        """The same without their gradients."""
        return Losses(*(None if part is None else part.detach() for part in self))  # type: ignore[arg-type]

    @classmethod
    def over(cls, parts: Sequence["Losses"]) -> "Losses":
        """The losses of the pieces of a batch as one."""
        columns = zip(*parts, strict=True)
        return cls(*(None if c[0] is None else torch.cat(c) for c in columns))  # type: ignore[arg-type]


class Meter:
    """Adds up the losses of an epoch and shows them, waiting for a GPU only now and then."""

    def __init__(self, state: RunState, runtime: Runtime, title: str, steps: int) -> None:
        self.state = state
        self.interval = 1 if runtime.device.type == "cpu" else GPU_CHECK_INTERVAL
        self.pending: list[tuple[int, Losses]] = []  # with the number of the step from 1
        self.started = time.perf_counter()
        self.before = state.sums.images
        self.bar = tqdm(
            total=steps,
            initial=state.step,
            desc=title,
            unit="step",
            leave=False,
            disable=bar_hidden(first=runtime.ranks.first),
        )

    def add(self, losses: Losses) -> None:
        """Take the losses of a step into account."""
        self.pending.append((self.state.step + 1, losses))

    def advance(self) -> None:
        """Count a step, and now and then look at the losses."""
        self.state.step += 1
        self.bar.update()
        if len(self.pending) >= self.interval:
            self._collect()
            self._refresh()

    def close(self) -> None:
        """Look at the remaining losses and stop the clock."""
        self.bar.close()
        self._collect()
        self.state.seconds += time.perf_counter() - self.started

    def _collect(self) -> None:
        if not self.pending:
            return
        # One transfer for all pending steps: each waits for the GPU.
        sums = torch.stack([losses.sums() for _, losses in self.pending]).tolist()
        for (number, losses), (loss, objective, penalty) in zip(self.pending, sums, strict=True):
            if not math.isfinite(loss):
                self.bar.close()
                raise not_finite(self.state.epoch + 1, number)
            count = len(losses.loss)
            self.state.sums.add(Sums(count, loss, objective, penalty, losses.code_counts()))
        self.pending.clear()

    def _refresh(self) -> None:
        sums = self.state.sums
        if sums.images:
            rate = (sums.images - self.before) / (time.perf_counter() - self.started)
            self.bar.set_postfix_str(
                f"loss {sums.loss / sums.images:.4f}, {rate:.1f} images/s",
                refresh=False,
            )


def bar_hidden(*, first: bool) -> bool:
    """Whether a bar has no place: not on the first rank, or where no terminal is."""
    stream = sys.stderr  # None under pythonw, and where the process began without it.
    if not first or stream is None or getattr(stream, "closed", False):
        return True
    return hasattr(stream, "isatty") and not stream.isatty()


def not_finite(epoch: int, step: int) -> UserError:
    """The error that ends a run whose weights are spoilt."""
    return UserError(
        f"the loss is not finite in epoch {epoch}, step {step}; lower learning_rate or set "
        f"precision = 'float32'; the last checkpoint is intact"
    )


def weights_are_finite(model: nn.Module) -> bool:
    """Whether no weight and no statistic of a network is spoilt."""
    finite = [value.isfinite().all() for value in model.state_dict().values()]
    return bool(torch.stack(finite).all())
