"""The sums of an epoch, and the bar that shows them."""

import math
import time

import torch
from torch import Tensor
from tqdm import tqdm

from recon.errors import UserError
from recon.training.runtime import Runtime
from recon.training.state import RunState

__all__ = ["Meter", "not_finite"]

GPU_CHECK_INTERVAL = 20  # steps between looks at the loss, each of which waits for the GPU


class Meter:
    """Adds up the losses of an epoch and shows them, waiting for a GPU only now and then."""

    def __init__(self, state: RunState, runtime: Runtime, title: str, steps: int) -> None:
        self.state = state
        self.interval = 1 if runtime.device.type == "cpu" else GPU_CHECK_INTERVAL
        self.pending: list[tuple[int, Tensor]] = []  # number of the step from 1, losses (N,)
        self.started = time.perf_counter()
        self.before = state.images
        self.bar = tqdm(
            total=steps,
            initial=state.step,
            desc=title,
            unit="step",
            leave=False,
            disable=None if runtime.ranks.first else True,
        )

    def add(self, losses: Tensor) -> None:
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
        sums = torch.stack([losses.sum() for _, losses in self.pending]).tolist()
        for (number, losses), total in zip(self.pending, sums, strict=True):
            if not math.isfinite(total):
                self.bar.close()
                raise not_finite(self.state.epoch + 1, number)
            self.state.loss_sum += total
            self.state.images += len(losses)
        self.pending.clear()

    def _refresh(self) -> None:
        if self.state.images:
            rate = (self.state.images - self.before) / (time.perf_counter() - self.started)
            self.bar.set_postfix_str(
                f"loss {self.state.loss_sum / self.state.images:.4f}, {rate:.1f} images/s",
                refresh=False,
            )


def not_finite(epoch: int, step: int) -> UserError:
    """The error that ends a run whose weights are spoilt."""
    return UserError(
        f"the loss is not finite in epoch {epoch}, step {step}; lower learning_rate or set "
        f"precision = 'float32'; the last checkpoint is intact"
    )
