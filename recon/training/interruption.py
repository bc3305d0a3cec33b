"""Signals end a run at the next step instead of in the middle of one."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from recon.signals import heeded, set_handlers

__all__ = ["Watch", "watch_signals"]


class Watch:
    """Remembers the signal that asked the run to end."""

    signum: int | None = None


@contextmanager
def watch_signals() -> Iterator[Watch]:
    """Note the first signal that asks a run to end; a second one acts as it would have before.

    Signals that were ignored stay so, as those of a job in the background. Outside of the main
    thread, where Python handles none, nothing is noted.
    """
    watch = Watch()
    before = heeded()

    def note(signum: int, _frame: FrameType | None) -> None:
        watch.signum = signum
        set_handlers(before)

    set_handlers(dict.fromkeys(before, note))
    try:
        yield watch
    finally:
        set_handlers(before)
