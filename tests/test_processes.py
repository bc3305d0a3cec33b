import os
from collections.abc import Iterator

import pytest

from recon.data.processes import AHEAD, CHUNK, map_isolated

# Forking a process that has threads is what the loaders of images do, too.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

DEADLY = 40


def doubled(number: int) -> int:
    if number == DEADLY:
        os._exit(9)
    return 2 * number


def refuse(number: int) -> int:
    raise ValueError(f"{number} is refused")


def lost(number: int) -> int:
    return -number


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_results_come_in_the_order_of_the_items(processes: int) -> None:
    items = range(DEADLY)
    results = map_isolated(doubled, items, processes=processes, lost=lost)
    assert list(results) == [2 * number for number in items]


def test_an_item_that_ends_its_process_is_lost_alone() -> None:
    results = list(map_isolated(doubled, range(300), processes=2, lost=lost))
    assert results == [-n if n == DEADLY else 2 * n for n in range(300)]


def test_an_exception_of_the_work_comes_through() -> None:
    with pytest.raises(ValueError, match="0 is refused"):
        list(map_isolated(refuse, [0, 1], processes=1, lost=lost))


def test_items_are_taken_a_few_at_a_time() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10_000, 20_000):
            taken.append(number)
            yield number

    results = map_isolated(doubled, items(), processes=1, lost=lost)
    assert next(results) == 20_000
    assert len(taken) <= CHUNK * (AHEAD + 1)
