from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from recon.analysis import duplicates
from recon.analysis.duplicates import (
    COPY,
    NEAR,
    NONE,
    SHARED,
    Prints,
    between,
    nearest,
    within,
)

Numbers = NDArray[np.uint64]
FAR = (0, 0xFF, 0xFFFF, 0xFFFFFF, 0xFFFFFFFF)  # 8 bits and more apart


def prints(
    looks: list[int],
    pixels: list[int] | None = None,
    places: list[int] | None = None,
    *,
    unreadable: tuple[int, ...] = (),
    blank: tuple[int, ...] = (),
    first_place: int = 0,
) -> Prints:
    count = len(looks)
    own = list(range(first_place, first_place + count))
    readable = np.array([index not in unreadable for index in range(count)], dtype=bool)
    textured = readable & np.array([index not in blank for index in range(count)], dtype=bool)
    columns = (np.array(c, np.uint64) for c in (places or own, pixels or own, looks))
    return Prints(*columns, readable, textured)


def clustered(count: int, seed: int) -> Numbers:
    """Hashes around a few centres, some the same."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, 4, dtype=np.uint64)
    hashes = centres[rng.integers(0, 4, count)]
    for _ in range(4):
        flips = rng.integers(0, 64, count).astype(np.uint64)
        hashes ^= np.where(rng.random(count) < 0.6, np.uint64(1) << flips, np.uint64(0))
    return hashes


def by_comparing_all(queries: Numbers, references: Numbers, bits: int) -> list[int]:
    found = []
    for query in queries.tolist():
        distances = [(query ^ other).bit_count() for other in references.tolist()]
        best = min(distances)
        found.append(distances.index(best) if best <= bits else -1)
    return found


# The search


@pytest.mark.parametrize("bits", [0, 1, 4, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_nearest_is_what_comparing_all_finds(bits: int, seed: int) -> None:
    queries, references = clustered(60, seed), clustered(80, seed)
    references[40:] = clustered(80, seed + 7)[40:]
    expected = by_comparing_all(queries, references, bits)
    assert nearest(queries, references, bits).tolist() == expected


def test_the_size_of_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, references = clustered(60, 3), clustered(80, 3)
    expected = nearest(queries, references, 4).tolist()
    monkeypatch.setattr(duplicates, "PAIRS", 3)
    assert nearest(queries, references, 4).tolist() == expected


@pytest.mark.parametrize(("queries", "references"), [(0, 0), (0, 3), (3, 0)])
def test_where_there_is_nothing_nothing_is_near(queries: int, references: int) -> None:
    found = nearest(np.zeros(queries, np.uint64), np.zeros(references, np.uint64), 4)
    assert found.tolist() == [-1] * queries


def test_bits_at_both_ends_count() -> None:
    ends = np.array([0, 1 | 1 << 63], np.uint64)
    assert nearest(ends[:1], ends[1:], 1).tolist() == [-1]
    assert nearest(ends[:1], ends[1:], 2).tolist() == [0]


def test_thousands_of_the_same_image_take_no_time_to_speak_of() -> None:
    same = prints([7] * 50_000, [7] * 50_000)
    matches = within(same)  # comparing all would be 10**9 comparisons
    assert (matches.kind[1:] == COPY).all()
    assert (matches.other[1:] == 0).all()


def test_thousands_of_different_images_match_nothing() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    matches = within(prints(hashes.tolist()))
    assert (matches.kind == NONE).all()


# Within a set


def test_different_images_do_not_match() -> None:
    matches = within(prints(list(FAR)))
    assert matches.kind.tolist() == [NONE] * 5
    assert matches.other.tolist() == [-1] * 5


def test_a_copy_names_the_first_of_its_kind() -> None:
    matches = within(prints([0, 0xFFFF, 0, 0], [5, 6, 5, 5]))
    assert matches.kind.tolist() == [NONE, NONE, COPY, COPY]
    assert matches.other.tolist() == [-1, -1, 0, 0]


@pytest.mark.parametrize(("bits", "kind"), [(0, NEAR), (4, NEAR), (5, NONE)])
def test_near_is_at_most_four_bits_away(bits: int, kind: int) -> None:
    assert within(prints([0, (1 << bits) - 1])).kind.tolist() == [NONE, kind]


def test_each_image_is_near_one_before_it() -> None:
    chain = [0, 0b111, 0b111111, 0b111111111]
    assert all((a ^ b).bit_count() == 3 for a, b in pairwise(chain))
    assert within(prints(chain)).other.tolist() == [-1, 0, 1, 2]


def test_unreadable_images_match_nothing() -> None:
    matches = within(prints([0, 0, 0], [0, 0, 0], unreadable=(0, 2)))
    assert matches.kind.tolist() == [NONE] * 3


def test_blank_images_are_compared_by_their_pixels_alone() -> None:
    matches = within(prints([0, 0, 0], [5, 6, 5], blank=(0, 1, 2)))
    assert matches.kind.tolist() == [NONE, NONE, COPY]


def test_indices_count_the_images_that_are_left_out() -> None:
    matches = within(prints([1, 0, 0xFFFF, 1], unreadable=(1,), blank=(2,)))
    assert matches.other.tolist() == [-1, -1, -1, 0]


# Between two sets


@pytest.mark.parametrize(
    ("look", "pixels", "place", "kind"),
    [
        (0xFF00, 77, 99, NONE),
        (0x0001, 77, 99, NEAR),
        (0xFF00, 11, 99, COPY),
        (0x0001, 11, 99, COPY),
        (0xFF00, 77, 21, SHARED),
        (0x0001, 11, 21, SHARED),
    ],
)
def test_the_strongest_match_counts(look: int, pixels: int, place: int, kind: int) -> None:
    training = prints([0xFFFFFF, 0], [10, 11], [20, 21])
    matches = between(prints([look], [pixels], [place]), training)
    assert matches.kind.tolist() == [kind]
    assert matches.other.tolist() == [-1 if kind == NONE else 1]


def test_a_shared_file_counts_even_if_it_cannot_be_read() -> None:
    one = prints([0], places=[5], unreadable=(0,))
    assert between(one, one).kind.tolist() == [SHARED]


def test_images_of_one_set_do_not_match_each_other() -> None:
    matches = between(prints([0, 0], [5, 5], first_place=10), prints([0xFFFF], [6]))
    assert matches.kind.tolist() == [NONE, NONE]


def test_indices_count_the_images_of_the_other_set_that_are_left_out() -> None:
    training = prints([0, 0, 0xFFFF, 1], unreadable=(0,), blank=(1,))
    matches = between(prints([0xF00000000, 1], [50, 51], first_place=10), training)
    assert matches.other.tolist() == [-1, 3]
