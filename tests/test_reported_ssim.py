"""The SSIM that is reported is that of float64 to five digits, whatever the image."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor

from recon.objectives import reported_ssim as module
from recon.objectives.reported_ssim import reported_ssim
from recon.objectives.ssim import ssim

TILES = sorted((Path(__file__).parents[1] / "input_images/test").rglob("*.png"))
EDGE = 60
LIMIT = 1e-5


def rand(seed: int) -> Tensor:
    return torch.rand(1, 3, EDGE, EDGE, generator=torch.Generator().manual_seed(seed))


def lines(period: int, height: float = 1.0) -> Tensor:
    images = torch.zeros(1, 3, EDGE, EDGE)
    images[..., ::period] = height
    return images


def squares(edge: int) -> Tensor:
    coarse = (rand(edge)[..., : -(-EDGE // edge), : -(-EDGE // edge)] > 0.5).float()
    return coarse.repeat_interleave(edge, 2).repeat_interleave(edge, 3)[..., :EDGE, :EDGE]


def tile() -> Tensor:
    pixels = np.asarray(Image.open(TILES[0]).convert("RGB"))[:EDGE, :EDGE]
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None] / np.float32(255))


KINDS = {
    "tile": tile(),
    "noise": rand(0),
    "near white": 0.98 + 1e-3 * rand(1),
    "white": torch.ones(1, 3, EDGE, EDGE),
    "black": torch.zeros(1, 3, EDGE, EDGE),
    "lines beside black": lines(20),
    "faint lines beside black": lines(26, 0.4),
    "lines beside white": 1 - lines(13),
    "squares": squares(24),
    "greyer squares": squares(24) * 0.93 + 0.04,
    "half black, half white": torch.cat([lines(1), lines(EDGE, 0.0)], 3)[..., ::2],
}


def oracle(x: Tensor, y: Tensor) -> float:
    arrays = (images[0].double().permute(1, 2, 0).numpy() for images in (x, y))
    return float(
        structural_similarity(
            *arrays,
            data_range=1.0,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


@pytest.mark.parametrize(("one", "other"), [*product(KINDS, KINDS)])
def test_it_is_scikit_images_to_five_digits(one: str, other: str) -> None:
    value = reported_ssim(KINDS[one], KINDS[other])
    assert value.dtype == torch.float64
    assert abs(value.item() - oracle(KINDS[one], KINDS[other])) < LIMIT


def test_the_error_in_float32_is_within_what_is_reckoned_with() -> None:
    """With a third to spare, over patterns where rounding gathers and not only those above."""
    generator = torch.Generator().manual_seed(1)

    def pattern() -> Tensor:
        level, line, period, start = torch.rand(4, generator=generator).tolist()
        images = torch.full((1, 48, 48), round(level, 1))
        images[..., int(start * 10) :: int(period * 30) + 5] = line
        return images

    for _ in range(100):
        x, y = pattern(), pattern()
        value, spread = module._compare_blocks(x, y)
        error = abs(float(value - ssim(x[None].double(), y[None].double())))
        assert error < module.UNITS * spread / 1.5


def test_an_image_that_rounding_may_spoil_is_computed_in_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def exactly(x: Tensor, y: Tensor) -> Tensor:
        asked.append(x.dtype)
        return ssim(x, y)

    monkeypatch.setattr(module, "ssim", exactly)
    images = torch.cat([KINDS["tile"], KINDS["squares"], KINDS["noise"]])
    others = torch.cat([KINDS["tile"] * 0.9, KINDS["white"], KINDS["noise"] * 0.9])
    reported_ssim(others, images)
    assert asked == [torch.float64]


def test_nan_is_not_hidden() -> None:
    images = rand(0)
    images[0, 0, 30, 30] = float("nan")
    assert reported_ssim(images, rand(1)).isnan().all()


@pytest.mark.parametrize("size", [(11, 11), (11, 40), (26, 27), (43, 58), (1000, 12)])
def test_every_size_is_covered_without_what_pads_it(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.rand(2, 1, 2, *size, generator=generator)
    y = 0.5 * (x + y)
    assert abs(reported_ssim(x, y).item() - ssim(x.double(), y.double()).item()) < 1e-6


def test_values_do_not_depend_on_the_batch() -> None:
    x, y = torch.cat([rand(i) for i in range(5)]), torch.cat([rand(i) for i in range(5, 10)])
    one_by_one = [reported_ssim(x[i : i + 1], y[i : i + 1]) for i in range(5)]
    assert torch.equal(reported_ssim(x, y), torch.cat(one_by_one))


@pytest.mark.parametrize("size", [(256, 256), (181, 90)])
def test_no_bit_depends_on_the_number_of_threads(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 4, 3, *size, generator=generator)
    before, values = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            values.append(reported_ssim(one, other).tolist())
    finally:
        torch.set_num_threads(before)
    assert all(value == values[0] for value in values)


def test_float64_images_are_measured_as_they_are() -> None:
    x, y = rand(0).double(), rand(1).double()
    assert torch.equal(reported_ssim(x, y), ssim(x, y))


def test_no_images_have_no_values() -> None:
    assert reported_ssim(torch.zeros(0, 3, 16, 16), torch.zeros(0, 3, 16, 16)).shape == (0,)


@pytest.mark.gpu
def test_a_gpu_measures_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    x, y = KINDS["tile"], KINDS["noise"]
    there = reported_ssim(x.cuda(), y.cuda()).item()
    assert abs(there - oracle(x, y)) < LIMIT
