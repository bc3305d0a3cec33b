"""From a command line to an exit code. Imports no torch."""

import errno
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any, TextIO

from recon.errors import InterruptedRunError, UserError
from recon.gpus import select_gpus
from recon.settings import Settings, load

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
    config: ModuleType | Mapping[str, Any], argv: Sequence[str] | None, job: Job
) -> int:
    """Load the settings, choose the GPUs, and do a job.

    Args:
        config: The imported `Config` module.
        argv: Arguments without the program's name; None takes those of the process.
        job: Given the settings and the names that were asked for on this command line. It may
            import torch: the GPUs are chosen by then. It may return an exit code.

    Returns:
        The job's exit code, 0 if it returns none; 2 after an error that the user can put right,
        told in one line on stderr; 130 or 143 after Ctrl-C or SIGTERM.
    """
    _log_to_console()
    try:
        with _sigterm_as_error():
            settings, asked = load(config, list(sys.argv[1:] if argv is None else argv))
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
        return _refuse(f"{error.strerror}: {error.filename or 'while writing'}")
    return code or 0


@contextmanager
def _sigterm_as_error() -> Iterator[None]:
    """End at SIGTERM as at Ctrl-C, also before and after training, which takes care of itself."""

    def end(signum: int, _frame: FrameType | None) -> None:
        raise InterruptedRunError(signum)

    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may handle signals.
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse(message: str, code: int = USER_ERROR) -> int:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return code


class _Console(logging.StreamHandler[TextIO]):
    """Falls silent where nobody reads any more, as in `| head`: the run itself goes on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Take the place of a broken pipe, and leave all other errors to logging."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        else:
            super().handleError(record)


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
