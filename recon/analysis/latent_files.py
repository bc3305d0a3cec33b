"""Latents on disk: rows as they are computed, and the table that they become at the end.

A row belongs to an image, and is (F,), (C, h, w) or (h, w); float32, or int64 for code numbers.
Tables are written in blocks, so that memory does not grow with the number of images.
"""

import csv
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recon.errors import UserError
from recon.files import write_json

__all__ = ["LatentStore", "Part", "Progress", "Table", "check_format", "write_table"]

logger = logging.getLogger("recon")

ROWS, PROGRESS = "rows.bin", "progress.json"
KINDS = ("<f4", "<i8")  # of the numbers in a row
INTERVAL = 5.0  # seconds of work that a power cut may cost
BLOCK = 1 << 20  # bytes of numbers that are spelt out at a time
GROUP = 1 << 26  # bytes in a row group of a Parquet file: small ones swell its index
PATH = "File_Path"


class Table(NamedTuple):
    """Rows of all images."""

    images: NDArray[np.int64]  # (N,), rising
    latents: NDArray[Any]  # (N, ...), perhaps of a file
    name_of: Callable[[int], str]  # from the index of an image to its path

    @property
    def numbers(self) -> int:
        """How many each row holds."""
        return int(np.prod(self.latents.shape[1:]))

    def columns(self) -> list[str]:
        """Headings as DeepCluster++ gives them."""
        return [*(f"Feature_{place}" for place in range(1, self.numbers + 1)), PATH]

    def blocks(self, size: int) -> Iterator[tuple[NDArray[Any], list[str]]]:
        """Rows, (n, F), and paths, in blocks of at most so many bytes, or of one row."""
        count = max(1, size // (self.numbers * self.latents.itemsize))
        for start in range(0, len(self.images), count):
            part = slice(start, start + count)
            latents = np.ascontiguousarray(self.latents[part])
            # (n, C, h, w) to (n, C * h * w)
            yield latents.reshape(len(latents), -1), list(map(self.name_of, self.images[part]))


class Part(NamedTuple):
    """What one batch gave."""

    images: list[int]  # indices of those that could be read, rising
    latents: NDArray[Any] | None  # (N, ...); None where none could be read
    unreadable: list[str]  # reasons


class Progress(NamedTuple):
    """How far an export has come."""

    images: int = 0  # done, from the first on
    rows: int = 0
    unreadable: tuple[str, ...] = ()
    row: tuple[str, tuple[int, ...]] | None = None  # type and shape, once there is one

    @property
    def record(self) -> np.dtype[Any]:
        """A row as it lies in the file, behind the index of its image."""
        if self.row is None:
            raise ValueError("rows must hold at least one row, got none")
        return np.dtype([("image", "<i8"), ("latent", *self.row)])


class LatentStore:
    """A folder of rows that grows, and that a later run goes on with.

    Args:
        folder: Which exists.
        belongs: Plain data that says what is computed: with another record it starts anew.
    """

    def __init__(self, folder: Path, belongs: Mapping[str, Any]) -> None:
        self.folder = folder
        self.belongs = json.loads(json.dumps(belongs))
        self.progress = self._find()
        rows = folder / ROWS
        rows.touch()
        os.truncate(rows, self._size(self.progress))
        self._file = rows.open("ab")
        self._kept = time.monotonic()

    def __enter__(self) -> "LatentStore":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            self._keep()

    def add(self, part: Part, done: int) -> None:
        """Append the rows of a batch.

        Args:
            part: The batch.
            done: Images that are done with it.
        """
        before = self.progress
        now = before._replace(images=done, unreadable=(*before.unreadable, *part.unreadable))
        if part.latents is not None:
            latents = part.latents
            row = before.row or (latents.dtype.newbyteorder("<").str, latents.shape[1:])
            now = now._replace(rows=before.rows + len(latents), row=row)
            records = np.empty(len(latents), now.record)
            records["image"], records["latent"] = part.images, latents
            self._file.write(records.tobytes())
        self.progress = now  # at once, whenever a signal comes
        if time.monotonic() - self._kept > INTERVAL:
            self._keep()

    def table(self, name_of: Callable[[int], str]) -> Table:
        """All rows.

        Raises:
            ValueError: If there is none.
        """
        record = self.progress.record
        self._file.flush()
        records = np.memmap(self.folder / ROWS, record, "r", shape=(self.progress.rows,))
        return Table(records["image"], records["latent"], name_of)

    def _find(self) -> Progress:
        """How far an earlier run came with the same."""
        path = self.folder / PROGRESS
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            found = _progress_of(record)
            is_whole = (self.folder / ROWS).stat().st_size >= self._size(found)
        except FileNotFoundError:
            return Progress()
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            logger.warning("Starting anew: %s is damaged (%s)", path, error)
            return Progress()
        if not is_whole or record.get("belongs") != self.belongs:
            logger.info("Starting anew: the rows in %s are of another model or images", self.folder)
            return Progress()
        logger.info("Going on after %d images, whose rows are in %s", found.images, self.folder)
        return found

    @staticmethod
    def _size(progress: Progress) -> int:
        return progress.rows * progress.record.itemsize if progress.rows else 0

    def _keep(self) -> None:
        """Force the rows onto the disk, then the record that counts them."""
        self._file.flush()
        os.fsync(self._file.fileno())
        write_json(self.folder / PROGRESS, {"belongs": self.belongs, **self.progress._asdict()})
        self._kept = time.monotonic()


def _progress_of(record: Mapping[str, Any]) -> Progress:
    """Read back what a store has kept."""
    images, rows, unreadable = record["images"], record["rows"], record["unreadable"]
    row = record["row"] and (record["row"][0], tuple(record["row"][1]))
    if row and not (row[0] in KINDS and all(type(edge) is int and edge > 0 for edge in row[1])):
        raise ValueError(f"rows must be of {' or '.join(KINDS)}, got {row}")
    if not (type(images) is type(rows) is int and 0 <= rows <= images and (row or not rows)):
        raise ValueError(f"rows must be 0 to the number of images, got {rows} of {images}")
    if not (isinstance(unreadable, list) and all(isinstance(text, str) for text in unreadable)):
        raise ValueError(f"unreadable must be reasons, got {unreadable}")
    return Progress(images, rows, tuple(unreadable), row or None)


def check_format(path: Path) -> None:
    """Refuse a format that cannot be written here, before hours are spent.

    Raises:
        UserError: If its package is missing.
    """
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise UserError(
                f"latents_file must end in .csv or .npz where pyarrow is not installed, got "
                f"{str(path)!r}; pip install pyarrow"
            ) from None


def write_table(path: Path, suffix: str, table: Table) -> None:
    """Write a table.

    A csv holds `Feature_1` and so on, row by row of each map where maps are whole, and
    `File_Path`. So does Parquet, except that maps are lists in one column `Features`. An npz holds
    `features`, or `codes` where they are code numbers, in their shape, and `file_path`.

    Args:
        path: Of the file.
        suffix: ".csv", ".npz" or ".parquet".
        table: Of at least one row.
    """
    WRITERS[suffix](path, table)


def _write_csv(path: Path, table: Table) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table.columns())
        for rows, names in table.blocks(BLOCK):
            spelt = rows.astype(str).tolist()  # the fewest digits that give the same number again
            writer.writerows([*row, name] for row, name in zip(spelt, names, strict=True))


def _write_npz(path: Path, table: Table) -> None:
    key = "features" if np.issubdtype(table.latents.dtype, np.floating) else "codes"
    width = max(len(table.name_of(image)) for image in table.images)
    with path.open("wb") as file, tempfile.TemporaryFile(dir=path.parent) as scratch:
        for image in table.images:  # Written, not mapped: a full disk would end the process.
            scratch.write(np.array(table.name_of(image), f"<U{width}").tobytes())
        scratch.flush()
        names = np.memmap(scratch, f"<U{width}", "r", shape=(len(table.images),))
        arrays: dict[str, Any] = {key: table.latents, "file_path": names}
        np.savez(file, **arrays)


def _write_parquet(path: Path, table: Table) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    number = pa.from_numpy_dtype(table.latents.dtype)
    is_flat = table.latents.ndim == 2
    kinds = [number] * table.numbers if is_flat else [pa.list_(number, table.numbers)]
    headings = table.columns()[:-1] if is_flat else ["Features"]
    schema = pa.schema([*zip(headings, kinds, strict=True), (PATH, pa.string())])
    with ParquetWriter(path, schema) as writer:
        for rows, names in table.blocks(GROUP):
            if is_flat:
                arrays = [pa.array(np.ascontiguousarray(column)) for column in rows.T]
            else:
                arrays = [pa.FixedSizeListArray.from_arrays(rows.ravel(), table.numbers)]
            paths = pa.array(names, pa.string())
            writer.write_batch(pa.RecordBatch.from_arrays([*arrays, paths], schema=schema))


WRITERS: dict[str, Callable[[Path, Table], None]] = {
    ".csv": _write_csv,
    ".npz": _write_npz,
    ".parquet": _write_parquet,
}
