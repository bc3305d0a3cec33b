"""Signals end a run at the next step instead of in the middle of one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from recon.errors import ENDING_SIGNALS

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
    alone = threading.current_thread() is threading.main_thread()
    handlers = {signum: signal.getsignal(signum) for signum in ENDING_SIGNALS if alone}
    before = {s: handler for s, handler in handlers.items() if handler is not signal.SIG_IGN}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def note(signum: int, _frame: FrameType | None) -> None:
        watch.signum = signum
        restore()

    for signum in before:
        signal.signal(signum, note)
    try:
        yield watch
    finally:
        restore()
