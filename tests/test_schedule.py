import math
from itertools import pairwise

import pytest

from recon.training.schedule import learning_rate, rising


def rates(steps: int, schedule: str, warmup_fraction: float) -> list[float]:
    return [
        learning_rate(step, steps, peak=2.0, schedule=schedule, warmup_fraction=warmup_fraction)
        for step in range(steps)
    ]


def test_the_warm_up_rises_by_equal_steps_from_above_zero_to_the_peak() -> None:
    assert rates(40, "constant", 0.1)[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])


def test_the_cosine_starts_at_the_peak_after_the_warm_up_and_only_falls() -> None:
    after = rates(40, "cosine", 0.1)[4:]
    assert after[0] == pytest.approx(2.0)
    assert all(later < earlier for earlier, later in pairwise(after))


def test_the_cosine_is_half_the_peak_half_way_and_zero_at_the_end() -> None:
    half = learning_rate(50, 100, peak=2.0, schedule="cosine", warmup_fraction=0.0)
    end = learning_rate(100, 100, peak=2.0, schedule="cosine", warmup_fraction=0.1)
    assert half == pytest.approx(1.0)
    assert end == pytest.approx(0.0, abs=1e-12)


def test_the_cosine_is_that_of_the_paper() -> None:
    """Equation 5 of arXiv:1608.03983 with a lower bound of 0, after 10 steps of warm-up."""
    expected = [1 + math.cos(math.pi * (step - 10) / 90) for step in range(10, 100)]
    assert rates(100, "cosine", 0.1)[10:] == pytest.approx(expected)


def test_the_constant_schedule_stays_at_the_peak_after_the_warm_up() -> None:
    assert rates(20, "constant", 0.25)[4:] == [2.0] * 16


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    assert rates(10, "constant", 0.0) == [2.0] * 10


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.05, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_every_step_of_the_shortest_runs_learns(
    schedule: str, warmup_fraction: float, steps: int
) -> None:
    assert all(0 < rate <= 2.0 for rate in rates(steps, schedule, warmup_fraction))


def test_a_weight_rises_from_zero_and_stays_at_its_full_value() -> None:
    weights = [rising(step, 10, full=3.0, warmup=0.5) for step in range(10)]
    assert weights[:6] == pytest.approx([0.0, 0.6, 1.2, 1.8, 2.4, 3.0])
    assert weights[5:] == [3.0] * 5


def test_without_a_warm_up_a_weight_is_full_from_the_start() -> None:
    assert rising(0, 10, full=3.0, warmup=0.0) == 3.0
