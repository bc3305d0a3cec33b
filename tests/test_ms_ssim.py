from collections.abc import Callable, Iterator

import numpy as np
import pytest
import pytorch_msssim
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from recon.objectives.ms_ssim import SMALLEST, ms_ssim
from recon.objectives.ssim import _window

SIZE = (164, 176)  # Odd at the third scale, and even at all scales.
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(seed: int, *, size: tuple[int, int] = SIZE, count: int = 1, channels: int = 2) -> Tensor:
    return torch.rand((count, channels, *size), generator=random(seed))


def smooth(seed: int) -> Tensor:
    return functional.interpolate(noise(seed, size=(9, 11)), SIZE, mode="bicubic").clamp(0, 1)


def worse(images: Tensor, spread: float) -> Tensor:
    return (images + spread * torch.randn(images.shape, generator=random(9))).clamp(0, 1)


KINDS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "two noises": lambda: (noise(1), noise(2)),
    "two scenes": lambda: (smooth(1), smooth(2)),
    "a scene and its noisy copy": lambda: (worse(smooth(3), 0.1), smooth(3)),
    "a scene and its darker copy": lambda: (0.5 * smooth(4), smooth(4)),
    "a tile near white": lambda: (worse(0.98 + 0.01 * noise(5), 3e-3), 0.98 + 0.01 * noise(5)),
    "a constant and a scene": lambda: (torch.full((1, 2, *SIZE), 0.5), smooth(6)),
    "two constants": lambda: (torch.full((1, 2, *SIZE), 0.5), torch.full((1, 2, *SIZE), 0.6)),
}


def oracle(x: Tensor, y: Tensor) -> Tensor:
    """pytorch-msssim's in float64, (N,)."""
    value: Tensor = pytorch_msssim.ms_ssim(
        x.double(), y.double(), data_range=1.0, size_average=False
    )
    return value


def blurred(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    line /= line.sum()
    rows = np.apply_along_axis(np.convolve, 0, plane, line, "valid")
    return np.apply_along_axis(np.convolve, 1, rows, line, "valid")


def by_the_formula(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Equation 7 of one channel, written out in float64; edges must be even at every scale."""
    product = 1.0
    for scale, weight in enumerate(WEIGHTS):
        if scale > 0:
            x, y = ((p[::2, ::2] + p[1::2, ::2] + p[::2, 1::2] + p[1::2, 1::2]) / 4 for p in (x, y))
        mean_x, mean_y = blurred(x), blurred(y)
        variances = blurred(x * x) - mean_x**2 + blurred(y * y) - mean_y**2
        similarity = (2 * (blurred(x * y) - mean_x * mean_y) + 9e-4) / (variances + 9e-4)
        if scale == len(WEIGHTS) - 1:
            similarity *= (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
        product *= max(similarity.mean(), 0.0) ** weight
    return product


def gradient(measure: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    measure(x, y).sum().backward()
    assert x.grad is not None
    return x.grad


# The oracles


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_that_of_pytorch_msssim(kind: str) -> None:
    x, y = KINDS[kind]()
    assert torch.allclose(ms_ssim(x, y).double(), oracle(x, y), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(161, 161), (161, 200), (183, 165)])
def test_odd_edges_are_halved_as_pytorch_msssim_halves_them(size: tuple[int, int]) -> None:
    x, y = noise(1, size=size), noise(1, size=size).sqrt()
    assert torch.allclose(ms_ssim(x, y).double(), oracle(x, y), rtol=0, atol=1e-5)


def test_it_is_the_formula_written_out() -> None:
    x, y = (
        functional.interpolate(noise(seed, size=(9, 9), channels=1), (176, 192), mode="bilinear")
        for seed in (1, 2)
    )
    expected = by_the_formula(x[0, 0].double().numpy(), (0.6 * x + 0.4 * y)[0, 0].double().numpy())
    assert ms_ssim(x, 0.6 * x + 0.4 * y).item() == pytest.approx(expected, abs=1e-5)
    assert 0.1 < expected < 0.99


def test_gradients_are_those_of_pytorch_msssim_in_float64() -> None:
    x, y = KINDS["a scene and its noisy copy"]()
    expected = gradient(oracle, x.double(), y)
    error = (gradient(ms_ssim, x, y).double() - expected).abs().max()
    assert expected.abs().max() > 0
    assert error < 1e-3 * expected.abs().max()


# Properties


@pytest.mark.parametrize("seed", [1, 2])
def test_an_image_is_like_itself_to_degree_1(seed: int) -> None:
    for images in (noise(seed), smooth(seed), torch.full((1, 1, *SIZE), 0.5 * seed)):
        assert torch.allclose(ms_ssim(images, images), torch.ones(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_symmetric_and_between_0_and_1(kind: str) -> None:
    x, y = KINDS[kind]()
    value = ms_ssim(x, y)
    assert torch.allclose(value, ms_ssim(y, x), rtol=0, atol=1e-6)
    assert (value >= 0).all()
    assert (value <= 1 + 1e-6).all()


def test_two_constants_differ_by_the_luminance_of_the_coarsest_scale() -> None:
    expected = 0.983609**0.1333  # SSIM of 0.5 and 0.6, all of it luminance
    x, y = torch.full((1, 3, 176, 176), 0.5), torch.full((1, 3, 176, 176), 0.6)
    assert ms_ssim(x, y).item() == pytest.approx(expected, abs=1e-6)


def test_more_noise_is_less_alike() -> None:
    tile = smooth(1)
    values = [ms_ssim(worse(tile, spread), tile).item() for spread in (0.0, 0.02, 0.1, 0.5)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0] - 0.1


def test_each_image_has_its_own_value() -> None:
    x, y = noise(1, count=3), noise(2, count=3)
    alone = torch.cat([ms_ssim(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    assert torch.allclose(ms_ssim(x, y), alone, rtol=0, atol=1e-6)


# What is not alike at all


def test_an_image_and_its_inverse_are_0_alike_with_a_finite_gradient() -> None:
    x = smooth(1)
    assert oracle(x, 1 - x).item() == 0
    assert ms_ssim(x, 1 - x).item() == 0
    assert gradient(ms_ssim, x, 1 - x).isfinite().all()


def test_one_channel_without_likeness_leaves_the_other_its_gradient() -> None:
    x = smooth(1)
    y = torch.cat([1 - x[:, :1], worse(x[:, 1:], 0.1)], dim=1)
    slope = gradient(ms_ssim, x, y)
    assert slope.isfinite().all()
    assert slope[:, 1].abs().max() > 0


@pytest.mark.parametrize(("one", "other"), [(0.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_gradients_of_constants_are_finite(one: float, other: float) -> None:
    x, y = torch.full((1, 1, *SIZE), one), torch.full((1, 1, *SIZE), other)
    assert gradient(ms_ssim, x, y).isfinite().all()


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_left_for_float32(dtype: torch.dtype) -> None:
    x, y = (images.to(dtype) for images in KINDS["a tile near white"]())
    expected = oracle(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        value = ms_ssim(x, y)
    assert value.dtype == torch.float32
    assert torch.allclose(value.double(), expected, rtol=0, atol=1e-5)


def test_tf32_is_off_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    pool = functional.avg_pool2d

    def watch(*args: object, **kwargs: object) -> Tensor:
        seen.append(torch.backends.cudnn.allow_tf32)
        return pool(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(functional, "avg_pool2d", watch)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    ms_ssim(noise(1), noise(2))
    assert seen == [False] * 8


@pytest.fixture
def no_window() -> Iterator[None]:
    _window.cache_clear()
    yield
    _window.cache_clear()


@pytest.mark.usefixtures("no_window")
def test_a_first_call_without_gradients_does_not_spoil_the_next_one() -> None:
    x, y = smooth(1), smooth(2)
    with torch.inference_mode():
        ms_ssim(x, y)
    assert gradient(ms_ssim, x, y).isfinite().all()


# Shapes


def test_the_smallest_edge_is_161_pixels() -> None:
    assert SMALLEST == 161
    assert ms_ssim(noise(1, size=(161, 161)), noise(2, size=(161, 161))).shape == (1,)


@pytest.mark.parametrize("size", [(160, 200), (200, 160), (16, 16)])
def test_an_edge_under_161_pixels_is_an_error(size: tuple[int, int]) -> None:
    images = torch.zeros(1, 3, *size)
    with pytest.raises(ValueError, match=r"at least 161 pixels for MS-SSIM, got \(\d+, \d+\)$"):
        ms_ssim(images, images)


@pytest.mark.parametrize("other", [(1, 2, *SIZE), (2, 1, *SIZE), (2, *SIZE)])
def test_shapes_that_differ_or_lack_a_batch_are_an_error(other: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one shape"):
        ms_ssim(torch.zeros(other), noise(1, count=2))


def test_the_images_are_left_as_they_are() -> None:
    x, y = smooth(1), smooth(2)
    copies = x.clone(), y.clone()
    ms_ssim(x, y)
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])
