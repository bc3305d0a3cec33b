import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from openpyxl import load_workbook
from PIL import Image

import Check_images
from recon.evaluation import image_check
from recon.evaluation.image_check import CHECK_COLUMNS
from recon.files import exclusive
from recon.provenance import flatten

EDGE = 48


def picture(seed: int) -> NDArray[np.uint8]:
    """A smooth random picture (EDGE, EDGE, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((EDGE, EDGE), Image.Resampling.BICUBIC))


def save(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four training and two test images, all different."""
    for seed in range(6):
        save(tmp_path / ("train" if seed < 4 else "test") / f"{seed}.png", picture(seed))
    return tmp_path


@pytest.fixture
def check(folder: Path) -> Callable[..., int]:
    """Run the script on the folder."""

    def run(**settings: Any) -> int:
        usual: dict[str, Any] = {
            "GPUs": "",
            "num_workers": 0,
            "tile_size": EDGE,
            "folder_path_train": folder / "train",
            "folder_path_test": folder / "test",
            "image_check_file": folder / "out/check.xlsx",
        }
        flags = [
            part for name, value in (usual | settings).items() for part in (f"--{name}", value)
        ]
        return Check_images.main([str(flag) for flag in flags])

    return run


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of the csv by the name of the image."""
    with (folder / "out/check.csv").open(newline="", encoding="utf-8") as file:
        return {row["Image Path"].rpartition("/")[2]: row for row in csv.DictReader(file)}


# Exit codes


def test_images_without_a_fault_exit_with_0(
    check: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check() == 0
    assert "Nothing here stands against training" in capsys.readouterr().out


@pytest.mark.parametrize(("rule", "code"), [("skip", 0), ("stop", 1)])
@pytest.mark.parametrize("damage", ["cut short", "empty", "vanished"])
def test_an_unreadable_file_counts_as_the_run_would_take_it(
    check: Callable[..., int], folder: Path, damage: str, rule: str, code: int
) -> None:
    path = folder / "train/0.png"
    data = path.read_bytes()
    path.unlink()
    if damage == "vanished":
        path.symlink_to(folder / "nowhere.png")
    else:
        path.write_bytes(data[:-300] if damage == "cut short" else b"")
    assert check(unreadable_images=rule) == code


@pytest.mark.parametrize("part", ["train", "test"])
def test_ambiguous_intensities_exit_with_1(
    check: Callable[..., int], folder: Path, part: str
) -> None:
    tifffile.imwrite(folder / part / "deep.tif", picture(9)[..., 0].astype(np.float32))
    assert check() == 1
    assert "ambiguous intensities, float32" in rows_of(folder)["deep.tif"]["Findings"]


def test_an_intensity_range_settles_ambiguous_intensities(
    check: Callable[..., int], folder: Path
) -> None:
    tifffile.imwrite(folder / "train/deep.tif", picture(9)[..., 0].astype(np.float32))
    assert check(intensity_range="(0, 255)") == 0


def test_a_constant_image_counts_as_unreadable_where_it_has_to_be_z_scored(
    check: Callable[..., int], folder: Path
) -> None:
    save(folder / "train/flat.png", np.full((EDGE, EDGE, 3), 9, np.uint8))
    assert check(unreadable_images="stop") == 0
    assert check(unreadable_images="stop", input_normalization="zscore") == 1
    assert "constant, so it has no z-score" in rows_of(folder)["flat.png"]["Findings"]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_slices_of_a_volume_are_checked_one_by_one(
    check: Callable[..., int], folder: Path, workers: int
) -> None:
    voxels = np.stack([picture(20 + index)[:, :-1, 0] for index in range(3)], axis=1)
    nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(folder / "train/case.nii.gz")
    assert check(slice_axis=1, num_workers=workers) == 0
    rows = rows_of(folder)
    names = [f"case.nii.gz@{index:03}" for index in range(3)]
    assert [name for name in rows if name.startswith("case")] == names
    assert {(rows[name]["Width"], rows[name]["Height"]) for name in names} == {("47", "48")}
    assert {rows[name]["Format"] for name in names} == {"NIfTI"}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_package_ends_the_check_in_one_line(
    check: Callable[..., int],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    tifffile.imwrite(folder / "train/deep.tif", picture(9))
    assert check(num_workers=workers) == 2
    said = capsys.readouterr().err
    line = f"error: {folder}/train/deep.tif: needs the package tifffile: pip install tifffile\n"
    assert said.replace("\r", "\n").endswith(line)


def test_a_copy_of_a_training_image_exits_with_1(check: Callable[..., int], folder: Path) -> None:
    save(folder / "test/copy.bmp", picture(2))
    assert check() == 1
    row = rows_of(folder)["copy.bmp"]
    assert row["Findings"] == "same pixels as a training image"
    assert row["Duplicate Of"] == str(folder / "train/2.png")


def test_a_near_copy_of_a_training_image_exits_with_1(
    check: Callable[..., int], folder: Path
) -> None:
    save(folder / "test/near.jpg", picture(2), quality=50)
    assert check() == 1
    row = rows_of(folder)["near.jpg"]
    assert row["Findings"] == "nearly the same as a training image"
    assert row["Duplicate Of"] == str(folder / "train/2.png")


def test_a_training_image_among_the_validation_images_exits_with_1(
    check: Callable[..., int], folder: Path
) -> None:
    save(folder / "validation/copy.png", picture(1))
    assert check(folder_path_validation=folder / "validation") == 1
    assert rows_of(folder)["copy.png"]["Set"] == "validation"


def test_a_test_folder_inside_the_training_folder_exits_with_1(
    check: Callable[..., int], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "test").rename(folder / "train/test")
    assert check(folder_path_test=folder / "train/test") == 1
    assert "Not fit for training: 2 also a training image by its path" in capsys.readouterr().out


def test_a_link_to_a_training_image_exits_with_1(check: Callable[..., int], folder: Path) -> None:
    (folder / "test/link.png").symlink_to(folder / "train/3.png")
    assert check() == 1
    assert rows_of(folder)["link.png"]["Duplicate Of"] == str(folder / "train/3.png")


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_folder_without_a_readable_image_exits_with_1(
    check: Callable[..., int], folder: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    for path in (folder / part).iterdir():
        path.write_bytes(b"no image")
    assert check() == 1
    name = {"train": "training"}.get(part, part)
    assert f"no readable {name} image" in capsys.readouterr().out


def test_copies_inside_a_set_are_a_warning(check: Callable[..., int], folder: Path) -> None:
    save(folder / "train/copy.png", picture(2))
    save(folder / "train/near.jpg", picture(2), quality=50)
    assert check() == 0
    rows = rows_of(folder)
    assert rows["copy.png"]["Findings"] == "same pixels as an image of its set"
    assert rows["near.jpg"]["Findings"] == "nearly the same as an image of its set"
    assert rows["2.png"]["Findings"] == ""


def test_blank_tiles_are_a_warning(check: Callable[..., int], folder: Path) -> None:
    for part in ("train", "test"):
        save(folder / part / "glass.png", np.full((EDGE, EDGE, 3), 240, np.uint8))
    assert check() == 0
    assert rows_of(folder)["glass.png"]["Findings"] == "near-blank: grey levels vary by 0.0"


def test_images_of_another_size_are_a_warning(check: Callable[..., int], folder: Path) -> None:
    save(folder / "train/wide.png", picture(9)[:30])
    assert check() == 0
    expected = "not of tile_size, will be resized: 48 x 30"
    assert rows_of(folder)["wide.png"]["Findings"] == expected


def test_the_height_of_tile_size_comes_first(check: Callable[..., int], folder: Path) -> None:
    for path in folder.glob("t*/*.png"):
        save(path, np.asarray(Image.open(path))[:30])
    assert check(tile_size="(30, 48)") == 0
    assert rows_of(folder)["0.png"]["Findings"] == ""


@pytest.mark.parametrize("setting", ["folder_path_train", "folder_path_test"])
def test_a_missing_folder_exits_with_2(
    check: Callable[..., int], folder: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    assert check(**{setting: folder / "nowhere"}) == 2
    assert capsys.readouterr().err.startswith(f"error: {setting} must be a folder of images")


def test_a_file_that_is_no_workbook_exits_with_2(
    check: Callable[..., int], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(image_check_file=folder / "check.csv") == 2
    assert "image_check_file must end in .xlsx" in capsys.readouterr().err


# What is written


def test_the_csv_has_a_row_of_facts_for_each_image(check: Callable[..., int], folder: Path) -> None:
    assert check() == 0
    rows = rows_of(folder)
    assert len(rows) == 6
    row = dict(rows["4.png"])
    deviation = float(row.pop("Grey Std. Dev."))
    assert deviation == pytest.approx(
        np.asarray(Image.fromarray(picture(4)).convert("L")).std(), abs=0.1
    )
    assert row == {
        "Image Path": str(folder / "test/4.png"), "Set": "test", "Format": "PNG", "Mode": "RGB",
        "Bit Depth": "8", "Width": "48", "Height": "48", "Findings": "", "Duplicate Of": "",
    }  # fmt: skip


def test_the_workbook_has_the_rows_of_the_csv(check: Callable[..., int], folder: Path) -> None:
    save(folder / "test/copy.bmp", picture(2))
    (folder / "train/bad.png").write_bytes(b"no image")
    check()
    sheet = load_workbook(folder / "out/check.xlsx")["Images"]
    cells = [["" if v is None else str(v) for v in row] for row in sheet.values]
    with (folder / "out/check.csv").open(newline="", encoding="utf-8") as file:
        assert cells == list(csv.reader(file))
    assert cells[0] == list(CHECK_COLUMNS)
    assert sheet.auto_filter.ref == "A1:J9"


def test_numbers_in_the_workbook_are_numbers(check: Callable[..., int], folder: Path) -> None:
    check()
    sheet = load_workbook(folder / "out/check.xlsx")["Images"]
    assert [cell.data_type for cell in sheet[2]][:8] == ["s"] * 4 + ["n"] * 4


def test_the_summary_counts_findings_by_set(check: Callable[..., int], folder: Path) -> None:
    save(folder / "test/copy.bmp", picture(2))
    check()
    table = list(load_workbook(folder / "out/check.xlsx")["Summary"].values)
    assert table[0] == ("Findings", "training", "test")
    assert ("same pixels as a training image", 0, 1) in table


def test_the_run_is_recorded(check: Callable[..., int], folder: Path) -> None:
    check()
    run = dict(load_workbook(folder / "out/check.xlsx")["Run"].values)
    assert run["settings.folder_path_train"] == str(folder / "train")
    record = json.loads((folder / "out/check.json").read_text())
    assert flatten(record).keys() == run.keys() - {"Name"}
    assert record["images"]["test"]["found"] == len(list((folder / "test").iterdir()))
    before = record["images"]["training"]["fingerprint"]
    (folder / "train/0.png").rename(folder / "train/zero.png")
    check()
    record = json.loads((folder / "out/check.json").read_text())
    assert record["images"]["training"]["fingerprint"] != before
    assert record["seconds"] >= 0


def test_the_record_of_a_model_is_not_replaced(
    check: Callable[..., int], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "out").mkdir()
    (folder / "out/check.pth").write_bytes(b"")
    assert check() == 2
    assert "it tells what check.pth is" in capsys.readouterr().err
    assert [path.name for path in (folder / "out").iterdir()] == ["check.pth"]


def test_odd_names_are_text_on_one_line(check: Callable[..., int], folder: Path) -> None:
    for seed, name in enumerate((b"=1+1.png", b"\xff\n.png", b"_x0041_.png"), start=10):
        os.rename(folder / "train/0.png", folder / "train" / os.fsdecode(name))  # noqa: PTH104
        save(folder / "train/0.png", picture(seed))
    assert check() == 0
    assert {"=1+1.png", "\\udcff\\n.png", "_x0041_.png"} <= set(rows_of(folder))
    sheet = load_workbook(folder / "out/check.xlsx")["Images"]
    assert {cell.data_type for cell in sheet["A"]} == {"s"}


def test_more_rows_than_a_sheet_holds_are_left_to_the_csv(
    check: Callable[..., int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_check, "SHEET_ROWS", 2)
    check()
    sheet = load_workbook(folder / "out/check.xlsx")["Images"]
    assert (sheet.max_row, sheet.auto_filter.ref) == (3, "A1:J3")
    assert len(rows_of(folder)) == 6


def test_a_crash_while_writing_leaves_the_old_files_alone(
    check: Callable[..., int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check()
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_check, "save_book", fail)
    assert check() == 2
    assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == before


# What is said


def test_the_console_counts_what_the_files_are(
    check: Callable[..., int], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(folder / "train/grey.jpg", picture(9)[..., 0])
    check()
    said = capsys.readouterr().out
    assert f"Training images: 5 below {folder / 'train'}, 5 of them readable" in said
    assert "format          PNG: 4, JPEG: 1" in said
    assert "mode            RGB: 4, L: 1" in said
    assert "width x height  48 x 48: 5" in said


def test_at_most_twenty_findings_of_a_kind_are_listed(
    check: Callable[..., int], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in range(23):
        (folder / f"train/bad{place:02}.png").write_bytes(b"no image")
    check()
    said = capsys.readouterr().out
    assert "bad19.png: damaged, or none of" in said
    assert "bad20.png" not in said
    assert "  and 3 more" in said


# Processes


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_the_result_does_not_depend_on_the_number_of_processes(
    check: Callable[..., int], folder: Path
) -> None:
    (folder / "train/bad.png").write_bytes(b"no image")
    check()
    alone = (folder / "out/check.csv").read_bytes()
    check(num_workers=2)
    assert (folder / "out/check.csv").read_bytes() == alone


def test_a_second_check_into_one_workbook_is_refused(
    check: Callable[..., int], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "out").mkdir()
    with exclusive(folder / "out/check.csv", "image_check_file"):
        assert check() == 2
    assert "image_check_file must be a file of its own" in capsys.readouterr().err
    assert check() == 0
