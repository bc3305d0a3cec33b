"""Which comparisons are kept when not all are."""

import numpy as np

from recon.evaluation.pictures import Comparison, Selection
from recon.evaluation.records import Record

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
