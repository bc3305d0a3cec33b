"""Which images an epoch draws."""

import numpy as np

from recon.data.sampling import draw_epoch


def test_one_group_draws_every_image_once() -> None:
    drawn = draw_epoch([np.arange(10)], 10, seed=0, epoch=3)
    assert sorted(drawn) == list(range(10))


def test_epochs_differ_and_seeds_differ_but_the_same_place_draws_the_same() -> None:
    groups = [np.arange(50)]
    first = draw_epoch(groups, 50, seed=0, epoch=0)
    np.testing.assert_array_equal(first, draw_epoch(groups, 50, seed=0, epoch=0))
    assert not np.array_equal(first, draw_epoch(groups, 50, seed=0, epoch=1))
    assert not np.array_equal(first, draw_epoch(groups, 50, seed=1, epoch=0))


def test_short_epochs_go_through_all_images_before_any_comes_again() -> None:
    epochs = [draw_epoch([np.arange(12)], 4, seed=5, epoch=e) for e in range(6)]
    assert sorted(np.concatenate(epochs[:3])) == list(range(12))
    assert sorted(np.concatenate(epochs[3:])) == list(range(12))


def test_an_epoch_longer_than_the_data_repeats_each_image_as_often_as_it_must() -> None:
    counts = np.bincount(draw_epoch([np.arange(4)], 10, seed=0, epoch=0), minlength=4)
    assert counts.sum() == 10
    assert counts.min() >= 2
    assert counts.max() <= 3


def test_groups_are_drawn_equally_often_however_many_images_they_hold() -> None:
    groups = [np.arange(3), np.arange(3, 103), np.arange(103, 110)]
    drawn = draw_epoch(groups, 60, seed=0, epoch=2)
    assert [int(np.isin(drawn, group).sum()) for group in groups] == [20, 20, 20]


def test_groups_of_an_epoch_are_mixed() -> None:
    drawn = draw_epoch([np.arange(50), np.arange(50, 100)], 100, seed=0, epoch=0)
    assert 10 < int((drawn[:50] < 50).sum()) < 40


def test_groups_take_turns_where_an_epoch_has_fewer_images_than_there_are_groups() -> None:
    groups = [np.arange(3 * number, 3 * number + 3) for number in range(8)]
    epochs = [draw_epoch(groups, 5, seed=0, epoch=epoch) for epoch in range(24)]
    assert all(len(set(drawn // 3)) == 5 for drawn in epochs)
    assert np.bincount(np.concatenate(epochs), minlength=24).tolist() == [5] * 24


def test_shares_differ_by_one_at_most_in_every_epoch() -> None:
    groups = [np.arange(number, number + 1) for number in range(3)]
    for epoch in range(7):
        counts = np.bincount(draw_epoch(groups, 10, seed=1, epoch=epoch), minlength=3)
        assert sorted(counts.tolist()) == [3, 3, 4]
