"""From a dataset of image files to batches of float images on the device.

A dataset gives (C, H, W) tensors: uint8, or float32 in [0, 1] for files deeper than 8 bit. It
raises `ValueError` or `OSError` for a file that it cannot read; such a file is left out of its
batch and reported, never replaced.
"""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from threading import Timer
from types import FrameType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from torch.utils.data._utils import signal_handling

from recon.data.forking import signals_held
from recon.signals import heeded, set_handlers

__all__ = [
    "Batch",
    "Batches",
    "Failure",
    "ImageDataset",
    "Loader",
    "make_loader",
    "to_unit_range",
    "workers_fork",
]

logger = logging.getLogger("recon")

Indices = NDArray[np.int64]

GRACE = 600  # seconds that a worker lives on after SIGTERM
PATIENCE = 1  # seconds in which a worker may finish what it reads, once nobody waits for it


class ImageDataset(Protocol):
    """What the engine needs of a dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


class Failure(NamedTuple):
    """An image that could not be read."""

    image: int  # its index in the dataset
    reason: str


class Batch(NamedTuple):
    """Images that could be read, their indices in the dataset, and those that could not."""

    images: Tensor  # (N, C, H, W), uint8 or float32 in [0, 1]
    indices: Tensor  # (N,) int64
    places: Tensor  # (N,) int64, in the batch as it was asked for
    failures: list[Failure]


class Batches(Sampler[list[int]]):
    """Index batches of one epoch, in sizes that differ by at most one.

    Equal sizes leave no last batch of a single image, on which batch normalisation fails, and
    give every image the same weight. What an epoch holds depends on nothing but its number and
    the arguments.

    Args:
        count: Images in the dataset.
        batch_size: Most images in a batch.
        order: Gives the indices of an epoch; None is the order of the dataset.
        share: From a batch to the part of it that this process takes; None is the whole.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        order: Callable[[int], Indices] | None = None,
        share: Callable[[list[int]], list[int]] | None = None,
    ) -> None:
        self.count = count
        self.share = share or (lambda batch: batch)
        self.order = order or (lambda _epoch: np.arange(count))
        self.batches = max(1, -(-len(self.order(0)) // batch_size))
        self.epoch = 0
        self.start = 0  # batches of the epoch that are done already

    def __len__(self) -> int:
        return self.batches - self.start

    def __iter__(self) -> Iterator[list[int]]:
        for indices in np.array_split(self.order(self.epoch), self.batches)[self.start :]:
            yield self.share(indices.tolist())


class _Reader(Dataset[tuple[int, Tensor | str]]):
    """Reads images of a dataset and turns a failure into its reason."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            return index, self.dataset[index]
        except (ValueError, OSError) as error:
            return index, str(error)


def _collate(samples: list[tuple[int, Tensor | str]]) -> Batch:
    read = [(i, n, x) for n, (i, x) in enumerate(samples) if isinstance(x, Tensor)]
    failures = [Failure(index, reason) for index, reason in samples if isinstance(reason, str)]
    images = [image for *_, image in read]
    if any(image.dtype != torch.uint8 for image in images):
        images = [to_unit_range(image) for image in images]
    stacked = torch.stack(images) if images else torch.empty(0)
    indices, places = torch.tensor([pair[:2] for pair in read], dtype=torch.int64).view(-1, 2).T
    batch = Batch(stacked, indices, places, failures)
    if get_worker_info() is not None:
        # Where there is no room for that, handing over would fail unseen, and the run wait for it.
        for tensor in batch[:3]:
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    return batch


class Loader(DataLoader[Batch]):
    """Batches, read in processes that live until its end; used in `with`, or ended by hand."""

    def __iter__(self) -> Any:
        if self._iterator is not None:  # The processes run already.
            return super().__iter__()
        with signals_held():
            return super().__iter__()

    def start(self) -> None:
        """Start the processes now, while there is little memory that they would share.

        What this process changes after the fork is copied page by page; what they read ahead
        fills the cache.
        """
        if self.num_workers > 0:
            iter(self)

    def end(self) -> None:
        """End the processes now, rather than when Python happens to take the loader apart.

        At the end of the program they would be sent SIGTERM, which they outlive for a while.
        """
        iterator: Any = self._iterator  # torch offers no other way to its processes
        if iterator is None:
            return
        last = Timer(PATIENCE, _kill, [iterator._workers])
        try:
            self._iterator = None
            _forget(iterator)
            last.start()
            iterator._shutdown_workers()
        finally:  # At Ctrl-C at once.
            last.cancel()
            _kill(iterator._workers)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _forget(iterator: Any) -> None:
    """Let torch take the end of an iterator's processes for no accident from here on."""
    if iterator._worker_pids_set:
        signal_handling._remove_worker_pids(id(iterator))  # type: ignore[attr-defined]
        iterator._worker_pids_set = False


def _kill(workers: list[Any]) -> None:
    for worker in workers:
        worker.kill()


def workers_fork() -> bool:
    """Whether worker processes begin as copies of this one, and share its memory and files."""
    return sys.platform == "linux"  # Elsewhere forking is missing, or is not safe.


def make_loader(
    dataset: ImageDataset, batches: Batches, *, num_workers: int, pin_memory: bool
) -> Loader:
    """Read batches in worker processes that live as long as the loader."""
    _compare_with_cores(num_workers)
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    return Loader(
        _Reader(dataset),  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        # Python 3.14 would start them afresh, and a cache in memory is shared by forking alone.
        multiprocessing_context="fork" if num_workers and workers_fork() else None,
        worker_init_fn=_leave_signals_to_the_parent,
        # Its own, so that starting an epoch draws nothing from the run's random state.
        generator=torch.Generator(),
    )


@lru_cache
def _compare_with_cores(num_workers: int) -> None:
    """Say once, and in one line, what torch says of every loader twice and beside its code."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if num_workers > cores:
        logger.warning(
            "num_workers = %d, but this process has %d core%s: lower it if reading is slow",
            *(num_workers, cores, "s" if cores > 1 else ""),
        )


def why_unreadable(loader: Loader) -> str | None:
    """Why the first image of a loader's dataset cannot be read, if none of them can."""
    dataset: Any = loader.dataset
    reasons = (dataset[index][1] for index in range(len(dataset)))
    first = next(reasons, None)
    if not isinstance(first, str) or any(isinstance(result, Tensor) for result in reasons):
        return None
    return first


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Outlive Ctrl-C and, for a while, other signals that are sent to all processes of a run.

    The parent finishes its step and saves; the death of a worker would end it in the middle.
    """
    set_handlers(dict.fromkeys(heeded(), _live_on_for_a_while))
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _live_on_for_a_while(_signum: int, _frame: FrameType | None) -> None:
    signal.alarm(GRACE)


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]; float images are in [0, 1] already."""
    return images.float() / 255 if images.dtype == torch.uint8 else images
