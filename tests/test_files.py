import errno
import json
import math
import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from recon.errors import UserError
from recon.files import (
    check_writable,
    file_of,
    partial_name,
    publish,
    replacing,
    spell_json,
    synchronise,
    without_ending,
    write_json,
)


def write_then(path: Path, text: str, error: BaseException, *, durable: bool = True) -> None:
    with replacing(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8")
        raise error


def test_a_partial_file_stands_beside_the_final_one() -> None:
    assert partial_name(Path("out/model.pth")) == Path("out/model.pth.partial")


# replacing


def test_missing_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "log.csv"
    with replacing(path) as partial:
        partial.write_text("whole", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "whole"


def test_a_file_bears_its_name_only_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    with replacing(path) as partial:
        partial.write_text("whole", encoding="utf-8")
        assert not path.exists()
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_is_whole_until_the_new_one_is(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("old", encoding="utf-8")
    with replacing(path) as partial:
        partial.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize("error", [OSError(28, "full"), ValueError("x"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_file_and_no_partial_one(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "log.csv"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(type(error)) as caught:
        write_then(path, "half", error)
    assert caught.value is error
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text(encoding="utf-8") == "old"


def test_an_exception_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"):
        write_then(tmp_path / "log.csv", "half", ValueError("x"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_never_written_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text(encoding="utf-8") == "old"


def test_a_partial_file_of_a_run_that_was_killed_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    partial_name(path).write_text("half of the run before, and longer", encoding="utf-8")
    with replacing(path) as partial:
        partial.write_text("new", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_bears_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, events = tmp_path / "log.csv", []
    monkeypatch.setattr("os.fsync", lambda _: events.append(("synchronised", path.exists())))
    with replacing(path) as partial:
        partial.write_text("whole", encoding="utf-8")
    assert events[0] == ("synchronised", False)  # its contents
    assert all(event == ("synchronised", True) for event in events[1:])  # its new name
    assert path.exists()


# publish, synchronise


def test_publishing_gives_the_partial_file_its_final_name(tmp_path: Path) -> None:
    path = tmp_path / "book.xlsx"
    path.write_text("old", encoding="utf-8")
    partial_name(path).write_text("new", encoding="utf-8")
    publish(path)
    assert path.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_synchronising_leaves_the_contents_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"contents")
    synchronise(path)
    assert path.read_bytes() == b"contents"


# check_writable


def test_a_folder_that_can_be_written_to_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    check_writable(folder, "model_saved_location_mse")
    assert list(folder.iterdir()) == []
    check_writable(folder, "model_saved_location_mse")


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_refused_by_the_settings_name(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    folder = tmp_path / place
    with pytest.raises(UserError) as caught:
        check_writable(folder, "model_saved_location_mse")
    message = str(caught.value)
    assert message.startswith("model_saved_location_mse must be in a folder that can be written to")
    assert repr(str(folder)) in message
    assert "\n" not in message


def test_a_folder_that_takes_no_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"recon_output_mse .*\(Permission denied\)"):
        check_writable(tmp_path, "recon_output_mse")


# Without waiting for the disk


def test_a_file_that_need_not_last_is_published_without_waiting_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise AssertionError("waited for the disk")

    monkeypatch.setattr("os.fsync", refuse)
    path = tmp_path / "picture.png"
    path.write_text("old", encoding="utf-8")
    with replacing(path, durable=False) as partial:
        partial.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_leaves_the_old_file_that_need_not_last(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(KeyError, match="x"):
        write_then(path, "half", KeyError("x"), durable=False)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


# Slices


@pytest.mark.parametrize(
    ("image", "file"),
    [
        ("b/a.nii.gz@057", "b/a.nii.gz"),
        ("a@1/B.NII@0", "a@1/B.NII"),
        ("a.nii.gz", "a.nii.gz"),
        ("a.png@057", "a.png@057"),
        ("a.nii@x", "a.nii@x"),
        ("a.nii@", "a.nii@"),
        ("a.nii@1/b.png", "a.nii@1/b.png"),
    ],
)
def test_a_slice_is_read_from_its_volume_and_all_else_from_itself(image: str, file: str) -> None:
    assert file_of(image) == file


@pytest.mark.parametrize(
    ("image", "without"),
    [
        ("b/a.png", "b/a"),
        ("b.c/a", "b.c/a"),
        ("a.tar.PNG", "a.tar"),
        ("b/a.nii.gz", "b/a"),
        ("a.NII.GZ", "a"),
        ("a.nii", "a"),
        ("a.nii.gz@057", "a.nii.gz@057"),
    ],
)
def test_the_ending_is_that_of_the_file(image: str, without: str) -> None:
    assert without_ending(image) == without


@pytest.mark.parametrize(("number", "told"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_folder_that_cannot_be_synchronised_is_no_failure_where_that_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: bool
) -> None:
    plain = os.fsync

    def of_files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        plain(descriptor)

    monkeypatch.setattr("os.fsync", of_files_alone)
    with pytest.raises(OSError, match=os.strerror(number)) if told else nullcontext():
        write_json(tmp_path / "a.json", {"a": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_numbers_that_json_does_not_know_are_texts() -> None:
    record = {"a": math.inf, "b": [1.5, (-math.inf, math.nan)], "c": {"d": 3, "e": True}}
    spelled = {"a": "inf", "b": [1.5, ["-inf", "nan"]], "c": {"d": 3, "e": True}}
    assert json.loads(spell_json(record)) == spelled
