from collections.abc import Callable, Iterator
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn import functional

from recon.objectives.metrics import image_metrics
from recon.objectives.ssim import WINDOW, _window, full_precision, ssim

TILE = Path(__file__).parents[1] / "input_images/test"
SHAPE = (2, 3, 40, 32)
AS_LOSS, AS_METRIC = 1e-4, 1e-5
Make = Callable[[], Tensor]


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def around(level: float, spread: float, seed: int) -> Tensor:
    noise = torch.randn(SHAPE, generator=random(seed))
    return (level + spread * noise).clamp(0, 1)


def constant(level: float) -> Tensor:
    return torch.full(SHAPE, level)


def checkerboard(edge: int) -> Tensor:
    rows, columns = torch.arange(SHAPE[2])[:, None] // edge, torch.arange(SHAPE[3]) // edge
    return ((rows + columns) % 2).float().expand(SHAPE).contiguous()


def smooth(turns: float) -> Tensor:
    rows, columns = torch.arange(SHAPE[2])[:, None] / SHAPE[2], torch.arange(SHAPE[3]) / SHAPE[3]
    wave = 0.5 + 0.5 * torch.sin(2 * torch.pi * turns * (rows + 0.3 * columns))
    return wave.expand(SHAPE).contiguous()


def photograph() -> Tensor:
    pixels = np.asarray(Image.open(sorted(TILE.rglob("*.png"))[0]).convert("RGB"))
    tile = torch.from_numpy(pixels[100:140, 100:132].transpose(2, 0, 1) / np.float32(255))
    return torch.stack([tile, tile.flip(-1)])


KINDS: dict[str, Make] = {
    "near white": lambda: around(0.98, 1e-3, 1),
    "near white, again": lambda: around(0.98, 1e-3, 2),
    "near black": lambda: around(0.02, 1e-3, 3),
    "near grey": lambda: around(0.5, 1e-3, 4),
    "white": lambda: constant(1.0),
    "black": lambda: constant(0.0),
    "grey": lambda: constant(0.6),
    "noise": lambda: torch.rand(SHAPE, generator=random(5)),
    "fine checkerboard": lambda: checkerboard(1),
    "coarse checkerboard": lambda: checkerboard(8),
    "smooth": lambda: smooth(1.0),
    "smooth, again": lambda: smooth(1.1),
    "photograph": photograph,
}
PAIRS = list(product(KINDS, KINDS))


def oracle(one: Tensor, other: Tensor) -> Tensor:
    """scikit-image's in float64, (N,)."""
    arrays = (images.double().permute(0, 2, 3, 1).numpy() for images in (one, other))
    values = [
        structural_similarity(
            x,
            y,
            data_range=1.0,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for x, y in zip(*arrays, strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64)


def by_the_formula(x: Tensor, y: Tensor) -> Tensor:
    """Equation 13 written out in float64, with a window of two dimensions, (N,)."""
    line = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2

    def local(images: Tensor) -> Tensor:
        planes = images.flatten(0, 1)[:, None]
        return functional.conv2d(planes, window[None, None]).unflatten(0, images.shape[:2])

    x, y = x.double(), y.double()
    mean_x, mean_y = local(x), local(y)
    variance_x, variance_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
    below = (mean_x**2 + mean_y**2 + 1e-4) * (variance_x + variance_y + 9e-4)
    return (above / below).flatten(1).mean(1)


def gradient(measure: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    measure(x, y).sum().backward()
    assert x.grad is not None
    return x.grad


# The oracle


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_it_is_scikit_images_as_a_loss_and_as_a_metric(one: str, other: str) -> None:
    images = KINDS[one](), KINDS[other]()
    expected = oracle(*images)
    assert (ssim(*images).double() - expected).abs().max() < AS_LOSS
    assert (image_metrics(*images).ssim - expected).abs().max() < AS_METRIC


@pytest.mark.parametrize(("one", "other"), [("noise", "smooth"), ("white", "near white")])
def test_the_formula_written_out_agrees_with_scikit_image(one: str, other: str) -> None:
    images = KINDS[one](), KINDS[other]()
    assert torch.allclose(by_the_formula(*images), oracle(*images), rtol=0, atol=1e-12)


def test_a_slight_error_on_a_near_white_tile_is_measured_to_five_digits() -> None:
    tile = around(0.98, 1e-3, 1)
    worse = (tile + 1e-3 * torch.randn(SHAPE, generator=random(6))).clamp(0, 1)
    assert (ssim(worse, tile) - oracle(worse, tile)).abs().max() < 1e-6


# Half precision


@pytest.mark.parametrize("other", ["near white, again", "noise", "photograph", "white"])
def test_autocast_and_channels_last_change_nothing(other: str) -> None:
    images = [KINDS[name]() for name in ("near white", other)]
    images = [image.contiguous(memory_format=torch.channels_last) for image in images]
    expected = oracle(*images)
    with torch.autocast("cpu", torch.bfloat16):
        value = ssim(*images)
        metric = image_metrics(*images).ssim
    assert value.dtype == torch.float32
    assert (value - expected).abs().max() < AS_METRIC
    assert (metric - expected).abs().max() < AS_METRIC


def test_gradients_under_autocast_are_those_without() -> None:
    x, y = KINDS["near white"](), KINDS["near white, again"]()
    with torch.autocast("cpu", torch.bfloat16):
        within = gradient(ssim, x, y)
    assert torch.equal(within, gradient(ssim, x, y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_of_half_precision_are_measured_in_float32(dtype: torch.dtype) -> None:
    x, y = (KINDS[name]().to(dtype) for name in ("noise", "photograph"))
    value = ssim(x, y)
    assert value.dtype == torch.float32
    assert (value - oracle(x, y)).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(11, 11), (42, 43), (64, 50), (11, 80)])
def test_float64_images_are_measured_to_twelve_digits_even_beside_pure_white(
    size: tuple[int, int],
) -> None:
    y = torch.zeros(2, 3, *size, dtype=torch.float64)
    y[..., size[1] // 2 :] = 1
    x = 0.9 * y + 0.03
    value = ssim(x, y)
    assert value.dtype == torch.float64
    assert (value - oracle(x, y)).abs().max() < 1e-12


@pytest.fixture
def tf32() -> Iterator[None]:
    """Products rounded to TF32, where a GPU can."""
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.usefixtures("tf32")
def test_full_precision_switches_autocast_and_tf32_off_and_back_on() -> None:
    settings, products = torch.backends.cudnn, torch.backends.cuda.matmul
    with torch.autocast("cpu", torch.bfloat16):
        before = settings.allow_tf32, settings.benchmark, settings.deterministic, settings.enabled
        with full_precision(torch.device("cpu")):
            assert not torch.is_autocast_enabled("cpu")
            assert not settings.allow_tf32
            assert not products.allow_tf32
            assert (settings.benchmark, settings.deterministic, settings.enabled) == before[1:]
        assert torch.is_autocast_enabled("cpu")
    after = settings.allow_tf32, settings.benchmark, settings.deterministic, settings.enabled
    assert after == before
    assert products.allow_tf32


# Properties


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_like_itself_to_degree_1(kind: str) -> None:
    images = KINDS[kind]()
    assert torch.allclose(ssim(images, images), torch.ones(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("one", "other"), PAIRS[:: len(KINDS) // 2])
def test_it_is_symmetric_and_at_most_1_in_size(one: str, other: str) -> None:
    x, y = KINDS[one](), KINDS[other]()
    assert torch.allclose(ssim(x, y), ssim(y, x), rtol=0, atol=1e-6)
    assert ssim(x, y).abs().max() <= 1 + 1e-6


def test_a_binary_image_and_its_inverse_are_near_minus_1() -> None:
    images = (torch.rand(SHAPE, generator=random(7)) > 0.5).float()
    assert (ssim(images, 1 - images) < -0.9).all()


def test_two_constants_differ_by_their_luminance_alone() -> None:
    expected = (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4)
    assert expected == pytest.approx(0.983609, abs=1e-6)
    value = ssim(constant(0.5), constant(0.6))
    assert torch.allclose(value, torch.full((2,), expected), rtol=0, atol=1e-6)


def test_more_noise_is_less_alike() -> None:
    tile, noise = photograph(), torch.randn(SHAPE, generator=random(8))
    values = [ssim((tile + s * noise).clamp(0, 1), tile) for s in (0.0, 0.01, 0.05, 0.2, 1.0)]
    assert all((worse < better).all() for better, worse in pairwise(values))


def test_the_constants_are_those_of_the_paper() -> None:
    assert WINDOW == 11
    assert _window(3).shape == (3, 1, 1, 11)
    assert torch.allclose(_window(3).double().sum(-1), torch.ones(3, 1, 1).double(), atol=1e-7)


# Gradients


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("noise", "photograph"),
        ("photograph", "smooth"),
        ("near white", "near white, again"),
        ("grey", "photograph"),
        ("white", "near grey"),
        ("fine checkerboard", "smooth"),
    ],
)
def test_gradients_are_those_of_the_formula_in_float64(one: str, other: str) -> None:
    x, y = KINDS[one](), KINDS[other]()
    expected = gradient(by_the_formula, x.double(), y)
    error = (gradient(ssim, x, y).double() - expected).abs().max()
    assert expected.abs().max() > 0
    assert error < 1e-3 * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_equal_images_is_finite_and_next_to_nothing(kind: str) -> None:
    images = KINDS[kind]()
    assert gradient(ssim, images, images).abs().max() < 1e-4


@pytest.mark.parametrize(("one", "other"), [("black", "black"), ("black", "white")])
def test_gradients_of_constants_are_finite(one: str, other: str) -> None:
    assert gradient(ssim, KINDS[one](), KINDS[other]()).isfinite().all()


# Shapes


def test_each_image_has_its_own_value() -> None:
    x, y = KINDS["photograph"](), KINDS["noise"]()
    together = ssim(torch.cat([x, y]), torch.cat([y, y]))
    assert together.shape == (4,)
    alone = torch.cat([ssim(x[:1], y[:1]), ssim(x[1:], y[1:]), ssim(y[:1], y[:1])])
    assert torch.allclose(together[:3], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (2, 1, 32, 32), (1, 1, 11, 11), (3, 3, 11, 50)])
def test_one_image_one_channel_odd_shapes_and_exactly_11_pixels(shape: tuple[int, ...]) -> None:
    x, y = torch.rand(shape, generator=random(1)), torch.rand(shape, generator=random(2))
    value = ssim(x, y)
    assert value.shape == shape[:1]
    assert torch.allclose(value.double(), oracle(x, y), rtol=0, atol=1e-5)


@pytest.mark.parametrize("edges", [(10, 64), (64, 10), (10, 10), (1, 1)])
def test_an_edge_under_11_pixels_is_an_error(edges: tuple[int, int]) -> None:
    images = torch.zeros(1, 3, *edges)
    for measure in (ssim, image_metrics):
        with pytest.raises(ValueError, match=r"at least 11 pixels .* got \(\d+, \d+\)"):
            measure(images, images)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((2, 3, 16, 16), (1, 3, 16, 16)),
        ((2, 3, 16, 16), (2, 1, 16, 16)),
        ((2, 3, 16, 16), (2, 3, 16, 17)),
        ((3, 16, 16), (3, 16, 16)),
    ],
)
def test_shapes_that_differ_or_lack_a_batch_are_an_error(
    one: tuple[int, ...], other: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="one shape"):
        ssim(torch.zeros(one), torch.zeros(other))


# What one call leaves for the next


@pytest.fixture
def no_window() -> Iterator[None]:
    _window.cache_clear()
    yield
    _window.cache_clear()


@pytest.mark.usefixtures("no_window")
def test_a_first_call_without_gradients_does_not_spoil_the_next_one() -> None:
    x, y = KINDS["noise"](), KINDS["smooth"]()
    with torch.inference_mode():
        ssim(x, y)
    assert gradient(ssim, x, y).isfinite().all()


def test_the_images_are_left_as_they_are() -> None:
    x, y = KINDS["noise"](), KINDS["smooth"]()
    copies = x.clone(), y.clone()
    ssim(x, y)
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])
