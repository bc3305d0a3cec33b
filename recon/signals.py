"""The signals that ask a run to end, and what this process does at them. Imports no torch."""

import signal
import threading
from collections.abc import Callable, Mapping
from types import FrameType

__all__ = ["ENDING_SIGNALS", "Handler", "heeded", "set_handlers"]

Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None

# Ctrl-C, what batch systems send, and a terminal that was closed.
ENDING_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


def heeded() -> dict[signal.Signals, Handler]:
    """What this process does at those of the signals that it does not ignore.

    They are ignored under nohup or in the background, and shall stay so. Outside of the main
    thread, where Python handles no signals, there are none.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {signum: signal.getsignal(signum) for signum in ENDING_SIGNALS}
    return {s: handler for s, handler in handlers.items() if handler is not signal.SIG_IGN}


def set_handlers(handlers: Mapping[signal.Signals, Handler]) -> None:
    """Set what this process does at signals."""
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
