"""Files that appear whole under their name, or not at all."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recon.errors import UserError

__all__ = [
    "check_target",
    "check_writable",
    "exclusive",
    "partial_name",
    "publish",
    "replacing",
    "synchronise",
    "write_json",
]

LOCK = ".lock"


def partial_name(path: Path) -> Path:
    """Name beside the path that a file bears until it is complete."""
    return path.with_name(f"{path.name}.partial")


def publish(path: Path) -> None:
    """Give a file that was written and synchronised under its partial name its final one."""
    os.replace(partial_name(path), path)  # noqa: PTH105 - the atomic call, by its plain name
    if os.name == "posix":  # Elsewhere a folder cannot be opened, and renaming is synchronous.
        _synchronise_folder(path.parent)


def _synchronise_folder(folder: Path) -> None:
    """Force the new name onto the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write plain data atomically."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


@contextmanager
def exclusive(folder: Path, setting: str) -> Iterator[None]:
    """Keep other runs out of a folder; the lock goes with the process, however that ends.

    Raises:
        UserError: If another run is in it.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{setting} must be a folder of its own for each run, got {str(folder)!r}, where "
            f"another run is writing; wait for it or choose another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


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
