from pathlib import PurePosixPath

import numpy as np
import pytest

from recon.data.splits import by_group, split_by_group

SEEDS = range(20)


def tiles(slides: int, each: int = 10) -> list[str]:
    return [f"slide_{s:02d}/tile_{t:02d}.png" for s in range(slides) for t in range(each)]


def folders(paths: list[str], indices: np.ndarray) -> set[str]:
    return {str(PurePosixPath(paths[index]).parent) for index in indices}


# What always holds


@pytest.mark.parametrize("group", ["folder", "image", r"slide_(\d)", r"tile_\d\d"])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.99])
def test_every_image_is_on_exactly_one_side_in_rising_order(group: str, fraction: float) -> None:
    paths = tiles(12, 5)
    kept, aside = split_by_group(paths, fraction, group, seed=0)
    assert sorted([*kept.tolist(), *aside.tolist()]) == list(range(60))
    assert kept.tolist() == sorted(kept.tolist())
    assert aside.tolist() == sorted(aside.tolist())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_folder_is_never_on_both_sides(seed: int) -> None:
    paths = tiles(9, 4)
    kept, aside = split_by_group(paths, 0.3, "folder", seed)
    assert len(aside) > 0
    assert folders(paths, kept) & folders(paths, aside) == set()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_patient_is_never_on_both_sides_whatever_the_folders(seed: int) -> None:
    paths = [f"{label}/patient{p}_{t}.png" for label in "ab" for p in range(8) for t in range(3)]
    kept, aside = split_by_group(paths, 0.25, r"patient(\d+)_", seed)
    sides = [{paths[i].split("patient")[1].split("_")[0] for i in side} for side in (kept, aside)]
    assert len(aside) == 12
    assert sides[0] & sides[1] == set()


# How many


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("group", ["folder", "image"])
def test_the_part_set_aside_is_what_was_asked_for_where_groups_allow(
    group: str, fraction: float
) -> None:
    for seed in SEEDS:
        _, aside = split_by_group(tiles(20), fraction, group, seed)
        assert len(aside) == 200 * fraction


def test_the_part_is_as_near_as_whole_groups_come() -> None:
    sizes = [1, 2, 3, 5, 8, 13, 21]
    paths = [f"{g}/{i}.png" for g, size in enumerate(sizes) for i in range(size)]
    for seed in SEEDS:
        _, aside = split_by_group(paths, 0.2, "folder", seed)
        assert abs(len(aside) - 0.2 * len(paths)) <= 0.2 * len(paths)


def test_something_is_set_aside_even_where_every_group_is_too_large() -> None:
    paths = [f"{g}/{i}.png" for g, size in enumerate((30, 20, 40)) for i in range(size)]
    for seed in SEEDS:
        kept, aside = split_by_group(paths, 0.05, "folder", seed)
        assert folders(paths, aside) == {"1"}
        assert len(kept) == 70


@pytest.mark.parametrize("fraction", [0.75, 0.9, 0.999])
def test_something_is_left_to_train_on_whatever_the_fraction(fraction: float) -> None:
    for seed in SEEDS:
        kept, aside = split_by_group(tiles(2), fraction, "folder", seed)
        assert (len(kept), len(aside)) == (10, 10)


def test_a_fraction_of_0_sets_nothing_aside() -> None:
    kept, aside = split_by_group(tiles(3), 0.0, "folder", seed=0)
    assert kept.tolist() == list(range(30))
    assert aside.tolist() == []


@pytest.mark.parametrize("group", ["folder", r"^(slide)"])
def test_one_group_gives_no_validation(group: str) -> None:
    kept, aside = split_by_group(tiles(1), 0.5, group, seed=0)
    assert kept.tolist() == list(range(10))
    assert aside.tolist() == []


def test_a_single_image_is_trained_on() -> None:
    kept, aside = split_by_group(["a.png"], 0.5, "image", seed=0)
    assert (kept.tolist(), aside.tolist()) == ([0], [])


# Which


def test_the_seed_decides_and_nothing_else() -> None:
    paths = tiles(20)
    first = split_by_group(paths, 0.2, "folder", seed=3)[1].tolist()
    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    assert split_by_group(paths, 0.2, "folder", seed=3)[1].tolist() == first
    chosen = {tuple(split_by_group(paths, 0.2, "folder", seed)[1].tolist()) for seed in SEEDS}
    assert len(chosen) > 10


@pytest.mark.parametrize("group", ["folder", "image", r"slide_(\d\d)"])
def test_the_choice_does_not_depend_on_the_order_of_the_files(group: str) -> None:
    paths = tiles(10, 3)
    for seed in SEEDS:
        mixed = [paths[i] for i in np.random.default_rng(seed).permutation(len(paths))]
        one, other = (
            {listing[i] for i in split_by_group(listing, 0.3, group, seed)[1]}
            for listing in (paths, mixed)
        )
        assert one == other


# Groups


def test_folders_of_one_name_are_different_groups_where_they_lie_apart() -> None:
    paths = ["a/x/1.png", "b/x/1.png", "a/x/2.png", "1.png"]
    assert [g.tolist() for g in by_group(paths, "folder")] == [[3], [0, 2], [1]]


def test_every_image_is_a_group_of_its_own() -> None:
    assert [g.tolist() for g in by_group(["b", "a"], "image")] == [[1], [0]]


@pytest.mark.parametrize(
    ("expression", "groups"),
    [
        (r"s(\d)_[ab]", [[0, 2], [1]]),
        (r"s\d", [[0, 2], [1]]),
        (r"_(?:a|b)", [[0, 1], [2]]),
        (r"(b)?\.png", [[0, 1], [2]]),
    ],
    ids=["first group", "whole match", "group that is not kept", "group that is empty"],
)
def test_an_expression_names_the_group(expression: str, groups: list[list[int]]) -> None:
    paths = ["s1_a.png", "s2_a.png", "s1_b.png"]
    assert [g.tolist() for g in by_group(paths, expression)] == groups


def test_an_expression_that_does_not_match_a_path_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"validation_group must match .* for 'other/1.png'"):
        split_by_group([*tiles(2), "other/1.png"], 0.1, r"slide_(\d+)", seed=0)
