import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest
from openpyxl import load_workbook
from openpyxl.worksheet._write_only import WriteOnlyWorksheet

from recon.evaluation import workbook
from recon.evaluation.records import COLUMNS, Record, visible
from recon.evaluation.summary import Summary, Tally
from recon.evaluation.workbook import RecordWriter

INF, NAN = float("inf"), float("nan")
ODD_NAMES = [
    "=1+1.png",
    "+a.png",
    "-a.png",
    "@a.png",
    "#N/A",
    "'quoted'.png",
    'comma, "quote".png',
    "ünï 好.png",
    " spaces .png",
    "slide_x1024_y2048.png",
    "_x0041_",
    "007",
    "TRUE",
    "back\\slash.png",
]


def records_for(names: list[str]) -> list[Record]:
    rng = np.random.default_rng(0)
    return [
        Record(name, float(rng.random()) / 3, float(rng.random()) * 50, float(rng.random()), 64, 48)
        for name in names
    ]


def written(
    folder: Path, records: list[Record], run: dict[str, str] | None = None
) -> tuple[Path, Path]:
    paths = folder / "metrics.csv", folder / "metrics.xlsx"
    tally = Tally()
    with RecordWriter(*paths) as writer:
        for start in range(0, len(records), 4):
            writer.write(iter(records[start : start + 4]))
            tally.add(records[start : start + 4])
        writer.finish(tally.summary(), run or {})
    return paths


def read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"Image Path": str}, keep_default_na=False)


def test_csv_and_workbook_hold_the_rows_at_full_precision(tmp_path: Path) -> None:
    records = records_for([f"a/{place}.png" for place in range(50)])
    csv_path, xlsx_path = written(tmp_path, records)
    for table in (read_csv(csv_path), pd.read_excel(xlsx_path, sheet_name="Metrics")):
        assert tuple(table.columns) == COLUMNS
        assert [Record(*row) for row in table.itertuples(index=False)] == records


def test_only_the_two_final_names_remain(tmp_path: Path) -> None:
    written(tmp_path / "new" / "folder", records_for(["a"]))
    names = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert names == ["metrics.csv", "metrics.xlsx"]


def test_no_images_at_all_still_make_two_files(tmp_path: Path) -> None:
    csv_path, xlsx_path = written(tmp_path, [])
    assert csv_path.read_text(encoding="utf-8") == ",".join(COLUMNS) + "\n"
    assert load_workbook(xlsx_path).sheetnames == ["Metrics", "Summary", "Run"]


def test_odd_names_are_text_and_read_back_as_they_were(tmp_path: Path) -> None:
    csv_path, xlsx_path = written(tmp_path, records_for(ODD_NAMES))
    assert read_csv(csv_path)["Image Path"].tolist() == ODD_NAMES
    cells = [row[0] for row in load_workbook(xlsx_path)["Metrics"].iter_rows(min_row=2)]
    assert [cell.value for cell in cells] == ODD_NAMES
    assert {cell.data_type for cell in cells} == {"s"}


def test_odd_names_are_text_in_the_summary_and_the_run_too(tmp_path: Path) -> None:
    _, xlsx_path = written(tmp_path, records_for(["=1+1"]), {"=name": "=2+2", "long": "x" * 40000})
    book = load_workbook(xlsx_path)
    cells = [cell for sheet in book for row in sheet.iter_rows() for cell in row]
    assert {"=1+1", "=name", "=2+2"} <= {cell.value for cell in cells}
    assert not any(cell.data_type == "f" for cell in cells)
    assert len(str(book["Run"]["B3"].value)) == 32767


def test_no_text_node_looks_like_an_escape_sequence_to_excel(tmp_path: Path) -> None:
    _, xlsx_path = written(tmp_path, records_for(["slide_x1024_y2048.png"]))
    with ZipFile(xlsx_path) as archive:
        sheet = archive.read("xl/worksheets/sheet1.xml").decode()
    assert "_x1024_" not in sheet
    assert "x1024_y2048.png" in sheet


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb.png", "a\\nb.png"),
        ("a\r\nb", "a\\r\\nb"),
        ("bell\x07", "bell\\x07"),
        ("latin1-\udce9.png", "latin1-\\udce9.png"),
        ("\ufffe", "\\ufffe"),
        ("line\u2028end", "line\\u2028end"),
    ],
)
def test_what_cannot_be_shown_is_spelt_out(name: str, shown: str, tmp_path: Path) -> None:
    csv_path, xlsx_path = written(tmp_path, records_for([name, "next"]), {name: name})
    assert visible(name) == shown
    assert len(csv_path.read_text(encoding="utf-8").splitlines()) == 3
    assert read_csv(csv_path)["Image Path"].tolist() == [shown, "next"]
    book = load_workbook(xlsx_path)
    assert [book["Metrics"][place].value for place in ("A2", "A3")] == [shown, "next"]
    assert [book["Run"][place].value for place in ("A2", "B2")] == [shown, shown]


def test_infinity_is_the_text_inf_and_nan_is_not_a_number_anywhere(tmp_path: Path) -> None:
    records = [Record("a", 0.0, INF, 1.0, 8, 8), Record("b", NAN, NAN, NAN, 8, 8)]
    csv_path, xlsx_path = written(tmp_path, records)
    lines = csv_path.read_text(encoding="utf-8").splitlines()
    assert lines[1:] == ["a,0.0,inf,1.0,8,8", "b,nan,nan,nan,8,8"]
    sheet = load_workbook(xlsx_path)["Metrics"]
    assert (sheet["C2"].value, sheet["B3"].value) == ("inf", "n/a")
    psnr = pd.read_excel(xlsx_path)["PSNR"].astype(float)
    assert math.isinf(psnr[0])
    assert math.isnan(psnr[1])


def test_extreme_values_stay_numbers(tmp_path: Path) -> None:
    values = [5e-324, 1.2345678901234567e150, 0.1 + 0.2, -1.0, 1e-7]
    records = [Record(str(place), value, value, value, 8, 8) for place, value in enumerate(values)]
    _, xlsx_path = written(tmp_path, records)
    assert pd.read_excel(xlsx_path)["MSE"].tolist() == values


def test_numpy_scalars_are_written_as_plain_numbers(tmp_path: Path) -> None:
    row = Record("a", np.float64(0.1), np.float32(0.5), np.float64(0.2), 8, 8)
    csv_path, _ = written(tmp_path, [row])
    assert csv_path.read_text(encoding="utf-8").splitlines()[1] == "a,0.1,0.5,0.2,8,8"


def test_the_metrics_sheet_is_ready_to_read(tmp_path: Path) -> None:
    _, xlsx_path = written(tmp_path, records_for(["a", "b"]))
    sheet = load_workbook(xlsx_path)["Metrics"]
    assert all(cell.font.bold for cell in sheet[1])
    assert sheet.freeze_panes == "A2"
    assert sheet.auto_filter.ref == "A1:F3"
    assert [cell.number_format for cell in sheet[2]] == [
        "General",
        "0.000000",
        "0.00",
        "0.0000",
        "0",
        "0",
    ]
    assert sheet.column_dimensions["A"].width > 40
    assert sheet.column_dimensions["B"].width >= 10


def test_the_summary_sheet_states_statistics_and_the_extreme_tiles(tmp_path: Path) -> None:
    records = [Record(f"{k}.png", k / 100, 30.0 - k, 1 - k / 20, 8, 8) for k in range(1, 12)]
    records.append(Record("same.png", 0.0, INF, 1.0, 8, 8))
    _, xlsx_path = written(tmp_path, records)
    sheet = load_workbook(xlsx_path)["Summary"]
    rows = {row[0].value: row for row in sheet.iter_rows() if row[0].value}
    column = pd.Series([record.mse for record in records])
    expected = [12, column.mean(), column.std(), column.median(), column.min(), column.max()]
    np.testing.assert_allclose([cell.value for cell in rows["MSE"][1:7]], expected)
    assert [rows[metric][2].number_format for metric in ("MSE", "PSNR", "SSIM")] == [
        "0.000000",
        "0.00",
        "0.0000",
    ]
    assert rows["PSNR"][1].value == 11
    assert rows["Images evaluated"][1].value == 12
    identical = next(row for name, row in rows.items() if name.startswith("Identical"))
    assert identical[1].value == 1
    names = [row[0].value for row in sheet.iter_rows()]
    worst, best = names.index("Worst by SSIM"), names.index("Best by SSIM")
    assert names[worst + 1 : worst + 6] == [f"{k}.png" for k in (11, 10, 9, 8, 7)]
    assert names[best + 1 : best + 6] == ["same.png", "1.png", "2.png", "3.png", "4.png"]


def test_one_image_has_no_standard_deviation(tmp_path: Path) -> None:
    _, xlsx_path = written(tmp_path, records_for(["a"]))
    assert load_workbook(xlsx_path)["Summary"]["D2"].value == "n/a"


def test_the_run_sheet_lists_names_and_values(tmp_path: Path) -> None:
    _, xlsx_path = written(tmp_path, records_for(["a"]), {"weights": "m.pth", "tile_size": "256"})
    table = pd.read_excel(xlsx_path, sheet_name="Run", dtype=str)
    assert table.values.tolist() == [["weights", "m.pth"], ["tile_size", "256"]]


def test_more_rows_than_a_sheet_holds_are_left_to_the_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workbook, "SHEET_ROWS", 3)
    csv_path, xlsx_path = written(tmp_path, records_for([str(place) for place in range(5)]))
    assert len(read_csv(csv_path)) == 5
    book = load_workbook(xlsx_path)
    assert book["Metrics"].max_row == 4
    assert book["Metrics"].auto_filter.ref == "A1:F4"
    notes = [[cell.value for cell in row[:2]] for row in book["Summary"].iter_rows()]
    assert ["The sheet Metrics holds the first 3 images; the csv holds all", 5] in notes


def old_files(folder: Path) -> tuple[Path, Path]:
    paths = folder / "metrics.csv", folder / "metrics.xlsx"
    for path in paths:
        path.write_text("old", encoding="utf-8")
    return paths


def assert_untouched(folder: Path) -> None:
    contents = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert contents == {"metrics.csv": "old", "metrics.xlsx": "old"}


def test_an_exception_in_the_middle_leaves_the_old_files_alone(tmp_path: Path) -> None:
    paths = old_files(tmp_path)

    def crash() -> Iterator[Record]:
        yield from records_for(["a"])
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"), RecordWriter(*paths) as writer:
        writer.write(crash())
    assert_untouched(tmp_path)


def test_leaving_without_finish_publishes_nothing(tmp_path: Path) -> None:
    with RecordWriter(*old_files(tmp_path)) as writer:
        writer.write(records_for(["a"]))
    assert_untouched(tmp_path)


@pytest.mark.parametrize(
    "culprit", ["sheets.ExcelWriter.save", "workbook._fill_summary", "workbook.synchronise"]
)
def test_a_full_disk_at_the_end_leaves_no_partial_file(
    culprit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"recon.evaluation.{culprit}", fail)
    paths = old_files(tmp_path)
    with pytest.raises(OSError, match="No space"), RecordWriter(*paths) as writer:
        writer.finish(Summary([], 0, [], []), {})
    assert_untouched(tmp_path)


def test_a_file_beside_that_cannot_be_written_leaves_the_others_as_they_were(
    tmp_path: Path,
) -> None:
    paths = old_files(tmp_path)
    (tmp_path / "metrics.json.partial").mkdir()
    with pytest.raises(OSError, match="metrics"), RecordWriter(*paths) as writer:
        writer.finish(Summary([], 0, [], []), {}, (tmp_path / "metrics.json", "{}"))
    (tmp_path / "metrics.json.partial").rmdir()
    assert_untouched(tmp_path)


def test_a_full_disk_under_a_sheet_is_told_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing a sheet again after it could not be closed is no error of its own."""

    close, failed = WriteOnlyWorksheet.close, list[str]()

    def fail(sheet: WriteOnlyWorksheet) -> None:
        if sheet.title in failed:
            raise StopIteration
        failed.append(sheet.title)
        close(sheet)
        sheet._WriteOnlyWorksheet__saved = False
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WriteOnlyWorksheet, "close", fail)
    paths = old_files(tmp_path)
    with pytest.raises(OSError, match="No space"), RecordWriter(*paths) as writer:
        writer.finish(Summary([], 0, [], []), {})
    assert_untouched(tmp_path)


def test_a_full_disk_while_streaming_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = old_files(tmp_path)
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "metrics.csv.partial").symlink_to(full)
    with pytest.raises(OSError, match="No space"), RecordWriter(*paths) as writer:
        writer.write(records_for(["a"]))
    assert_untouched(tmp_path)


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    batch = records_for([f"some/folder/tile_{place}.png" for place in range(100)])
    paths = tmp_path / "metrics.csv", tmp_path / "metrics.xlsx"
    written(tmp_path, batch)
    tracemalloc.start()
    try:
        with RecordWriter(*paths) as writer:
            for _ in range(40):
                writer.write(batch)
            writer.finish(Summary([], 0, [], []), {})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 4000 rows held as objects would take some megabytes.
    assert peak < 1_500_000
