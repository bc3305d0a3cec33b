"""Which comparisons are kept when not all are, and how they are written."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recon.evaluation.pictures import Comparison, PictureWriter, Selection, write_png
from recon.evaluation.records import NoisyInput, Record

BLANK = np.zeros((4, 4, 3), np.uint8)


def comparisons(scores: list[float], first: int = 0, step: int = 1) -> list[Comparison]:
    return [
        Comparison(first + step * i, Record(str(i), 0.1, 10.0, score, 4, 4), BLANK, BLANK)
        for i, score in enumerate(scores)
    ]


def images(chosen: list[Comparison]) -> list[int]:
    return sorted(comparison.image for comparison in chosen)


def test_the_worst_the_best_and_an_even_sample_are_kept() -> None:
    scores = [0.5] * 41
    scores[7], scores[8], scores[30], scores[31] = 0.1, 0.2, 0.8, 0.9
    selection = Selection(2, 41)
    for start in range(0, 41, 10):
        selection.add(comparisons(scores[start : start + 10], start))
    assert images(selection.chosen(lambda mine: [mine])) == [0, 7, 8, 30, 31, 40]


def test_an_image_without_a_score_is_the_worst_and_hides_no_other() -> None:
    nan = float("nan")
    selection = Selection(2, 8)
    selection.sampled.clear()
    selection.add(comparisons([0.9, nan, 0.1, 0.8, 0.05, 0.7, 0.2, 0.6]))
    assert images(selection.chosen(lambda mine: [mine])) == [0, 1, 3, 4]


def test_a_folder_smaller_than_the_number_is_kept_whole_and_once() -> None:
    selection = Selection(5, 3)
    selection.add(comparisons([0.3, 0.2, 0.1]))
    assert images(selection.chosen(lambda mine: [mine])) == [0, 1, 2]


def test_several_processes_keep_together_what_one_would() -> None:
    scores = list(np.random.default_rng(0).random(60))
    alone = Selection(4, 60)
    alone.add(comparisons(scores))
    parts = [Selection(4, 60) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.add(comparisons(scores[rank::2], rank, 2))
    worst = [[(c.record.ssim, c.image) for c in part.worst] for part in parts]
    best = [[(c.record.ssim, c.image) for c in part.best] for part in parts]
    chosen = []
    for part in parts:
        answers = iter([worst, best])
        chosen += part.chosen(lambda _mine, answers=answers: next(answers))
    assert images(chosen) == images(alone.chosen(lambda mine: [mine]))


# Writing


def test_a_picture_holds_the_pixels_given(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for name, array in (("colour", pixels), ("grey", pixels[..., 0])):
        write_png(tmp_path / f"{name}.png", Image.fromarray(array))
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.format == "PNG"
            assert np.array_equal(np.asarray(picture), array)


def test_the_disk_is_waited_for_once_after_the_last_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr("os.fsync", lambda _: seen.append(-1))
    monkeypatch.setattr("os.sync", lambda: seen.append(len(list(tmp_path.glob("*.png")))))
    with PictureWriter(tmp_path, "{}.png".format, 2) as writer:
        writer.write(comparisons([0.1] * 5))
    assert seen == [5]


def test_an_image_that_was_spoilt_is_shown_between_the_other_two(tmp_path: Path) -> None:
    (plain,) = comparisons([0.5])
    record = plain.record._replace(noisy=NoisyInput(0.2, 7.0, 0.3, 3.0))
    dots = np.full((128, 128, 3), (10, 200, 30), np.uint8)
    noisy = Comparison(0, record, dots // 2, dots * 0, dots)
    with PictureWriter(tmp_path, "{}.png".format, 1) as writer:
        writer.write([noisy])
    with Image.open(tmp_path / "0.png") as picture:
        row = np.asarray(picture)[picture.height // 2]
    places = [
        np.flatnonzero((row == c).all(1)) for c in (dots[0, 0] // 2, dots[0, 0], dots[0, 0] * 0)
    ]
    assert [len(place) for place in places] == [128] * 3
    assert places[0].max() < places[1].min() < places[1].max() < places[2].min()
