"""The split of a run: chosen once, written down, found again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets import ImagePaths, find_images
from recon.errors import UserError
from recon.pipeline.splitting import SPLIT, split_off, write_split
from recon.provenance import sample_files
from recon.settings import Settings

NAMES = [f"slide{s}/{t}.png" for s in range(10) for t in range(4)]


def split(
    folder: Path,
    names: list[str] = NAMES,
    samples: NDArray[np.uint64] | None = None,
    *,
    resumed: bool = False,
    **changes: Any,
) -> tuple[list[str], list[str]]:
    paths = ImagePaths("images", names)
    settings = Settings(**changes)
    sides = split_off(paths, samples, settings, folder, resumed=resumed)
    write_split(paths, settings, sides, folder)
    return [names[i] for i in sides.kept], [names[i] for i in sides.aside]


def test_the_validation_images_are_written_down(tmp_path: Path) -> None:
    _, aside = split(tmp_path, validation_fraction=0.2)
    record = json.loads((tmp_path / SPLIT).read_text())
    assert record["validation"] == aside
    assert len(aside) == 8
    assert record["validation_group"] == "folder"


def test_a_resumed_run_reuses_the_choice_and_draws_no_other(tmp_path: Path) -> None:
    drawn = split(tmp_path)
    record = json.loads((tmp_path / SPLIT).read_text())
    record["validation"] = [name for name in NAMES if name.startswith(("slide1/", "slide2/"))]
    (tmp_path / SPLIT).write_text(json.dumps(record))
    kept, aside = split(tmp_path, resumed=True)
    assert aside == record["validation"]
    assert sorted(kept + aside) == sorted(NAMES)
    assert split(tmp_path) == drawn != (kept, aside)


def test_copies_of_images_to_train_on_are_left_out_of_validation_also_when_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept, aside = split(tmp_path)
    samples = np.arange(len(NAMES), dtype=np.uint64)
    samples[NAMES.index(aside[1])] = samples[NAMES.index(kept[7])]
    first = split(tmp_path, samples=samples)
    assert first == (kept, [name for name in aside if name != aside[1]])
    assert "Left out of validation: 1 of 4 images, which are byte for byte" in caplog.text
    # The choice stands, whatever the files are by now.
    assert split(tmp_path, resumed=True) == first
    assert json.loads((tmp_path / SPLIT).read_text())["copies left out"] == [aside[1]]


def test_images_that_only_resemble_those_to_train_on_stay_in_validation(tmp_path: Path) -> None:
    for index in range(20):
        content = bytearray(200_000)
        content[10_000] = index  # between the samples
        (tmp_path / f"{index:02}.bmp").write_bytes(content)
    paths = find_images(tmp_path)
    samples = sample_files(paths, len(paths))
    assert samples is not None
    assert len(set(samples.tolist())) == 1
    settings = Settings(validation_group="image")
    sides = split_off(paths, samples, settings, tmp_path, resumed=False)
    assert (len(sides.aside), len(sides.left_out)) == (2, 0)


def test_validation_of_copies_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="each of the 4 of validation_fraction is byte for byte"):
        split(tmp_path, samples=np.zeros(len(NAMES), np.uint64))


@pytest.mark.parametrize(
    "other", [{"seed": 2}, {"validation_fraction": 0.3}, {"validation_group": r"slide(\d)"}]
)
def test_the_choice_of_a_run_by_other_rules_is_not_taken(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    """As it lies there when the next run is killed before it could write its own."""
    split(tmp_path)
    before = (tmp_path / SPLIT).read_text()
    chosen = split(tmp_path / "alone", **other)
    (tmp_path / SPLIT).write_text(before)
    assert split(tmp_path, resumed=True, **other) == chosen


def test_a_choice_whose_images_are_gone_is_refused(tmp_path: Path) -> None:
    _, aside = split(tmp_path)
    left = [name for name in NAMES if name != aside[0]]
    with pytest.raises(UserError, match="names images that are gone"):
        split(tmp_path, left, resumed=True)


def test_a_choice_that_tears_a_group_apart_is_refused(tmp_path: Path) -> None:
    split(tmp_path)
    record = json.loads((tmp_path / SPLIT).read_text())
    record["validation"] = record["validation"][:-1]
    (tmp_path / SPLIT).write_text(json.dumps(record))
    with pytest.raises(UserError, match="on both sides of the split"):
        split(tmp_path, resumed=True)


def test_a_record_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / SPLIT).write_text("{}")
    with pytest.raises(UserError, match=r"no record of a split .*; remove it"):
        split(tmp_path, resumed=True)


def test_one_folder_gives_no_validation_and_says_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "recon")
    kept, aside = split(tmp_path, ["a.png", "b.png"])
    assert (kept, aside) == (["a.png", "b.png"], [])
    assert "validation_group" in caplog.text


def test_single_images_are_split_only_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "recon")
    _, aside = split(tmp_path, validation_group="image")
    assert len(aside) == 4
    assert "near-copies" in caplog.text


def test_folders_within_one_folder_on_both_sides_are_worth_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "recon")
    split(tmp_path, validation_fraction=0.2)
    assert caplog.messages == []
    deep = [f"patient{p}/{kind}/{t}.png" for p in range(5) for kind in "abc" for t in range(4)]
    split(tmp_path, deep, validation_fraction=0.2)
    (message,) = caplog.messages
    assert "is one slide or patient, set validation_group" in message
    caplog.clear()
    kept, aside = split(tmp_path, deep, validation_fraction=0.2, validation_group="^[^/]+")
    assert not {name[:8] for name in kept} & {name[:8] for name in aside}
    assert caplog.messages == []
