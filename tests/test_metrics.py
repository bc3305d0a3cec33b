import math

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio
from torch import Tensor

from recon.objectives.metrics import ImageMetrics, image_metrics


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pair(count: int = 3) -> tuple[Tensor, Tensor]:
    return random_images(count, 3, 16, 12, seed=1), random_images(count, 3, 16, 12, seed=2)


def test_mse_and_psnr_are_scikit_images() -> None:
    images = pair()
    measured = image_metrics(*images)
    arrays = [image.double().numpy() for image in images]
    for index, (x, y) in enumerate(zip(*arrays, strict=True)):
        assert measured.mse[index] == pytest.approx(mean_squared_error(x, y), rel=1e-12)
        expected = peak_signal_noise_ratio(y, x, data_range=1.0)
        assert measured.psnr[index] == pytest.approx(expected, rel=1e-12)


def test_every_image_has_its_own_values_in_float64() -> None:
    measured = image_metrics(*pair(3))
    for name in ImageMetrics._fields:
        values = getattr(measured, name)
        assert values.shape == (3,)
        assert values.dtype == torch.float64


def test_a_known_difference_has_its_known_values() -> None:
    measured = image_metrics(torch.full((1, 3, 16, 16), 0.25), torch.full((1, 3, 16, 16), 0.75))
    assert measured.mse.item() == 0.25
    assert measured.psnr.item() == pytest.approx(6.0206, abs=1e-4)


def test_identical_images_have_an_infinite_psnr() -> None:
    images = pair()[0]
    measured = image_metrics(images, images.clone())
    assert measured.mse.tolist() == [0.0] * 3
    assert measured.psnr.tolist() == [math.inf] * 3
    assert torch.allclose(measured.ssim, torch.ones(3).double(), rtol=0, atol=1e-6)


def test_reconstructions_are_clamped_to_the_unit_range() -> None:
    images = random_images(2, 3, 16, 16)
    beyond = images * 3 - 1
    measured = image_metrics(beyond, images)
    expected = image_metrics(beyond.clamp(0, 1), images)
    assert (beyond.min() < 0) & (beyond.max() > 1)
    for name in ImageMetrics._fields:
        assert torch.equal(getattr(measured, name), getattr(expected, name))


def test_nothing_is_rounded_to_8_bits() -> None:
    target = torch.full((1, 3, 16, 16), 0.5)
    measured = image_metrics(target + 1e-4, target)
    assert measured.mse.item() == pytest.approx(1e-8, rel=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_values_do_not_depend_on_the_batch(batch_size: int) -> None:
    images = pair(7)
    together = image_metrics(*images)
    parts = [
        image_metrics(*(image[start : start + batch_size] for image in images))
        for start in range(0, 7, batch_size)
    ]
    for name in ImageMetrics._fields:
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(together, name))


def test_autocast_changes_nothing() -> None:
    images = pair()
    with torch.autocast("cpu", torch.bfloat16):
        within = image_metrics(*images)
    for one, other in zip(within, image_metrics(*images), strict=True):
        assert torch.equal(one, other)


def test_a_reconstruction_in_half_precision_is_measured_as_it_is() -> None:
    reconstruction, target = pair()
    half = reconstruction.bfloat16()
    expected = ((half.double() - target.double()) ** 2).flatten(1).mean(1)
    assert torch.allclose(image_metrics(half, target).mse, expected, rtol=1e-12, atol=0)


def test_no_gradient_is_kept_and_the_images_are_left_as_they_are() -> None:
    reconstruction, target = pair()
    given = (reconstruction * 2).requires_grad_()
    measured = image_metrics(given, target)
    assert not any(values.requires_grad for values in measured)
    assert np.array_equal(given.detach().numpy(), (reconstruction * 2).numpy())


def test_shapes_that_differ_are_an_error() -> None:
    with pytest.raises(ValueError, match="one shape"):
        image_metrics(torch.zeros(2, 3, 16, 16), torch.zeros(1, 3, 16, 16))
