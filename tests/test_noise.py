"""Noise is normal, each image's own, and the same wherever and beside whatever it is drawn."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from recon.data.noise import add_noise, noise_seeds

GREY = torch.full((4, 3, 32, 24), 0.5)
SEEDS = noise_seeds(range(4), 0)


def test_noise_is_normal_with_the_deviation_asked_for() -> None:
    added = (add_noise(GREY, 0.1, SEEDS) - GREY).double().flatten().numpy()
    assert abs(added.mean()) < 4 * 0.1 / added.size**0.5
    assert added.std() == pytest.approx(0.1, rel=0.03)
    assert stats.kstest(added / 0.1, "norm").pvalue > 1e-3


def test_values_are_clamped_and_the_images_left_as_they_are() -> None:
    white = torch.ones(1, 1, 32, 32)
    noisy = add_noise(white, 0.3, [5])
    assert noisy.max() == 1
    assert noisy.min() < 0.7
    assert (noisy < 1).float().mean() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(white, torch.ones(1, 1, 32, 32))


def test_no_noise_gives_the_images_themselves() -> None:
    assert add_noise(GREY, 0.0, SEEDS) is GREY


@pytest.mark.parametrize("order", [[0], [3, 1], [2, 0, 1, 3]])
def test_the_noise_of_an_image_does_not_depend_on_the_rest_of_the_batch(order: list[int]) -> None:
    images = torch.rand(4, 1, 16, 20)
    whole = add_noise(images, 0.2, SEEDS)
    assert torch.equal(add_noise(images[order], 0.2, [SEEDS[i] for i in order]), whole[order])


def test_the_layout_in_memory_changes_nothing() -> None:
    images = torch.rand(2, 3, 16, 20)
    inner = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(add_noise(inner, 0.2, SEEDS[:2]), add_noise(images, 0.2, SEEDS[:2]))


def test_images_of_other_seeds_bear_independent_noise() -> None:
    drawn = add_noise(GREY, 0.05, SEEDS).flatten(1)
    apart = torch.corrcoef(drawn) - torch.eye(4)
    assert apart.abs().max() < 5 / drawn.shape[1] ** 0.5


@pytest.mark.parametrize("convert", [list, torch.tensor])
def test_seeds_are_a_list_or_a_tensor(convert: type) -> None:
    expected = add_noise(GREY, 0.1, tuple(SEEDS))
    assert torch.equal(add_noise(GREY, 0.1, convert(SEEDS)), expected)


def test_all_bits_of_a_seed_count() -> None:
    one: Tensor = GREY[:1]
    assert not torch.equal(add_noise(one, 0.1, [1]), add_noise(one, 0.1, [1 + 2**32]))


def test_the_random_state_of_the_run_is_left_alone() -> None:
    before = torch.get_rng_state()
    add_noise(GREY, 0.1, SEEDS)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_differ_by_place_and_by_every_part_of_the_key() -> None:
    keys = [(0,), (1,), (0, 1), (0, 1, 2), (0, 2, 1)]
    seeds = [seed for key in keys for seed in noise_seeds(range(1, 50), *key)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert noise_seeds(np.arange(3), 7) == noise_seeds([0, 1, 2], 7)


@pytest.mark.parametrize(
    ("sigma", "seeds", "rule"),
    [(-0.1, SEEDS, "sigma must be at least 0"), (0.1, [1, 2], "one for each of 4 images, got 2")],
)
def test_wrong_arguments_are_refused(sigma: float, seeds: list[int], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        add_noise(GREY, sigma, seeds)


@pytest.mark.gpu
def test_a_gpu_gets_the_noise_of_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    there = add_noise(GREY.cuda(), 0.1, SEEDS).cpu()
    assert torch.equal(there, add_noise(GREY, 0.1, SEEDS))
