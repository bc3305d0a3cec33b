"""The processes of a run, as torchrun starts them; a single one without it."""

import atexit
import gc
import importlib
import os
import sys
from functools import lru_cache
from typing import Final, TypeVar, cast

import torch
from torch import distributed

from recon.errors import UserError

__all__ = ["ALONE", "Ranks", "join_ranks", "ranks_of_environment"]

Item = TypeVar("Item")

# Only here, for it has to be gone when the process ends; empty for a single process.
_CONTROL: Final[list[distributed.ProcessGroup]] = []


class Ranks:
    """One process among those of a run.

    Args:
        rank: Number of this process, from 0.
        world: Number of processes.
        local: Number of this process on its machine.
        here: Number of processes on its machine.
    """

    def __init__(self, rank: int = 0, world: int = 1, local: int = 0, here: int = 1) -> None:
        self.rank, self.world, self.local, self.here = rank, world, local, here

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def gather(self, item: Item) -> list[Item]:
        """The item of every rank, in their order, on every rank. Waits for all of them."""
        if self.world == 1:
            return [item]
        items: list[Item | None] = [None] * self.world
        distributed.all_gather_object(items, item, group=_CONTROL[0])
        return items  # type: ignore[return-value]

    def demand_same(self, value: object, message: str) -> None:
        """Refuse a value that is not the same on every rank, on every rank.

        Raises:
            UserError: With the message, if it differs.
        """
        if any(other != value for other in self.gather(value)):
            raise UserError(message)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all ranks, on every rank. Waits for all of them."""
        if self.world == 1:
            return values
        summed = values.detach().cpu().clone()  # By gloo, on the host, like all that is small.
        distributed.all_reduce(summed, group=_CONTROL[0])
        return summed.to(values.device)

    def share(self, indices: list[int]) -> list[int]:
        """This rank's part of a batch; parts differ by one at most, and no index is in two."""
        return indices[self.rank :: self.world]


ALONE = Ranks()


def ranks_of_environment() -> Ranks:
    """Read what torchrun has set."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(name in os.environ for name in names):
        return Ranks()
    values = [os.environ[name] for name in names]
    if not all(value.isdecimal() for value in values):
        raise UserError(f"{', '.join(names)} must be whole numbers, got {values}; start torchrun")
    here = os.environ.get("LOCAL_WORLD_SIZE", "1")
    rank, world, local = map(int, values)
    return Ranks(rank, world, local, int(here) if here.isdecimal() else 1)


def join_ranks(ranks: Ranks, device: torch.device) -> None:
    """Connect the processes of a run, until they end.

    Gradients travel by NCCL between GPUs. All else is small and on the host, and travels by gloo,
    so that no step waits for a GPU.
    """
    if ranks.world == 1:
        return
    _connect("nccl" if device.type == "cuda" else "gloo")


@lru_cache
def _connect(backend: str) -> None:
    """Connect once: processes that connect again under one torchrun can wait for ever."""
    # Imported after connecting, this module would keep the group, as default of its arguments.
    importlib.import_module("torch.distributed.nn.functional")
    try:
        distributed.init_process_group(backend)
    except ValueError as error:
        raise UserError(f"the processes cannot be connected: {error}; start torchrun") from None
    # For a process outside the group this is a number; here every process is inside.
    _CONTROL.append(cast(distributed.ProcessGroup, distributed.new_group(backend="gloo")))
    atexit.register(_disconnect)


def _disconnect() -> None:
    """End the threads of the groups, which takes the last reference to each.

    One that frees a tensor while the interpreter is being torn down aborts the process.
    """
    _CONTROL.clear()
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        vars(sys).pop(name, None)  # An error that ended the process holds the network.
    gc.collect()  # Networks hold their group.
    distributed.destroy_process_group()
