r"""Per-image records as csv and as an Excel workbook with a summary and the run's settings.

The csv is streamed while images are evaluated; the workbook is made from it at the end, row by row,
so that the two cannot differ and memory does not grow with the number of images.

Numbers are stored with all the digits that make a float64 exact. A cell cannot hold infinity or
NaN: an infinite PSNR is the text ``inf`` in both files, a NaN the text ``n/a`` in the workbook.
Characters that cannot be shown are spelt out in both files (see ``records.visible``). A path that
begins with ``=``, ``+``, ``-`` or ``@`` is a text cell in the workbook; in the csv it stays as it
is, since a guarding apostrophe would change the data for every program that reads it.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType

from openpyxl.cell import Cell
from openpyxl.worksheet.worksheet import Worksheet

from recon.evaluation.records import COLUMNS, METRICS, NUMBER_FORMATS, Record, visible
from recon.evaluation.sheets import (
    SHEET_ROWS,
    Value,
    fill_run,
    make_cell,
    make_header,
    open_book,
    put_number,
    put_text,
    save_book,
    set_columns,
)
from recon.evaluation.summary import Statistics, Summary
from recon.files import partial_name, publish, synchronise


class RecordWriter:
    """Streams records to a csv; ``finish`` adds the workbook and gives all their names.

    Until then the files bear the suffix ``.partial``. Leaving the ``with`` block by an exception,
    or without ``finish``, removes them and leaves files of an earlier run untouched.

    The columns are ``COLUMNS``, and ``NOISY`` after them where records hold a noisy input.

    Example:
        with RecordWriter(Path("m.csv"), Path("m.xlsx")) as writer:
            writer.write(records)
            writer.finish(tally.summary(), {"weights": "Final_Model_AE_MSE.pth"})
    """

    def __init__(self, csv_path: Path, xlsx_path: Path, columns: Sequence[str] = COLUMNS) -> None:
        self._paths, self._columns = [csv_path, xlsx_path], columns
        for path in self._paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._file = partial_name(csv_path).open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")

    def __enter__(self) -> "RecordWriter":
        try:
            self._writer.writerow(self._columns)
        except OSError:
            self._discard()
            raise
        return self

    def write(self, records: Iterable[Record]) -> None:
        """Append rows and flush them.

        Args:
            records: One per image, in the order in which the rows shall stand.
        """
        self._writer.writerows(_fields(record, self._columns) for record in records)
        self._file.flush()

    def finish(
        self, summary: Summary, run: Mapping[str, str], beside: tuple[Path, str] | None = None
    ) -> None:
        """Write the workbook and publish all files.

        Args:
            summary: What the sheet "Summary" shows.
            run: Names and values of the sheet "Run": settings, weights, versions.
            beside: A further file that belongs to them, and its text.
        """
        csv_path, xlsx_path = self._paths
        self._file.close()
        if beside is not None:
            self._paths.append(beside[0])
            partial_name(beside[0]).write_text(beside[1], encoding="utf-8")
        write_workbook(partial_name(csv_path), partial_name(xlsx_path), summary, run)
        for path in self._paths:
            synchronise(partial_name(path))
        publish(*self._paths)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._discard()

    def _discard(self) -> None:
        try:
            self._file.close()
        finally:
            for path in self._paths:
                partial_name(path).unlink(missing_ok=True)


def _fields(record: Record, columns: Sequence[str]) -> list[str]:
    fields = {name: repr(float(value)) for name, value in record.metrics().items()}
    fields |= {"Width": str(record.width), "Height": str(record.height)}
    return [visible(record.path), *(fields[name] for name in columns[1:])]


def write_workbook(
    csv_path: Path, xlsx_path: Path, summary: Summary, run: Mapping[str, str]
) -> None:
    """Make the three-sheet workbook from the rows of a csv.

    Args:
        csv_path: Records under their headings.
        xlsx_path: Workbook to write.
        summary: What the sheet "Summary" shows.
        run: What the sheet "Run" shows.
    """
    with open_book() as book:
        rows = _fill_metrics(book.create_sheet("Metrics"), csv_path)
        _fill_summary(book.create_sheet("Summary"), summary, rows)
        fill_run(book.create_sheet("Run"), run)
        save_book(book, xlsx_path)


def _fill_metrics(sheet: Worksheet, csv_path: Path) -> int:
    """Write the first rows of the csv; return how many rows the csv has."""
    with csv_path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        columns = next(rows)
        set_columns(sheet, [64, *[12] * (len(columns) - 1)], frozen="A2")
        cells = [make_cell(sheet, "", NUMBER_FORMATS.get(column, "General")) for column in columns]
        sheet.append(make_header(sheet, columns))
        written = 0
        for row in islice(rows, SHEET_ROWS):
            sheet.append(_refill(cells, row))
            written += 1
        sheet.auto_filter.ref = f"A1:{chr(64 + len(columns))}{written + 1}"
        return written + sum(1 for _ in rows)


def _refill(cells: list[Cell], row: list[str]) -> list[Cell]:
    """Put a row into cells made once: each is written out before the next row comes."""
    put_text(cells[0], row[0])
    for cell, text in zip(cells[1:], row[1:], strict=True):
        put_number(cell, text)
    return cells


def _fill_summary(sheet: Worksheet, summary: Summary, rows: int) -> None:
    set_columns(sheet, [64, *[12] * 6])
    headings = ["Metric", "Images", "Mean", "Std. dev.", "Median", "Minimum", "Maximum"]
    sheet.append(make_header(sheet, headings))
    for entry in summary.statistics:
        sheet.append(_statistics_row(sheet, entry))
    sheet.append([])
    for note in _notes(summary, rows):
        sheet.append([make_cell(sheet, value) for value in note])
    for title, listed in (("Worst by SSIM", summary.worst), ("Best by SSIM", summary.best)):
        sheet.append([])
        sheet.append(make_header(sheet, [title, *METRICS]))
        for record in listed:
            sheet.append(_record_row(sheet, record))


def _notes(summary: Summary, rows: int) -> Iterator[tuple[Value, ...]]:
    yield ("Images evaluated", rows)
    yield ("Identical reconstructions (PSNR infinite, left out of its row)", summary.identical)
    yield from summary.facts
    if rows > SHEET_ROWS:
        yield (f"The sheet Metrics holds the first {SHEET_ROWS} images; the csv holds all", rows)


def _statistics_row(sheet: Worksheet, entry: Statistics) -> list[Cell]:
    number_format = NUMBER_FORMATS.get(entry.metric, "General")
    numbers = [make_cell(sheet, value, number_format) for value in entry[2:]]
    return [make_cell(sheet, entry.metric), make_cell(sheet, entry.images), *numbers]


def _record_row(sheet: Worksheet, record: Record) -> list[Cell]:
    numbers = zip(METRICS, record[1:4], strict=True)
    return [
        make_cell(sheet, record.path),
        *(make_cell(sheet, value, NUMBER_FORMATS[column]) for column, value in numbers),
    ]
