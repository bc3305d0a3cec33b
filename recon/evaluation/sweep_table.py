"""The trials of a sweep, as a workbook and as csv: a row for each trial."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openpyxl.utils import get_column_letter
from openpyxl.worksheet.worksheet import Worksheet

from recon.evaluation.records import visible
from recon.evaluation.sheets import (
    Value,
    fill_run,
    make_cell,
    make_header,
    open_book,
    save_book,
    set_columns,
)
from recon.files import replacing_all

__all__ = ["TrialRow", "write_trials"]

LEFT = ("Trial", "State", "Validation Loss", "Best Epoch")
RIGHT = ("Seconds", "Folder", "Note")
FORMATS = {"Validation Loss": "0.000000", "Seconds": "0.0"}


class TrialRow(NamedTuple):
    """One trial.

    Attributes:
        number: From 0.
        state: "complete", "pruned", "ended", "failed", "running" or "waiting".
        loss: Lowest validation loss over its epochs; None if no epoch was done.
        best_epoch: Of that loss, from 1.
        parameters: Settings that are swept, and their values in this trial.
        seconds: Spent in training.
        folder: Of its checkpoints and its log.
        note: Why it failed, or which trial it goes on with.
    """

    number: int
    state: str
    loss: float | None
    best_epoch: int | None
    parameters: Mapping[str, Any]
    seconds: float | None
    folder: str
    note: str


def write_trials(
    book_path: Path, rows: Sequence[TrialRow], names: Sequence[str], run: Mapping[str, str]
) -> None:
    """Write workbook and csv; either appears whole or not at all.

    Args:
        book_path: Of the workbook; the csv stands beside it.
        rows: In the order in which they shall stand.
        names: Settings that are swept, a column each.
        run: Names and values of the sheet "Run": settings and versions.
    """
    header = (*LEFT, *names, *RIGHT)
    table = [_values(row, names) for row in rows]
    with replacing_all(book_path, book_path.with_suffix(".csv")) as (book_part, csv_part):
        with csv_part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(table)
        with open_book() as book:
            _fill(book.create_sheet("Trials"), header, table)
            fill_run(book.create_sheet("Run"), run)
            save_book(book, book_part)


def _values(row: TrialRow, names: Sequence[str]) -> list[Value | None]:
    """A row as text and numbers; None is an empty cell."""
    return [
        *row[:4],
        *(_plain(row.parameters[name]) if name in row.parameters else None for name in names),
        row.seconds,
        visible(row.folder),
        visible(row.note) or None,
    ]


def _plain(value: Any) -> Value:
    """A number as it is; all else as text."""
    return value if type(value) in (int, float) else visible(str(value))


def _fill(sheet: Worksheet, header: Sequence[str], table: list[list[Value | None]]) -> None:
    set_columns(sheet, [8, 10, 16, *[14] * (len(header) - len(LEFT) - 1)], frozen="A2")
    sheet.append(make_header(sheet, header))
    for row in table:
        cells = zip(header, row, strict=True)
        sheet.append(
            [v if v is None else make_cell(sheet, v, FORMATS.get(n, "General")) for n, v in cells]
        )
    sheet.auto_filter.ref = f"A1:{get_column_letter(len(header))}{len(table) + 1}"
