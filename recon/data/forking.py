"""Processes that are begun without a moment in which a signal finds them unprepared.

Ctrl-C and the SIGTERM of a batch system reach a whole group of processes. One that has just begun
and has set no answer of its own yet would end with a traceback; and one whose parent is stopped
while it begins it would be known to nobody, and be left behind.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from recon.signals import heeded, set_handlers

__all__ = ["signals_held"]


@contextmanager
def signals_held() -> Iterator[None]:
    """Let the signals that this process heeds wait; to processes begun meanwhile they do nothing.

    Outside of the main thread, where Python handles no signals, none is held.
    """
    came: list[int] = []
    before = heeded()
    set_handlers(dict.fromkeys(before, lambda signum, _frame: came.append(signum)))
    try:
        yield
    finally:
        set_handlers(before)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)
