"""Signals end a program, and at a moment when they can. Imports no torch.

A handler raises in the middle of whatever runs. Of two kinds of code that ends nothing or breaks
something: a module that is being imported stays half made, and modules written in C swallow what
is raised while they import others; and what is raised in a finaliser, which Python calls at any
time, is printed and passed over. There the signal is sent again, a moment later.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from recon.errors import InterruptedRunError
from recon.signals import heeded, set_handlers

__all__ = ["signals_as_errors"]

PAUSE = 0.05  # seconds until a signal is sent again
IMPORTER = "importlib._bootstrap"


@contextmanager
def signals_as_errors() -> Iterator[None]:
    """Raise `InterruptedRunError` at a signal, and `KeyboardInterrupt` at Ctrl-C.

    Signals that are ignored, as under nohup or in the background, stay so. Training takes care of
    signals itself, by handlers of its own, while it lasts. Outside of the main thread, where Python
    handles no signals, nothing is done.
    """
    before = heeded()
    if not before:
        yield
        return
    outermost = sys._getframe(2)  # Behind this one and that of contextlib: whoever enters.

    def end(signum: int, frame: FrameType | None) -> None:
        if _imports(frame, outermost):
            _send_again(signum)
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise InterruptedRunError(signum)

    set_handlers(dict.fromkeys(before, end))
    try:
        with _nothing_passed_over():
            yield
    finally:
        set_handlers(before)


def _imports(frame: FrameType | None, outermost: FrameType) -> bool:
    """Whether a module is being imported, by the innermost of the calls below another one."""
    while frame is not None and frame is not outermost:
        if frame.f_globals.get("__name__") == IMPORTER:
            return True
        frame = frame.f_back
    return False


@contextmanager
def _nothing_passed_over() -> Iterator[None]:
    """Send a signal again whose error Python would print and pass over."""
    before = sys.unraisablehook

    def pass_over(unraisable: Any) -> None:
        error = unraisable.exc_value
        if isinstance(error, InterruptedRunError):
            _send_again(error.signum)
        elif isinstance(error, KeyboardInterrupt):
            _send_again(signal.SIGINT)
        else:
            before(unraisable)

    sys.unraisablehook = pass_over
    try:
        yield
    finally:
        sys.unraisablehook = before


def _send_again(signum: int) -> None:
    timer = threading.Timer(PAUSE, _send, [signum])
    timer.daemon = True
    timer.start()


def _send(signum: int) -> None:
    """To the main thread, which it wakes; where that cannot be chosen, to the program."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signum)
    else:
        signal.raise_signal(signum)
