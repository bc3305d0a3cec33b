import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import color
from torch import Tensor
from torchvision.transforms import functional as vision

from recon.data.appearance import (
    MIN_TRANSMITTANCE,
    colour_maps,
    gaussian_kernels,
    perturb_stain,
    stain_maps,
)
from recon.data.augment import augment, pixel_maps, warp
from recon.data.ranges import NO_AUGMENTATION, AugmentationRanges, draw
from recon.errors import UserError

EVERYTHING = AugmentationRanges(stain=0.2)
GEOMETRY = replace(
    NO_AUGMENTATION,
    rotation=45.0,
    horizontal_flip=0.5,
    vertical_flip=0.5,
    affine_rotation=10.0,
    translate=0.1,
    scale=(0.9, 1.1),
    shear=5.0,
)


def noise(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(7))


def smooth(height: int, width: int) -> Tensor:
    """One image without jumps, so that sub-pixel differences stay small: (1, 3, H, W)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    planes = [torch.sin(rows / 9 + i) * torch.cos(columns / 7 - i) for i in range(3)]
    return torch.stack(planes)[None] * 0.4 + 0.5


def apply_affine(images: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("nij,njhw->nihw", matrix.float(), images)


# The whole


@pytest.mark.parametrize("channels", [1, 3])
def test_everything_at_once_keeps_shape_range_and_type(channels: int) -> None:
    images = noise(5, channels, 48, 64)
    result = augment(images, EVERYTHING, seed=3)
    assert result.shape == images.shape
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    assert 0 <= result.min() <= result.max() <= 1
    assert not torch.equal(result, images)


def test_a_batch_of_one_in_channels_last_equals_the_contiguous_one() -> None:
    image = noise(1, 3, 33, 47)
    other = image.contiguous(memory_format=torch.channels_last)
    blur = replace(NO_AUGMENTATION, blur_kernel=5, blur_sigma=(0.1, 2.0))
    for ranges in (EVERYTHING, NO_AUGMENTATION, blur):
        result = augment(other, ranges, seed=3)
        assert result.is_contiguous()
        assert torch.equal(result, augment(image, ranges, seed=3))


@pytest.mark.parametrize("channels", [1, 3])
def test_all_ranges_zero_is_the_identity(channels: int) -> None:
    images = noise(3, channels, 20, 30)
    assert torch.equal(augment(images, NO_AUGMENTATION, seed=0), images)


def test_the_given_images_are_not_changed() -> None:
    images = noise(3, 3, 32, 32)
    before = images.clone()
    for ranges in (EVERYTHING, replace(NO_AUGMENTATION, stain=0.2), GEOMETRY):
        augment(images, ranges, seed=0)
        assert torch.equal(images, before)


def test_equal_images_in_one_batch_come_out_different() -> None:
    images = noise(1, 3, 32, 32).repeat(4, 1, 1, 1)
    parts = {
        "rotation": 45.0,
        "translate": 0.1,
        "scale": (0.9, 1.1),
        "shear": 5.0,
        "affine_rotation": 10.0,
        "brightness": 0.2,
        "contrast": 0.2,
        "saturation": 0.2,
        "hue": 0.1,
        "stain": 0.2,
    }
    changes: list[dict[str, object]] = [{name: value} for name, value in parts.items()]
    for change in [*changes, {"blur_kernel": 5, "blur_sigma": (0.1, 2.0)}]:
        result = augment(images, replace(NO_AUGMENTATION, **change), seed=1)  # type: ignore[arg-type]
        for first in range(4):
            for second in range(first):
                assert not torch.equal(result[first], result[second]), change


def test_the_seed_alone_decides() -> None:
    images = noise(4, 3, 32, 32)
    result = augment(images, EVERYTHING, seed=11)
    assert torch.equal(result, augment(images, EVERYTHING, seed=11))
    for other in (12, 11 + 2**32, 11 + 2**33):
        assert not torch.equal(result, augment(images, EVERYTHING, seed=other))


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    images = noise(4, 3, 32, 32)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augment(images, EVERYTHING, seed=11)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(first, augment(images, EVERYTHING, seed=11))


def test_an_image_is_augmented_alike_in_a_longer_batch() -> None:
    images = noise(6, 3, 32, 32)
    long = augment(images, EVERYTHING, seed=5)
    torch.testing.assert_close(augment(images[:2], EVERYTHING, seed=5), long[:2])


def test_switching_one_part_on_leaves_the_draws_of_the_others() -> None:
    images = noise(4, 3, 32, 32)
    plain = augment(images, GEOMETRY, seed=5)
    blurred = augment(images, replace(GEOMETRY, brightness=1e-9), seed=5)
    torch.testing.assert_close(plain, blurred)


def test_no_gradient_is_recorded() -> None:
    images = noise(2, 3, 32, 32).requires_grad_()
    assert not augment(images, EVERYTHING, seed=5).requires_grad


def test_autocast_changes_no_bit() -> None:
    images = noise(2, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = augment(images, EVERYTHING, seed=5)
    assert torch.equal(result, augment(images, EVERYTHING, seed=5))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_images_without_waiting_and_in_spite_of_tf32() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images = noise(4, 3, 64, 48)
    there = images.cuda()
    mode, precision = torch.cuda.get_sync_debug_mode(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = augment(there, EVERYTHING, seed=5)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
        torch.set_float32_matmul_precision(precision)
    torch.testing.assert_close(result.cpu(), augment(images, EVERYTHING, seed=5), atol=2e-5, rtol=0)


# Geometry


def test_flips_are_exact_and_all_four_kinds_occur() -> None:
    images = noise(40, 3, 15, 22)
    result = augment(
        images, replace(NO_AUGMENTATION, horizontal_flip=0.5, vertical_flip=0.5), seed=2
    )
    kinds = (images, images.flip(3), images.flip(2), images.flip(2, 3))
    matches = torch.stack([(result == kind).flatten(1).all(1) for kind in kinds])
    assert matches.any(0).all()
    assert matches.any(1).all()


def test_a_certain_flip_swaps_left_and_right() -> None:
    images = noise(2, 3, 21, 13)
    result = augment(images, replace(NO_AUGMENTATION, horizontal_flip=1.0), seed=2)
    assert torch.equal(result, images.flip(3))


def test_crops_are_exact_windows_at_places_of_their_own() -> None:
    images = noise(1, 3, 25, 37).repeat(30, 1, 1, 1)
    result = augment(images, NO_AUGMENTATION, seed=4, crop_size=(22, 33))
    windows = {(y, x): images[0, :, y : y + 22, x : x + 33] for y in range(4) for x in range(5)}
    places = [
        place for crop in result for place, window in windows.items() if torch.equal(crop, window)
    ]
    assert len(places) == len(result)
    assert {y for y, _ in places} == set(range(4))
    assert {x for _, x in places} == set(range(5))


def test_a_crop_is_turned_about_its_own_centre() -> None:
    image = smooth(64, 64)
    maps = pixel_maps(draw(50, 3), GEOMETRY, (64, 64), (16, 16))
    centres = (maps @ torch.tensor([7.5, 7.5, 1.0], dtype=torch.float64))[:, :2]
    reach = 0.1 * 16 / 0.9 * 1.6
    assert centres.min() > 7.5 - reach
    assert centres.max() < 64 - 8.5 + reach
    assert augment(image, GEOMETRY, seed=1, crop_size=(16, 8)).shape == (1, 3, 16, 8)


def test_a_quarter_turn_of_a_wide_image_turns_and_does_not_shear() -> None:
    image = noise(1, 3, 20, 40)
    turns = draw(1, 0)
    turns["rotation"] = torch.ones(1, 1, dtype=torch.float64)  # the end of the range: +90 degrees
    maps = pixel_maps(turns, replace(NO_AUGMENTATION, rotation=90.0), (20, 40), (20, 40))
    result = warp(image, maps, (20, 40))
    # The middle square keeps its place; what came from beyond the short sides is mirrored.
    middle = torch.rot90(image[..., 10:30], 1, (2, 3))
    torch.testing.assert_close(result[..., 10:30], middle, atol=1e-5, rtol=0)
    mirrored = np.pad(image.numpy(), [(0, 0), (0, 0), (10, 10), (0, 0)], mode="symmetric")
    expected = torch.rot90(torch.from_numpy(mirrored), 1, (2, 3))[:, :, 10:30]
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (24, 56), (51, 30)])
def test_maps_and_reflected_borders_agree_with_scipy(height: int, width: int) -> None:
    images = noise(6, 1, height, width)
    size = (height, width)
    maps = pixel_maps(draw(6, 9), GEOMETRY, size, size)
    result = augment(images, GEOMETRY, seed=9)
    swap = [1, 0]
    for image, matrix, ours in zip(images, maps.numpy(), result, strict=True):
        expected = ndimage.affine_transform(
            image[0].numpy(), matrix[swap][:, swap], matrix[swap, 2], mode="reflect", order=1
        )
        np.testing.assert_allclose(ours[0].numpy(), expected, atol=1e-4)


def test_the_map_equals_torchvisions_rotation_flips_and_affine_in_turn() -> None:
    image = smooth(64, 64)
    ranges = replace(GEOMETRY, rotation=20.0)
    draws = draw(1, 21)
    angle, second, shear = (
        float(2 * draws[name] - 1) * reach
        for name, reach in (("rotation", 20.0), ("affine_rotation", 10.0), ("shear", 5.0))
    )
    shift = (2 * draws["translate"][0] - 1) * 0.1 * 64
    shift = shift.round()  # torchvision shifts by whole pixels only
    draws["translate"] = (shift / (0.1 * 64) + 1)[None] / 2
    expected = vision.rotate(image, angle, vision.InterpolationMode.BILINEAR)
    flips = [axis for axis, number in zip((3, 2), draws["flips"][0], strict=True) if number < 0.5]
    expected = expected.flip(flips)
    expected = vision.affine(
        expected,
        second,
        [int(value) for value in shift],
        0.9 + 0.2 * float(draws["scale"]),
        [shear, 0.0],
        vision.InterpolationMode.BILINEAR,
    )
    result = warp(image, pixel_maps(draws, ranges, (64, 64), (64, 64)), (64, 64))
    inner = slice(20, 44)
    torch.testing.assert_close(
        result[..., inner, inner], expected[..., inner, inner], atol=0.01, rtol=0
    )


def test_white_stays_white_to_the_corners() -> None:
    white = torch.ones(8, 3, 32, 48)
    ranges = replace(GEOMETRY, translate=0.3, blur_kernel=5, blur_sigma=(0.1, 2.0))
    torch.testing.assert_close(augment(white, ranges, seed=3), white, atol=1e-6, rtol=0)


# Colour


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("part", ["brightness", "contrast", "saturation"])
def test_one_colour_change_alone_equals_torchvision(part: str, channels: int) -> None:
    images = noise(4, channels, 24, 24, low=0.3, high=0.7)
    ranges = replace(NO_AUGMENTATION, **{part: 0.2})  # type: ignore[arg-type]
    result = augment(images, ranges, seed=6)
    factors = 0.8 + 0.4 * draw(4, 6)[part]
    change = getattr(vision, f"adjust_{part}")
    for image, factor, ours in zip(images, factors, result, strict=True):
        torch.testing.assert_close(ours, change(image, float(factor)), atol=1e-5, rtol=0)


def test_brightness_contrast_and_saturation_in_one_map_equal_three_steps() -> None:
    images = noise(4, 3, 24, 24, low=0.4, high=0.6)
    ranges = replace(NO_AUGMENTATION, brightness=0.2, contrast=0.2, saturation=0.2)
    result = augment(images, ranges, seed=6)
    draws = draw(4, 6)
    for index, ours in enumerate(result):
        expected = images[index]
        for part in ("brightness", "contrast", "saturation"):
            factor = 0.8 + 0.4 * float(draws[part][index])
            expected = getattr(vision, f"adjust_{part}")(expected, factor)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_greys_stay_grey_under_any_hue() -> None:
    grey = noise(8, 1, 16, 16).repeat(1, 3, 1, 1)
    result = augment(grey, replace(NO_AUGMENTATION, hue=0.5), seed=6)
    torch.testing.assert_close(result, grey, atol=1e-5, rtol=0)


def test_hue_keeps_the_luma_and_turns_red_towards_yellow_as_torchvision_does() -> None:
    ranges = replace(NO_AUGMENTATION, hue=0.1)
    draws = draw(1, 0)
    draws["hue"] = torch.ones(1, 1, dtype=torch.float64)  # the end of the range: +0.1 of a turn
    direct, of_mean = colour_maps(draws, ranges, 3)
    assert not of_mean.any()
    luma = torch.tensor([0.299, 0.587, 0.114])
    reddish = torch.tensor([0.7, 0.4, 0.4])[None, :, None, None]
    ours = apply_affine(reddish, direct)[0, :, 0, 0]
    theirs = vision.adjust_hue(reddish.expand(1, 3, 2, 2), 0.1)[0, :, 0, 0]
    assert luma @ ours == pytest.approx(float(luma @ reddish[0, :, 0, 0]), abs=1e-5)
    assert ours[1] > ours[2]
    assert theirs[1] > theirs[2]


def test_a_hue_turn_and_its_opposite_cancel() -> None:
    ranges = replace(NO_AUGMENTATION, hue=0.1)
    draws = draw(3, 0)
    there, _ = colour_maps(draws, ranges, 3)
    back, _ = colour_maps(draws | {"hue": 1 - draws["hue"]}, ranges, 3)
    identity = torch.eye(3, dtype=torch.float64).expand(3, 3, 3)
    torch.testing.assert_close(there @ back, identity)


def test_one_channel_ignores_saturation_hue_and_stain() -> None:
    images = noise(3, 1, 16, 16)
    ranges = replace(NO_AUGMENTATION, saturation=0.2, hue=0.1, stain=0.5)
    assert torch.equal(augment(images, ranges, seed=1), images)


# Blur


@pytest.mark.parametrize(("kernel", "sigma"), [(3, 0.5), (5, 0.1), (5, 2.0), (9, 1.3)])
def test_blur_equals_torchvision(kernel: int, sigma: float) -> None:
    images = noise(2, 3, 24, 31)
    ranges = replace(NO_AUGMENTATION, blur_kernel=kernel, blur_sigma=(sigma, sigma))
    expected = vision.gaussian_blur(images, [kernel, kernel], [sigma, sigma])
    torch.testing.assert_close(augment(images, ranges, seed=1), expected, atol=1e-5, rtol=0)


def test_blur_kernels_sum_to_one_and_widen_with_sigma() -> None:
    ranges = replace(NO_AUGMENTATION, blur_kernel=5, blur_sigma=(0.1, 2.0))
    draws = draw(16, 1)
    kernels = gaussian_kernels(draws, ranges)
    torch.testing.assert_close(kernels.sum(1), torch.ones(16, dtype=torch.float64))
    order = draws["blur_sigma"][:, 0].argsort()
    assert (kernels[order, 0].diff() > 0).all()


# Stain


def test_stain_of_strength_zero_is_the_identity_map() -> None:
    matrix, offset = stain_maps(draw(4, 1), NO_AUGMENTATION)
    torch.testing.assert_close(matrix, torch.eye(3, dtype=torch.float64).expand(4, 3, 3))
    assert not offset.any()


def test_stain_without_shift_keeps_white_white() -> None:
    draws = draw(4, 1)
    draws["stain_shift"] = torch.full((4, 3), 0.5, dtype=torch.float64)
    maps = stain_maps(draws, replace(NO_AUGMENTATION, stain=0.5))
    white = torch.ones(4, 3, 4, 4)
    assert torch.equal(perturb_stain(white, *maps), white)


def test_stain_at_the_usual_strength_keeps_white_nearly_white() -> None:
    white = torch.ones(64, 3, 2, 2)
    assert augment(white, replace(NO_AUGMENTATION, stain=0.2), seed=1).min() > 0.95


def test_stain_equals_scaling_and_shifting_the_amounts_that_scikit_image_finds() -> None:
    matrix = color.rgb_from_hed
    amounts = 0.1 + 0.3 * noise(1, 6, 6, 3)[0].double().numpy()
    image = np.exp(-amounts @ matrix)
    assert image.min() > MIN_TRANSMITTANCE
    draws = draw(1, 8)
    gain = 1 + 0.2 * (2 * draws["stain_gain"][0].numpy() - 1)
    shift = 0.02 * (2 * draws["stain_shift"][0].numpy() - 1)
    expected = np.exp(-(amounts * gain + shift) @ matrix)
    images = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    result = augment(images, replace(NO_AUGMENTATION, stain=0.2), seed=8)
    np.testing.assert_allclose(result[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_stain_of_black_and_of_pure_colours_is_finite_and_in_range() -> None:
    images = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])[:, :, None, None]
    result = augment(images, replace(NO_AUGMENTATION, stain=1.0), seed=8)
    assert torch.isfinite(result).all()
    assert 0 <= result.min() <= result.max() <= 1


# Refusals


@pytest.mark.parametrize(
    "change",
    [
        {"rotation": -1.0},
        {"rotation": math.nan},
        {"horizontal_flip": 1.5},
        {"shear": 90.0},
        {"translate": math.inf},
        {"scale": (0.0, 1.0)},
        {"scale": (1.1, 0.9)},
        {"hue": 0.6},
        {"blur_kernel": 4},
        {"blur_kernel": -3},
        {"blur_sigma": (0.0, 2.0)},
        {"blur_sigma": (2.0, 1.0)},
        {"stain": -0.1},
    ],
)
def test_a_range_outside_its_bounds_is_refused_by_name(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be"):
        AugmentationRanges(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "images",
    [torch.zeros(3, 8, 8), torch.zeros(1, 2, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)],
)
def test_other_tensors_than_float_batches_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="images must be"):
        augment(images, EVERYTHING, seed=0)


@pytest.mark.parametrize("size", [(9, 8), (8, 9), (0, 4)])
def test_a_crop_that_does_not_fit_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="crop_size must"):
        augment(torch.zeros(1, 3, 8, 8), EVERYTHING, seed=0, crop_size=size)


def test_an_image_smaller_than_the_blur_is_refused() -> None:
    with pytest.raises(ValueError, match="blur_kernel must"):
        augment(torch.zeros(1, 3, 2, 8), EVERYTHING, seed=0)


def test_spared_images_are_exact_windows_and_the_others_are_changed() -> None:
    images = torch.rand(1, 3, 32, 32).expand(40, -1, -1, -1)
    flips_off = replace(EVERYTHING, horizontal_flip=0.0, vertical_flip=0.0, probability=0.5)
    result = augment(images, flips_off, seed=3)
    spared = (result == images).flatten(1).all(1)
    assert 8 < int(spared.sum()) < 32
    torch.testing.assert_close(
        result[~spared], augment(images, replace(flips_off, probability=1.0), seed=3)[~spared]
    )


def test_probability_zero_leaves_flips_and_crops_alone() -> None:
    images = torch.rand(4, 3, 32, 32)
    flips = replace(NO_AUGMENTATION, horizontal_flip=0.5, vertical_flip=0.5)
    spared = augment(images, replace(EVERYTHING, probability=0.0), seed=1, crop_size=(16, 16))
    assert torch.equal(spared, augment(images, flips, seed=1, crop_size=(16, 16)))


def test_a_blur_that_is_wider_than_the_images_is_refused_before_anything_is_written(
    train: Callable[..., Any], write_images: Callable[..., Path], tmp_path: Path
) -> None:
    write_images(tmp_path / "train", 4)
    for kernel, refused in ((33, True), (31, False)):
        refusal = pytest.raises(UserError, match="augment_blur_kernel must be at most 31 for")
        with refusal if refused else nullcontext():
            train(augmentation=True, augment_blur_kernel=kernel, num_epochs=1)
        assert list((tmp_path / "out").glob("*.pth")) == [] or not refused
