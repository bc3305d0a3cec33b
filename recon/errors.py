"""The errors that a user is meant to read, and the signals that ask a run to end."""

import signal

__all__ = ["ENDING_SIGNALS", "InterruptedRunError", "UserError"]

# Ctrl-C, what batch systems send, and a terminal that was closed.
ENDING_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class UserError(Exception):
    """Something that the user can put right.

    The message is one line: the name, the value, the rule, and what to do. Scripts print it on
    stderr without a traceback and exit with 2.
    """


class InterruptedRunError(BaseException):
    """A signal asked the run to end, and it has saved where it stands, if there was anything.

    Like KeyboardInterrupt no Exception: it may rise anywhere, and nothing that takes damaged files
    or failing extras in its stride may take it for one of these.

    Args:
        signum: The signal; a shell expects the exit code 128 + signum.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"ended by {signal.Signals(signum).name}")
        self.signum = signum
