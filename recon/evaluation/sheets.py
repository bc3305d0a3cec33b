"""Sheets and cells that every workbook is made of, row by row, so that memory does not grow.

Text is stored as text, never as a formula; what cannot be shown is spelt out by
``records.visible``. Numbers keep all the digits that make a float64 exact.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from openpyxl import Workbook
from openpyxl.cell import Cell, WriteOnlyCell
from openpyxl.cell.rich_text import CellRichText
from openpyxl.styles import Alignment, Font, PatternFill
from openpyxl.worksheet.worksheet import Worksheet
from openpyxl.writer.excel import ExcelWriter

from recon.evaluation.records import visible

__all__ = [
    "SHEET_ROWS",
    "Value",
    "fill_run",
    "make_cell",
    "make_header",
    "open_book",
    "put_number",
    "put_text",
    "save_book",
    "set_columns",
]

SHEET_ROWS = 1_048_575
"""Records that fit a sheet: 2**20 rows (ECMA-376), less the header."""

CELL_CHARACTERS = 32_767
"""Characters that fit a cell."""

BOLD = Font(bold=True)
SHADE = PatternFill("solid", fgColor="E8EDF3")
# Excel reads ``_x1024_`` in a text as the character U+1024, and tiles are often named by position.
_ESCAPE_LIKE = re.compile("(?<=_)(?=x[0-9A-Fa-f]{4}_)")

Value = str | int | float


@contextmanager
def open_book() -> Iterator[Workbook]:
    """A streaming workbook whose sheets are closed in order, also after an exception."""
    book = Workbook(write_only=True)
    try:
        yield book
    finally:
        for sheet in book:
            if not sheet.closed:
                with suppress(OSError, StopIteration):  # The latter where closing failed before.
                    sheet.close()


def save_book(book: Workbook, path: Path) -> None:
    """Write a workbook. Not ``Workbook.save``: it leaves the archive open when the disk is full."""
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        ExcelWriter(book, archive).save()


def fill_run(sheet: Worksheet, run: Mapping[str, str]) -> None:
    """Write names and values: settings, weights, versions."""
    set_columns(sheet, [32, 96], frozen="A2")
    sheet.append(make_header(sheet, ["Name", "Value"]))
    for name, value in run.items():
        described = make_cell(sheet, str(value))
        described.alignment = Alignment(wrap_text=True, vertical="top")
        sheet.append([make_cell(sheet, name), described])


def set_columns(sheet: Worksheet, widths: Sequence[int], *, frozen: str | None = None) -> None:
    """Set the widths of the first columns, in characters, and the first cell that scrolls."""
    sheet.freeze_panes = frozen
    for letter, width in zip("ABCDEFGHIJ", widths, strict=False):
        sheet.column_dimensions[letter].width = width


def make_header(sheet: Worksheet, titles: Sequence[str]) -> list[Cell]:
    """The cells of a row of headings."""
    cells = [make_cell(sheet, title) for title in titles]
    for index, cell in enumerate(cells):
        cell.font = BOLD
        cell.fill = SHADE
        cell.alignment = Alignment(horizontal="right" if index else "left")
    return cells


def make_cell(sheet: Worksheet, value: Value, number_format: str = "General") -> Cell:
    """A cell that holds text or a number."""
    cell = WriteOnlyCell(sheet)
    cell.number_format = number_format
    if isinstance(value, str):
        put_text(cell, value)
    else:
        cell.alignment = Alignment(horizontal="right")
        put_number(cell, repr(float(value)) if isinstance(value, float) else str(value))
    return cell


def put_text(cell: Cell, text: str) -> None:
    """Store text as text: never a formula, an error or an escape sequence."""
    text = visible(text)
    if len(text) > CELL_CHARACTERS:
        text = text[: CELL_CHARACTERS - 1] + "…"
    runs = _ESCAPE_LIKE.split(text)
    cell.value = text if len(runs) == 1 else CellRichText(*runs)
    cell.data_type = "s"


def put_number(cell: Cell, digits: str) -> None:
    """Store a number by its digits: openpyxl would round a float to 16 of them."""
    finite = math.isfinite(float(digits))
    cell.value = digits if finite else digits.replace("nan", "n/a")
    cell.data_type = "n" if finite else "s"
