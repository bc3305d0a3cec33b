"""SIGTERM and Ctrl-C end a run at the next step instead of in the middle of one."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Watch", "watch_signals"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Watch:
    """Remembers the signal that asked the run to end."""

    signum: int | None = None


@contextmanager
def watch_signals() -> Iterator[Watch]:
    """Note the first SIGINT or SIGTERM; a second one acts at once, as it would have before."""
    watch = Watch()
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def note(signum: int, _frame: FrameType | None) -> None:
        watch.signum = signum
        restore()

    for signum in SIGNALS:
        signal.signal(signum, note)
    try:
        yield watch
    finally:
        restore()
