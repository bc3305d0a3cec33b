"""From a command line to an exit code. Imports no torch."""

import errno
import io
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

from recon.errors import InterruptedRunError, UserError, printable
from recon.gpus import select_gpus
from recon.settings import Settings, load
from recon.stopping import signals_as_errors

__all__ = ["run_command"]

Job = Callable[[Settings, frozenset[str]], int | None]

USER_ERROR = 2
# The machine, not the program, is in the way: no traceback helps.
ENVIRONMENT = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EIO,
}


def run_command(
    config: ModuleType | Mapping[str, Any],
    argv: Sequence[str] | None,
    job: Job,
    about: str | None = None,
) -> int:
    """Load the settings, choose the GPUs, and do a job.

    Args:
        config: The imported `Config` module.
        argv: Arguments without the program's name; None takes those of the process.
        job: Given the settings and the names that were asked for on this command line. It may
            import torch: the GPUs are chosen by then. It may return an exit code.
        about: What the program does, for `--help`: its docstring.

    Returns:
        The job's exit code, 0 if it returns none; 2 after an error that the user can put right,
        told in one line on stderr; 130 or 143 after Ctrl-C or SIGTERM.
    """
    _open_streams()
    _log_to_console()
    try:
        with signals_as_errors():
            settings, asked = load(config, list(sys.argv[1:] if argv is None else argv), about)
            select_gpus(settings.GPUs)
            code = job(settings, asked)
    except UserError as error:
        return _refuse(str(error))
    except InterruptedRunError as error:
        return _refuse(str(error), 128 + error.signum)
    except KeyboardInterrupt:
        return _refuse("ended by Ctrl-C", 130)
    except ModuleNotFoundError as error:  # from a worker process, below its traceback
        return _refuse(str(error).splitlines()[-1].removeprefix("ModuleNotFoundError: "))
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            raise
        return _refuse(f"{error.strerror}: {error.filename2 or error.filename or 'while writing'}")
    return code or 0


def _refuse(message: str, code: int = USER_ERROR) -> int:
    with suppress(OSError):  # Where nothing can be told, the code tells it.
        sys.stderr.write(f"error: {printable(' '.join(message.split()))}\n")
    return code


class _Console(logging.StreamHandler):  # type: ignore[type-arg]  # no arguments in Python 3.10
    """Falls silent where nothing can be written any more: the run itself goes on.

    As in `| head`, and where the log goes to a full disk.
    """

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Take the place of what cannot be written to; leave all other errors to logging."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        if not isinstance(error, BrokenPipeError):
            with suppress(OSError):
                sys.stderr.write(f"warning: the log ends here: {error.strerror}: stdout\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def _open_streams() -> None:
    """Put nothing in the place of standard streams that the process began without.

    Otherwise the next file that is opened takes their number, and what a library says lands in it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            _occupy(number)
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: PTH123, SIM115


def _occupy(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor != number:
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.set_inheritable(number, True)


def _log_to_console() -> None:
    """Messages of this program go to the console as they are."""
    logger = logging.getLogger("recon")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # Names of files may be any bytes.
    handler = _Console(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
