"""The errors that a user is meant to read, and the signals that ask a run to end."""

import signal

__all__ = ["ENDING_SIGNALS", "InterruptedRunError", "UserError", "quoted", "shortened"]

# Ctrl-C, what batch systems send, and a terminal that was closed.
ENDING_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
QUOTED = 120  # letters of a value in an error


def quoted(value: object) -> str:
    """A value as an error spells it: in one line, cut short where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # A whole number of more digits than Python spells.
        return f"a value of type {type(value).__name__} that is too long to spell"
    return shortened(text)


def shortened(text: str, most: int = QUOTED) -> str:
    """A text of a file as an error quotes it: of at most so many letters, in one line."""
    text = text if len(text) <= most else f"{text[: most - 3]}..."
    return text if text.isprintable() else repr(text)[1:-1]


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
