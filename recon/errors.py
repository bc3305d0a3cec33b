"""The errors that a user is meant to read."""

import signal

__all__ = ["InterruptedRunError", "UserError", "printable", "quoted", "shortened"]

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
    return printable(text if len(text) <= most else f"{text[: most - 3]}...")


def printable(text: str) -> str:
    """Escape what would break a line or steer a terminal: names, and what files hold, are any."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
