"""The log of a training run: one row per epoch."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from recon.errors import UserError
from recon.files import replacing

__all__ = ["COLUMNS", "EpochRow", "announce", "as_columns", "read_log", "write_log"]


class EpochRow(NamedTuple):
    """What one epoch gave. NaN where there is no validation."""

    epoch: int  # from 1
    loss: float  # mean over images
    validation_loss: float
    validation_psnr: float  # dB
    validation_ssim: float
    learning_rate: float  # of the last step
    seconds: float
    images_per_second: float
    further: Mapping[str, float] = {}  # what this kind of network adds, by name


COLUMNS = (
    "Epoch", "Loss", "Validation Loss", "Validation PSNR", "Validation SSIM",
    "Learning Rate", "Seconds", "Images/s",
)  # fmt: skip


def write_log(path: Path, history: Sequence[EpochRow]) -> None:
    """Write the whole log as csv, atomically; a missing value is an empty field."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = as_columns(history)
        writer.writerow(columns)
        writer.writerows([_spell(value) for value in row] for row in _rows(history))


def read_log(path: Path) -> dict[str, list[float]]:
    """Read the log of a run, by column; an empty field is NaN.

    Raises:
        UserError: If it is missing or no log.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = [*COLUMNS, *(name for name in (rows or [{}])[0] if name not in COLUMNS)]
        return {name: [float(row[name] or "nan") for row in rows] for name in names}
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} must be the log of a training run ({error!r})") from None


def _spell(value: float) -> str:
    return "" if value != value else repr(value)


def as_columns(history: Sequence[EpochRow]) -> dict[str, list[float]]:
    """The log by column."""
    names = [*COLUMNS, *(history[0].further if history else ())]
    rows = list(_rows(history))
    return {name: [float(row[i]) for row in rows] for i, name in enumerate(names)}


def _rows(history: Sequence[EpochRow]) -> Iterator[list[float]]:
    """Every value of every row, in the order of the columns."""
    for row in history:
        yield [*list(row._asdict().values())[: len(COLUMNS)], *row.further.values()]


def announce(row: EpochRow, epochs: int) -> str:
    """The line of an epoch on the console."""
    line = f"Epoch {row.epoch}/{epochs}, Average Loss: {row.loss:.4f}"
    if row.validation_loss == row.validation_loss:
        line += (
            f", Validation Loss: {row.validation_loss:.4f}, PSNR: {row.validation_psnr:.2f} dB, "
            f"SSIM: {row.validation_ssim:.4f}"
        )
    line += "".join(f", {name}: {value:.5g}" for name, value in row.further.items())
    return f"{line}, {row.images_per_second:.1f} images/s"
