"""Files that appear whole under their name, or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recon.errors import UserError

__all__ = ["check_target", "check_writable", "partial_name", "publish", "replacing", "synchronise"]


def partial_name(path: Path) -> Path:
    """Name beside the path that a file bears until it is complete."""
    return path.with_name(f"{path.name}.partial")


def publish(path: Path) -> None:
    """Give a file that was written and synchronised under its partial name its final one."""
    os.replace(partial_name(path), path)  # noqa: PTH105 - the atomic call, by its plain name


def synchronise(path: Path) -> None:
    """Force the contents of a file that is already written and closed onto the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file under its partial name; publish it on success, remove it on any exception.

    Args:
        path: Final name. Missing folders are made; an existing file is replaced at the end.

    Yields:
        The partial name, to be written and closed inside the ``with`` block.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    try:
        yield partial
        synchronise(partial)
        publish(path)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(folder: Path, setting: str) -> None:
    """Make a folder and prove that files can be written to it, before hours are spent.

    Raises:
        UserError: If they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{setting} must be in a folder that can be written to, got {str(folder)!r} "
            f"({error.strerror})"
        ) from None


def check_target(path: Path, setting: str) -> None:
    """Prove that a file can be written under this name, before hours are spent.

    Raises:
        UserError: If it cannot.
    """
    if path.is_dir():
        raise UserError(f"{setting} must be a file, got {str(path)!r}, which is a folder")
    check_writable(path.parent, setting)
