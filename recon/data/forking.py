"""Processes that are begun without a moment in which a signal finds them unprepared.

Ctrl-C and the SIGTERM of a batch system reach a whole group of processes. One that has just begun
and has set no answer of its own yet would end with a traceback; and one whose parent is stopped
while it begins it would be known to nobody, and be left behind.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["signals_held"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_held() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the end; to processes begun meanwhile they do nothing.

    Outside of the main thread, where Python handles no signals, none is held.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {s: signal.signal(s, lambda signum, _frame: came.append(signum)) for s in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)
