"""The same work on many items, in processes that may die without ending the run."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from threading import Thread
from typing import Generic, TypeVar

from recon.data.forking import signals_held
from recon.signals import heeded, set_handlers

__all__ = ["map_isolated"]

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 16  # items that travel together
AHEAD = 4  # chunks under way for each process


def map_isolated(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    processes: int,
    lost: Callable[[Item], Result],
) -> Iterator[Result]:
    """Do work on every item; results come in the order of the items.

    Args:
        work: Must be picklable, as must items and results.
        items: Taken a few at a time.
        processes: How many; 0 does the work here, where nothing is isolated.
        lost: The result for an item at which its process died, such as a file whose decoder
            crashed or took all memory.
    """
    if processes == 0:
        yield from map(work, items)
        return
    crew, rest = _Crew(work, processes), iter(items)
    under_way: deque[tuple[list[Item], Future[list[Result]]]] = deque()
    try:
        while chunk := list(islice(rest, CHUNK)):
            under_way.append((chunk, crew.submit(chunk)))
            if len(under_way) == AHEAD * processes:
                yield from _finish(crew, *under_way.popleft(), lost)
        while under_way:
            yield from _finish(crew, *under_way.popleft(), lost)
    finally:
        crew.dismiss()


class _Crew(Generic[Item, Result]):
    """Processes that are replaced when one of them dies, since the others die with it."""

    def __init__(self, work: Callable[[Item], Result], processes: int) -> None:
        self._work, self._processes = work, processes
        self._pool = _start(processes)

    def submit(self, chunk: list[Item]) -> "Future[list[Result]]":
        """Hand out work."""
        try:
            return _submit(self._pool, partial(_each, self._work), chunk)
        except BrokenProcessPool:
            self.dismiss()
            self._pool = _start(self._processes)
            return _submit(self._pool, partial(_each, self._work), chunk)

    def alone(self, item: Item, lost: Callable[[Item], Result]) -> Result:
        """Do the work on one item in a process of its own."""
        with _start(1) as pool:
            try:
                return _submit(pool, self._work, item).result()
            except BrokenProcessPool:
                return lost(item)

    def dismiss(self) -> None:
        """End the processes after the chunk that each is at."""
        self._pool.shutdown(cancel_futures=True)


def _finish(
    crew: _Crew[Item, Result],
    chunk: list[Item],
    future: "Future[list[Result]]",
    lost: Callable[[Item], Result],
) -> list[Result]:
    """The results of a chunk; if a process died meanwhile, item by item, to find the culprit."""
    try:
        return future.result()
    except BrokenProcessPool:
        return [crew.alone(item, lost) for item in chunk]


def _start(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, initializer=_settle)


def _submit(
    pool: ProcessPoolExecutor, work: Callable[[Item], Result], item: Item
) -> "Future[Result]":
    with signals_held():  # This may begin the processes.
        return pool.submit(work, item)


def _each(work: Callable[[Item], Result], chunk: list[Item]) -> list[Result]:
    return [work(item) for item in chunk]


def _settle() -> None:
    """End at a signal without a word, and with the parent, however it ends."""
    set_handlers(dict.fromkeys(heeded(), signal.SIG_DFL))
    Thread(target=_follow_the_parent, daemon=True).start()


def _follow_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
