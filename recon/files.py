"""Files that appear whole under their name, or not at all."""

import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from filelock import FileLock, Timeout

from recon.errors import UserError

__all__ = [
    "check_target",
    "check_writable",
    "exclusive",
    "file_of",
    "partial_name",
    "publish",
    "replacing",
    "replacing_all",
    "spell_json",
    "synchronise",
    "synchronise_everything",
    "write_json",
]

LOCK = ".lock"


def file_of(path: str) -> str:
    """The file that an image is read from: `a.nii.gz` for its slice `a.nii.gz@057`."""
    file, _, index = path.rpartition("@")
    return file if index.isdecimal() and file.lower().endswith((".nii", ".nii.gz")) else path


def without_ending(path: str) -> str:
    """The path of an image without the ending of its file; that of a slice stays as it is."""
    if file_of(path) != path:  # Without the ending would go the number.
        return path
    ending = ".nii.gz" if path.lower().endswith(".nii.gz") else PurePath(path).suffix
    return path[: len(path) - len(ending)]


def partial_name(path: Path) -> Path:
    """Name beside the path that a file bears until it is complete."""
    return path.with_name(f"{path.name}.partial")


def publish(*paths: Path) -> None:
    """Give files that were written and synchronised under their partial names their final ones.

    Those that belong together are renamed one right after the other, before anything slow.
    """
    _rename(*paths)
    if os.name == "posix":  # Elsewhere a folder cannot be opened, and renaming is synchronous.
        for folder in {path.parent for path in paths}:
            _synchronise_folder(folder)


def _rename(*paths: Path) -> None:
    for path in paths:
        os.replace(partial_name(path), path)  # noqa: PTH105 - the atomic call, by its plain name


def _synchronise_folder(folder: Path) -> None:
    """Force the new name onto the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise  # Some network and shared folders know no such thing.
    finally:
        os.close(descriptor)


def synchronise(path: Path) -> None:
    """Force the contents of a file that is already written and closed onto the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def synchronise_everything() -> None:
    """Force all that was written so far onto the disk, at once."""
    if os.name == "posix":
        os.sync()


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Write a file under its partial name; publish it on success, remove it on any exception.

    Args:
        path: Final name. Missing folders are made; an existing file is replaced at the end.
        durable: Whether it is to be on the disk before it bears its name. Otherwise it is still
            the old file or the new one, whole, whenever the process ends, but for some seconds
            not if the machine fails; for many files that can be made again, with
            `synchronise_everything` after the last.

    Yields:
        The partial name, to be written and closed inside the ``with`` block.
    """
    with replacing_all(path, durable=durable) as (partial,):
        yield partial


@contextmanager
def replacing_all(*paths: Path, durable: bool = True) -> Iterator[list[Path]]:
    """Write files that belong together: all are whole on the disk before the first is published.

    Args:
        paths: As for `replacing`.
        durable: As for `replacing`.

    Yields:
        The partial names.
    """
    partials = [partial_name(path) for path in paths]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partials
        if durable:
            for partial in partials:
                synchronise(partial)
            publish(*paths)
        else:
            _rename(*paths)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write plain data atomically."""
    with replacing(path) as partial:
        partial.write_text(spell_json(record), encoding="utf-8")


def spell_json(record: Mapping[str, Any]) -> str:
    """Plain data as text; numbers that JSON does not know are the texts "inf" and "nan"."""
    return json.dumps(_spelled(record), indent=2, allow_nan=False) + "\n"


def _spelled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _spelled(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def exclusive(path: Path, setting: str) -> Iterator[None]:
    """Keep other runs out of a folder or a file; the lock goes with the process, however it ends.

    Raises:
        UserError: If another run is in it.
    """
    kind, name = ("folder", path / LOCK) if path.is_dir() else ("file", _beside(path, LOCK))
    lock = FileLock(name, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{setting} must be a {kind} of its own for each run, got {str(path)!r}, where "
            f"another run is writing; wait for it or choose another {kind}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _beside(path: Path, suffix: str) -> Path:
    """A hidden name beside a file, wherever links lead to it."""
    real = path.resolve()
    return real.with_name(f".{real.name}{suffix}")


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
    if os.name == "nt" and path.is_file():  # Where a file that is open cannot be replaced.
        try:
            path.open("rb+").close()
        except OSError as error:
            raise UserError(f"{setting} cannot be replaced: {error}; close it") from None
