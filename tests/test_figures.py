import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recon.evaluation.figures import (
    Panel,
    ReconstructionRow,
    compose_comparison,
    error_map,
    show_reconstructions,
    to_picture,
)

CAPTION = "MSE 0.00123   PSNR 29.10 dB   SSIM 0.9132"


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def contains(canvas: Image.Image, tile: np.ndarray) -> bool:
    """Whether the tile stands in the canvas pixel by pixel."""
    pixels = np.asarray(canvas)
    height, width = tile.shape[:2]
    tile = tile if tile.ndim == 3 else np.repeat(tile[..., None], 3, axis=-1)
    corners = np.argwhere((pixels == tile[0, 0]).all(axis=-1))
    return any((np.array_equal(pixels[y : y + height, x : x + width], tile)) for y, x in corners)


def ink_touches_the_edge(canvas: Image.Image) -> bool:
    pixels = np.asarray(canvas)
    edge = [pixels[:2], pixels[-2:], pixels[:, :2].swapaxes(0, 1), pixels[:, -2:].swapaxes(0, 1)]
    return any((part != 255).any() for part in edge)


@pytest.mark.parametrize("shape", [(256, 256, 3), (256, 256), (200, 300, 3), (128, 40)])
def test_panels_stand_in_the_comparison_at_their_true_pixels(shape: tuple[int, ...]) -> None:
    one, other = noise(*shape), noise(*shape, seed=1)
    canvas = compose_comparison([Panel("Original", one), Panel("Reconstruction", other)], CAPTION)
    assert canvas.mode == "RGB"
    assert contains(canvas, one)
    assert contains(canvas, other)


def test_tiny_panels_are_enlarged_by_a_whole_factor_without_interpolation() -> None:
    tile = noise(16, 16, 3)
    canvas = compose_comparison([Panel("Original", tile)], CAPTION)
    assert contains(canvas, tile.repeat(8, axis=0).repeat(8, axis=1))


@pytest.mark.parametrize("size", [16, 128, 256, 1024])
@pytest.mark.parametrize("caption", [CAPTION, CAPTION * 12])
def test_no_text_reaches_the_edge_of_the_canvas(size: int, caption: str) -> None:
    panels = [Panel("Original " * 6, noise(size, size, 3)), Panel("Ägj", noise(size, size))]
    assert not ink_touches_the_edge(compose_comparison(panels, caption))


def test_the_caption_and_the_titles_are_drawn() -> None:
    tile = np.full((128, 128, 3), 255, dtype=np.uint8)
    blank = np.asarray(compose_comparison([Panel("", tile)], ""))
    titled = np.asarray(compose_comparison([Panel("Title", tile)], ""))
    captioned = np.asarray(compose_comparison([Panel("", tile)], "SSIM"))
    assert (titled[:30] != blank[:30]).any()
    assert (captioned[-30:] != blank[-30:]).any()


def test_a_comparison_takes_names_that_are_not_utf8_or_hold_a_newline() -> None:
    canvas = compose_comparison([Panel("a\nb\udcff", noise(64, 64))], "x\x00y")
    assert not ink_touches_the_edge(canvas)


def test_a_comparison_is_the_same_each_time() -> None:
    panels = [Panel("Original", noise(64, 64, 3))]
    one, other = compose_comparison(panels, CAPTION), compose_comparison(panels, CAPTION)
    assert one.tobytes() == other.tobytes()


def test_a_comparison_without_panels_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one panel"):
        compose_comparison([], CAPTION)


def test_a_comparison_of_two_tiles_takes_milliseconds() -> None:
    panels = [Panel("Original", noise(256, 256, 3)), Panel("Reconstruction", noise(256, 256, 3))]
    compose_comparison(panels, CAPTION)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        compose_comparison(panels, CAPTION)
        times.append(time.perf_counter() - start)
    # Under 1 ms on an idle core; the fastest of twenty, against the load of other processes.
    assert min(times) < 0.01


def test_pictures_are_rounded_and_clamped() -> None:
    values = torch.tensor([-1.0, 0.0, 0.49 / 255, 0.51 / 255, 1.0, 7.0]).view(1, 1, 1, 6)
    assert to_picture(values).tolist() == [[[0, 0, 0, 1, 255, 255]]]


def test_every_8_bit_level_survives_the_way_through_float() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert np.array_equal(to_picture(levels.float() / 255), levels[:, 0].numpy())


def test_colour_pictures_have_their_channels_last() -> None:
    images = torch.zeros(2, 3, 4, 5)
    images[:, 1] = 1
    pictures = to_picture(images.requires_grad_())
    assert pictures.shape == (2, 4, 5, 3)
    assert (pictures == [0, 255, 0]).all()


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 2, 4, 4)])
def test_pictures_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images must be"):
        to_picture(torch.zeros(shape))


def test_no_error_is_the_darkest_colour_and_the_ceiling_the_brightest() -> None:
    original = np.zeros((1, 3, 3), dtype=np.uint8)
    reconstruction = np.zeros((1, 3, 3), dtype=np.uint8)
    reconstruction[0, 1] = 64
    reconstruction[0, 2] = 255
    dark, bright, beyond = error_map(original, reconstruction)[0]
    assert dark.tolist() == [0, 0, 3]
    assert bright.tolist() == beyond.tolist() == [251, 252, 191]


def test_the_error_scale_does_not_depend_on_the_rest_of_the_image() -> None:
    original = np.zeros((4, 4), dtype=np.uint8)
    small, large = original.copy(), original.copy()
    small[0, 0] = large[0, 0] = 20
    large[3, 3] = 255
    one, other = error_map(original, small), error_map(original, large)
    assert one[0, 0].tolist() == other[0, 0].tolist()


def test_the_error_is_the_mean_over_the_channels_and_symmetric() -> None:
    original = np.zeros((1, 1, 3), dtype=np.uint8)
    reconstruction = np.array([[[30, 0, 0]]], dtype=np.uint8)
    grey = error_map(np.zeros((1, 1), dtype=np.uint8), np.full((1, 1), 10, dtype=np.uint8))
    assert np.array_equal(error_map(original, reconstruction), grey)
    assert np.array_equal(error_map(reconstruction, original), grey)


def test_unequal_shapes_and_a_ceiling_of_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        error_map(noise(4, 4), noise(4, 5))
    with pytest.raises(ValueError, match="ceiling"):
        error_map(noise(4, 4), noise(4, 4), ceiling=0)


def row(name: str, *shape: int) -> ReconstructionRow:
    return ReconstructionRow(name, noise(*shape), noise(*shape, seed=1), 0.00123, 29.1, 0.9132)


def test_reconstructions_have_three_pictures_a_row_and_one_colour_bar(tmp_path: Path) -> None:
    figure = show_reconstructions([row("a.png", 16, 16, 3), row("b.png", 24, 16)], ceiling=0.5)
    figure.savefig(tmp_path / "rows.png")
    *pictures, _bar = figure.axes
    assert len(pictures) == 6
    assert [pictures[place].images[0].get_clim() for place in (2, 5)] == [(0, 0.5)] * 2
    titles = " ".join(axes.get_title() for axes in pictures)
    assert "a.png" in titles
    assert "MSE 0.00123   PSNR 29.10 dB   SSIM 0.9132" in titles


def test_what_the_network_was_fed_is_shown_where_it_is_noisy() -> None:
    spoilt = row("a.png", 16, 16)._replace(noisy=noise(16, 16, seed=2))
    *pictures, _bar = show_reconstructions([spoilt, spoilt]).axes
    assert len(pictures) == 8
    assert pictures[1].get_title().startswith("Noisy")
    assert np.array_equal(pictures[1].images[0].get_array(), spoilt.noisy)
    assert np.array_equal(pictures[2].images[0].get_array(), spoilt.reconstruction)


@pytest.mark.parametrize("name", ["$x_1$.png", "a\nb\udcff.png", "deep/" * 30 + "tile.png"])
def test_odd_names_are_shown_as_they_are(name: str, tmp_path: Path) -> None:
    figure = show_reconstructions([row(name, 16, 16, 3)])
    figure.savefig(tmp_path / "rows.png")
    assert figure.axes[0].get_title().endswith(".png")


def test_an_infinite_psnr_is_shown() -> None:
    perfect = row("a.png", 16, 16)._replace(mse=0.0, psnr=float("inf"), ssim=1.0)
    assert "PSNR inf dB" in show_reconstructions([perfect]).axes[1].get_title()


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        show_reconstructions([])
