"""What a check of images found, as a workbook and as csv, a row for each image, and its record."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from openpyxl.cell import Cell
from openpyxl.worksheet.worksheet import Worksheet

from recon.evaluation.records import visible
from recon.evaluation.sheets import (
    SHEET_ROWS,
    Value,
    fill_run,
    make_cell,
    make_header,
    open_book,
    save_book,
    set_columns,
)
from recon.files import replacing_all, spell_json
from recon.provenance import flatten

__all__ = ["CHECK_COLUMNS", "CheckedImage", "write_image_check"]

WIDTHS = (64, 12, 8, 10, 10, 8, 8, 14, 48, 64)  # characters


class CheckedImage(NamedTuple):
    """A row; None is an empty cell.

    Attributes:
        path: As the user knows it.
        part: "training", "validation" or "test".
        format: Of the file.
        mode: Of its pixels.
        bits: Per sample.
        width: In pixels.
        height: In pixels.
        deviation: Standard deviation of the grey levels 0..255.
        findings: All of them, "; " between.
        other: Path of the image that this one repeats.
    """

    path: str
    part: str
    format: str | None
    mode: str | None
    bits: int | None
    width: int | None
    height: int | None
    deviation: float | None
    findings: str | None
    other: str | None


CHECK_COLUMNS = (
    "Image Path", "Set", "Format", "Mode", "Bit Depth", "Width", "Height", "Grey Std. Dev.",
    "Findings", "Duplicate Of",
)  # fmt: skip
"""Headings of the fields of a CheckedImage, in their order."""


def write_image_check(
    book_path: Path,
    rows: Iterable[CheckedImage],
    summary: Iterable[Sequence[Value]],
    record: Mapping[str, Any],
) -> None:
    """Write workbook, csv and json; all are whole before the first of them appears.

    Args:
        book_path: Of the workbook; the others stand beside it.
        rows: In the order in which they shall stand. A sheet holds the first 2**20 - 1, the csv
            all.
        summary: The rows of the sheet "Summary", the first its headings.
        record: Where they come from: settings and versions.
    """
    paths = [book_path.with_suffix(ending) for ending in (".csv", book_path.suffix, ".json")]
    with replacing_all(*paths) as (csv_part, book_part, json_part), open_book() as book:
        _write_rows(csv_part, book.create_sheet("Images"), rows)
        _fill_summary(book.create_sheet("Summary"), summary)
        fill_run(book.create_sheet("Run"), flatten(record))
        save_book(book, book_part)
        json_part.write_text(spell_json(record), encoding="utf-8")


def _write_rows(csv_path: Path, sheet: Worksheet, rows: Iterable[CheckedImage]) -> None:
    set_columns(sheet, WIDTHS, frozen="A2")
    sheet.append(make_header(sheet, CHECK_COLUMNS))
    written = 0
    with csv_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CHECK_COLUMNS)
        for number, row in zip(count(1), rows, strict=False):
            writer.writerow([visible(v) if isinstance(v, str) else v for v in row])
            if number <= SHEET_ROWS:
                sheet.append(_cells(sheet, row))
                written = number
    sheet.auto_filter.ref = f"A1:{chr(64 + len(CHECK_COLUMNS))}{written + 1}"


def _cells(sheet: Worksheet, row: CheckedImage) -> list[Cell | None]:
    # None is an empty cell: a text of no letters would count as one.
    return [
        None if value is None else make_cell(sheet, value, "0.0" if name == "deviation" else "0")
        for name, value in zip(CheckedImage._fields, row, strict=True)
    ]


def _fill_summary(sheet: Worksheet, summary: Iterable[Sequence[Value]]) -> None:
    set_columns(sheet, (48, 12, 12, 12))
    headings, *rest = summary
    sheet.append(make_header(sheet, [str(heading) for heading in headings]))
    for row in rest:
        sheet.append([make_cell(sheet, value) for value in row])
