import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from recon import provenance
from recon.provenance import (
    Sampled,
    among,
    check_provenance,
    copied,
    describe_run,
    fingerprint,
    flatten,
    members,
    sample_files,
)

NAMES = ["a/1.png", "b/2.png"]


def fill(folder: Path, sizes: dict[str, int]) -> str:
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    return str(folder)


# fingerprint


def test_the_same_files_have_one_fingerprint_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = fill(tmp_path / "here", {"a/1.png": 3, "b/2.png": 4})
    there = fill(tmp_path / "far" / "there", {"a/1.png": 3, "b/2.png": 4})
    expected = fingerprint(NAMES, here)
    assert re.fullmatch(r"[0-9a-f]{64}", expected)
    assert fingerprint(NAMES, there) == expected
    monkeypatch.chdir(tmp_path)
    assert fingerprint(NAMES, "here") == expected


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (NAMES, {"a/1.png": 3, "b/2.png": 5}),
        (["a/1.png", "c/2.png"], {"a/1.png": 3, "c/2.png": 4}),
        (["b/2.png", "a/1.png"], {"a/1.png": 3, "b/2.png": 4}),
        (["a/1.png"], {"a/1.png": 3}),
        (["a/1.png", "b/2.png", "c"], {"a/1.png": 3, "b/2.png": 4, "c": 0}),
        (NAMES, {"a/1.png": 3}),
    ],
    ids=["size", "name", "order", "one fewer", "one more", "one missing"],
)
def test_another_size_name_order_or_number_of_files_gives_another_fingerprint(
    tmp_path: Path, names: list[str], sizes: dict[str, int]
) -> None:
    before = fingerprint(NAMES, fill(tmp_path / "before", {"a/1.png": 3, "b/2.png": 4}))
    assert fingerprint(names, fill(tmp_path / "after", sizes)) != before


def test_names_and_sizes_do_not_run_into_each_other(tmp_path: Path) -> None:
    one = fill(tmp_path / "one", {"a": 11, "b": 1})
    other = fill(tmp_path / "other", {"a1": 1, "b": 1})
    assert fingerprint(["a", "b"], one) != fingerprint(["a1", "b"], other)


def test_a_name_that_is_no_text_has_a_fingerprint(tmp_path: Path) -> None:
    assert fingerprint(["bad\udcff.png"], str(tmp_path))


# flatten


def test_nested_names_are_joined_by_points() -> None:
    record = {"date": "today", "settings": {"seed": 3, "deep": {"er": None}}, "tile": (64, 32)}
    assert flatten(record) == {
        "date": "today",
        "settings.seed": "3",
        "settings.deep.er": "None",
        "tile": "(64, 32)",
    }


def test_an_empty_table_keeps_its_row() -> None:
    assert flatten({"skipped": {}}) == {"skipped": "{}"}


# describe_run


def test_a_run_states_its_time_and_versions() -> None:
    run = describe_run()
    age = datetime.now(timezone.utc) - datetime.fromisoformat(run["date"])
    assert timedelta(seconds=-1) <= age < timedelta(minutes=1)
    assert run["python"] == ".".join(map(str, sys.version_info[:3]))
    assert run["packages"]["torch"] == metadata.version("torch")
    assert {"numpy", "pillow", "pytorch-msssim"} <= set(run["packages"])


def test_a_run_is_plain_data() -> None:
    run = describe_run()
    assert json.loads(json.dumps(run)) == run


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("no-such-package",))
    assert describe_run()["packages"] == {"no-such-package": None}


def test_without_git_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_run()["commit"] is None


def test_outside_a_checkout_the_commit_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert describe_run()["commit"] is None


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_of_the_checkout_is_stated_and_marked_where_files_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]

    def git(*words: str) -> str:
        command = ["git", *who, *words]
        answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return answer.stdout.strip()

    file = tmp_path / "provenance.py"
    file.write_text("one", encoding="utf-8")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "One")
    git("tag", "-a", "v1", "-m", "One")
    commit = git("rev-parse", "HEAD")
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert describe_run()["commit"] == commit
    file.write_text("two", encoding="utf-8")
    assert describe_run()["commit"] == f"{commit}-dirty"


# Slices of volumes


def test_the_fingerprint_of_slices_is_over_the_size_of_their_volume(tmp_path: Path) -> None:
    names = ["a.nii@000", "a.nii@001"]
    before = fingerprint(names, fill(tmp_path / "before", {"a.nii": 3}))
    assert fingerprint(names, fill(tmp_path / "same", {"a.nii": 3})) == before
    assert fingerprint(names, fill(tmp_path / "after", {"a.nii": 4})) != before
    assert fingerprint(names[:1], fill(tmp_path / "fewer", {"a.nii": 3})) != before


def test_slices_are_members_by_the_content_of_their_volume_and_their_number(tmp_path: Path) -> None:
    fill(tmp_path, {"a.nii": 9, "copy.nii": 9, "other.nii": 8})
    known = members(sample_files([f"{tmp_path}/a.nii@000", f"{tmp_path}/a.nii@001"], 2))
    assert known is not None
    assert among([f"{tmp_path}/copy.nii@{index:03}" for index in range(5)], known) == 2
    assert among([f"{tmp_path}/other.nii@000", f"{tmp_path}/copy.nii"], known) == 0


def test_files_that_differ_between_equal_ends_are_told_apart(tmp_path: Path) -> None:
    border = bytes(8192)
    paths = [str(tmp_path / name) for name in ("a.bmp", "b.bmp")]
    for path, value in zip(paths, (b"\x10", b"\x20"), strict=True):
        Path(path).write_bytes(border + value * 200_000 + border)
    known = members(sample_files(paths[:1], 1))
    assert known is not None
    assert among(paths, known) == 1


def test_a_pipe_is_a_member_like_no_other_and_does_not_hang(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path in paths:
        os.mkfifo(path)
    known = members(sample_files(paths[:1], 1))
    assert known is not None
    assert [among([path], known) for path in paths] == [1, 0]


def test_the_whole_of_a_small_file_counts(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path, value in zip(paths, (b"\x10", b"\x20"), strict=True):
        Path(path).write_bytes(bytes(32_000) + value + bytes(32_000))
    known = members(sample_files(paths[:1], 1))
    assert known is not None
    assert among(paths, known) == 1


def sampled(*paths: Path) -> Sampled:
    names = [str(path) for path in paths]
    samples = sample_files(names, len(names))
    assert samples is not None
    return Sampled(names.__getitem__, samples)


def test_files_that_differ_between_the_samples_are_no_copies(tmp_path: Path) -> None:
    whole = bytes(1_000_000)
    (tmp_path / "a.bmp").write_bytes(whole)
    (tmp_path / "copy.bmp").write_bytes(whole)
    (tmp_path / "other.bmp").write_bytes(whole[:30_000] + b"1" + whole[30_001:])
    (tmp_path / "small.bmp").write_bytes(whole[:9])
    some = sampled(*(tmp_path / f"{name}.bmp" for name in ("other", "copy", "small")))
    train = sampled(tmp_path / "a.bmp")
    assert some.samples[0] == some.samples[1] == train.samples[0]
    assert copied(some, train).tolist() == [False, True, False]


def test_no_more_files_are_read_whole_than_are_alike(
    tmp_path: Path, record_opened: Callable[[], list[str]]
) -> None:
    for name, size in (("a.nii", 99_000), ("copy.nii", 99_000), ("b.png", 9), ("c.png", 98_000)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "small.png").write_bytes(bytes(9))
    some = sampled(*(tmp_path / f"copy.nii@{index:03}" for index in range(3)), tmp_path / "b.png")
    names = ("a.nii@001", "a.nii@002", "small.png", "c.png")
    others = sampled(*(tmp_path / name for name in names))
    opened = record_opened()
    assert copied(some, others).tolist() == [False, True, True, True]
    assert sorted(opened) == ["a.nii", "b.png", "copy.nii", "small.png"]


def test_a_dated_fingerprint_changes_with_contents_and_rights(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"1")

    def dated() -> str:
        return fingerprint(["a.png"], str(tmp_path), dated=True)

    first = dated()
    assert dated() == first
    path.write_bytes(b"2")
    second = dated()
    path.chmod(0o600)
    assert len({first, second, dated()}) == 3


# Records that are read


def within_itself() -> list[Any]:
    held: list[Any] = []
    held.append(held)
    return held


def held_twice(times: int) -> list[Any]:
    held: list[Any] = ["x"]
    for _ in range(times):
        held = [held, held]
    return held


def nested(times: int) -> list[Any]:
    held: list[Any] = []
    for _ in range(times):
        held = [held]
    return held


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2), {1}, b"x", torch.float32, torch.device("cpu"), 1j, {1: 2}, {(1, 2): 3},
        {None: 1}, torch.Size([1]), 10**400, -(2**70), within_itself(), held_twice(40),
        nested(1000), ["x" * 2**20] * 100,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
@pytest.mark.parametrize("place", ["settings", "a"])
def test_a_record_that_json_cannot_hold_is_refused_at_once(place: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        check_provenance({place: {"b": value}})
    assert len(str(caught.value)) < 200


def test_a_record_of_plain_values_passes() -> None:
    held = [1, -(2**63), 0.5, float("inf"), True, None, "x" * 3_000_000, (1, [2, {"a": {}}])]
    check_provenance({"settings": {"seed": 3}, "a": held, "b": held_twice(10), "c": nested(40)})
