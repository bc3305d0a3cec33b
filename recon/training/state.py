"""Everything that a run must remember to go on as if nothing had happened."""

import math
import random
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from recon.training.logs import EpochRow
from recon.training.sums import Sums

__all__ = ["RunState", "get_random_state", "set_random_state"]

KEYS = 624  # numbers of the state of a Mersenne Twister


@dataclass
class RunState:
    """Where a run stands, in plain numbers."""

    epoch: int = 0  # epochs completed
    step: int = 0  # steps completed in the epoch under way
    sums: Sums = field(default_factory=Sums)  # over the images of the epoch under way
    seconds: float = 0.0  # spent in the epoch under way
    best_loss: float = math.inf
    best_epoch: int = 0
    history: list[EpochRow] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)  # path: reason

    def begin_epoch(self) -> None:
        """Forget the epoch that has ended."""
        self.step, self.seconds = 0, 0.0
        self.sums = Sums()

    def to_record(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return asdict(self) | {"history": [list(row) for row in self.history]}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "RunState":
        """Read back what `to_record` gave."""
        history = [EpochRow(*row) for row in record["history"]]
        return cls(**record | {"history": history, "sums": Sums(**record["sums"])})


def get_random_state() -> dict[str, Any]:
    """The state of every generator that training may draw from, as plain data and tensors."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `get_random_state` gave.

    Raises:
        ValueError: If the place in NumPy's numbers is none, which NumPy itself does not ask.
    """
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    if not (type(rest[0]) is int and 0 <= rest[0] <= KEYS == len(keys)):
        raise ValueError(f"NumPy's random state must hold {KEYS} numbers and a place among them")
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
