"""Maps of layers, and the arrays and figures that show them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from Auto_encoder import AutoEncoder
from recon.analysis.feature_pictures import (
    code_colours,
    draw_channels,
    draw_code_use,
    draw_latent,
    draw_layers,
)
from recon.analysis.layers import (
    channel_grid,
    equalise,
    feature_maps,
    fold,
    grey_levels,
    mean_over_channels,
    stretch,
)
from recon.models.registry import BUILDERS, Form, Options, build_model

IMAGES = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
SMALL = Options(16, residual_blocks=1, codebook_size=8, unet_width=2)


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


# Maps


@pytest.mark.parametrize("architecture", ["auto_encoder", *BUILDERS])
def test_every_network_gives_maps_under_the_names_of_its_modules(architecture: str) -> None:
    model = build_model(architecture, Form(3, (32, 32)), SMALL, AutoEncoder).eval()
    maps = feature_maps(model, IMAGES)
    modules = dict(model.named_modules())
    convolutions = [n for n, m in modules.items() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert set(convolutions) <= set(maps) - {""}
    assert {n.partition(" (")[0] for n in maps} <= set(modules)
    assert all(len(of) == 1 and of.isfinite().all() for of in maps.values())
    assert hooks_of(model) == 0


def test_maps_are_what_each_layer_gives_in_the_order_in_which_they_run() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    maps = feature_maps(model, IMAGES)
    assert list(maps) == ["0", "2"]
    with torch.no_grad():
        assert torch.equal(maps["0"], model[0](IMAGES))
        assert torch.equal(maps["2"], model(IMAGES))


def test_a_layer_that_computes_in_place_leaves_the_map_before_it_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
    maps = feature_maps(model, IMAGES)
    assert maps["0"].min() < 0 <= maps["1"].min()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Tanh()

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(self.layer(images))


def test_a_layer_that_runs_twice_gives_two_maps() -> None:
    maps = feature_maps(Twice(), IMAGES)
    assert list(maps) == ["layer", "layer (2)"]
    assert torch.equal(maps["layer (2)"], IMAGES.tanh().tanh())


def test_no_hook_stays_where_the_network_fails() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(7, 7))
    with pytest.raises(RuntimeError):
        feature_maps(model, IMAGES)
    assert hooks_of(model) == 0


# Arrays


def test_the_mean_is_taken_over_channels() -> None:
    maps = torch.arange(12.0).view(3, 2, 2)
    assert mean_over_channels(maps).tolist() == [[4, 5], [6, 7]]
    with pytest.raises(ValueError, match="maps must be"):
        mean_over_channels(maps[None])


@pytest.mark.parametrize(
    ("count", "shape"), [(1, (1, 1)), (16, (4, 4)), (512, (16, 32)), (7, (3, 3)), (2, (1, 2))]
)
def test_a_vector_is_folded_line_by_line(count: int, shape: tuple[int, int]) -> None:
    folded = fold(torch.arange(float(count)))
    assert folded.shape == shape
    assert folded.ravel()[:count].tolist() == list(range(count))
    assert np.isnan(folded.ravel()[count:]).all()


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 4, 4), (5, 3, 4), (6, 8, 2)])
def test_every_channel_stands_in_the_grid_within_lines(
    channels: int, height: int, width: int
) -> None:
    maps = torch.rand(channels, height, width)
    grid = channel_grid(maps)
    columns = (grid.shape[1] + 1) // (width + 1)
    for number, of_channel in enumerate(maps.numpy()):
        top, left = (number // columns) * (height + 1), (number % columns) * (width + 1)
        assert np.array_equal(grid[top : top + height, left : left + width], of_channel)
    assert np.isfinite(grid).sum() == maps.numel()


def test_grey_levels_reach_from_black_to_white() -> None:
    assert grey_levels(np.array([[-2.0, 0.0, 2.0]], np.float32)).tolist() == [[0, 128, 255]]


def test_a_stretch_lets_single_values_go() -> None:
    picture = np.linspace(0, 1, 1000, dtype=np.float32).reshape(20, 50)
    picture[0, 0], picture[-1, -1] = -100, 100
    stretched = stretch(picture)
    assert stretched[10, 0] - stretched[9, 0] == pytest.approx(50 / 1000 * 255 / 0.96, abs=1)
    assert (stretched == 0).mean() == pytest.approx(0.02, abs=0.005)


def test_an_equalised_picture_has_each_grey_equally_often() -> None:
    picture = np.random.default_rng(0).exponential(size=(64, 64)).astype(np.float32)
    counts = np.histogram(equalise(picture), bins=8, range=(0, 255))[0]
    assert counts.min() > 0.7 * picture.size / 8


@pytest.mark.parametrize("change", [grey_levels, stretch, equalise])
def test_a_picture_that_is_the_same_everywhere_is_grey(
    change: Callable[[np.ndarray], np.ndarray],
) -> None:
    assert np.unique(change(np.full((4, 4), 3.0, np.float32))).tolist() == [128]


# Figures


def texts_overlap(figure: Figure, tmp_path: Path) -> bool:
    """Whether two texts of a figure touch, or one leaves it."""
    figure.savefig(tmp_path / "figure.png")
    renderer = figure.canvas.get_renderer()
    boxes = [
        text.get_window_extent(renderer)
        for axes in figure.axes
        for text in [*axes.texts, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        if text.get_text()
    ]
    outside = any(not figure.bbox.fully_containsx(b.x1) or b.y1 > figure.bbox.y1 for b in boxes)
    return outside or any(
        one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[place + 1 :]
    )


def titles(figure: Figure) -> str:
    return " ".join(t.get_text() for axes in figure.axes for t in axes.texts)


def test_the_overview_shows_every_layer_between_input_and_reconstruction(tmp_path: Path) -> None:
    maps = {f"decoder.dec_conv1.block.layers.{n}": torch.randn(128, 8, 8) for n in range(9)}
    maps["to_latent"] = torch.randn(512)
    kinds = dict.fromkeys(maps, "ConvTranspose2d")
    figure = draw_layers(PIXELS, maps, PIXELS, kinds=kinds)
    assert len(figure.axes) == len(maps) + 2
    assert "ConvTranspose2d  128 \N{MULTIPLICATION SIGN} 8" in titles(figure)
    assert not texts_overlap(figure, tmp_path)


@pytest.mark.parametrize("shape", [(32, 32, 3), (64, 32), (32, 64)])
@pytest.mark.parametrize("latent", ["maps", "one map", "vector", "codes"])
def test_every_kind_of_latent_is_drawn_without_overlap(
    shape: tuple[int, ...], latent: str, tmp_path: Path
) -> None:
    height, width = shape[0] // 4, shape[1] // 4
    latents = {
        "maps": torch.randn(512, height, width) / 1e5,
        "one map": torch.randn(1, height, width),
        "vector": torch.randn(512),
        "codes": torch.randint(0, 512, (height, width)),
    }
    pixels = np.resize(PIXELS, shape)
    assert not texts_overlap(draw_latent(pixels, latents[latent], pixels, codes=512), tmp_path)


def test_codes_need_the_size_of_their_codebook() -> None:
    with pytest.raises(ValueError, match="codes must be the size"):
        draw_latent(PIXELS, torch.zeros(4, 4, dtype=torch.int64), PIXELS)


def test_channels_share_a_colour_scale_with_a_bar(tmp_path: Path) -> None:
    figure = draw_channels("encoder.0", torch.randn(5, 8, 8))
    grid, bar = figure.axes
    assert grid.get_title(loc="left").startswith("encoder.0")
    assert bar.get_ylabel() == "output of the layer"
    figure.savefig(tmp_path / "channels.png")


def test_the_use_of_codes_is_a_bar_for_each_code_in_its_colour() -> None:
    counts = np.array([4, 0, 4, 0])
    (axes,) = draw_code_use(counts).axes
    assert [bar.get_height() for bar in axes.patches] == counts.tolist()
    assert axes.patches[2].get_facecolor()[:3] == pytest.approx(code_colours(4)[2] / 255)
    assert axes.get_title(loc="left") == "2 of 4 codes used, perplexity 2.0"


def test_codes_have_colours_of_their_own() -> None:
    assert len(np.unique(code_colours(512), axis=0)) > 500
