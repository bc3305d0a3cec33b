"""Processes that are begun without a moment in which a signal finds them unprepared.

Ctrl-C and the SIGTERM of a batch system reach a whole group of processes. One that has just begun
and has set no answer of its own yet would end with a traceback; and one whose parent is stopped
while it begins it would be known to nobody, and be left behind.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from recon.errors import ENDING_SIGNALS

__all__ = ["answer_signals", "signals_held"]

Answer = Callable[[int, FrameType | None], object] | signal.Handlers


def answer_signals(answer: Answer) -> dict[signal.Signals, Any]:
    """Set what this process does at signals that ask a run to end; returns what it did before.

    Signals that are ignored, as under nohup or in the background, stay so.
    """
    heard = [s for s in ENDING_SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
    return {signum: signal.signal(signum, answer) for signum in heard}


@contextmanager
def signals_held() -> Iterator[None]:
    """Let signals that ask a run to end wait; to processes begun meanwhile they do nothing.

    Outside of the main thread, where Python handles no signals, none is held.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = answer_signals(lambda signum, _frame: came.append(signum))
    try:
        yield
    finally:
        for signum, answer in before.items():
            signal.signal(signum, answer)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)
