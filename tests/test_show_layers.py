"""Show_layers.py draws the layers and the latent of some images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

import Show_layers
from Auto_encoder import AutoEncoder
from datasets import ImageFolderDataset
from recon.errors import UserError
from recon.models.registry import BUILDERS, Form, Options, build_model
from recon.pipeline import look_at_channels, open_images, open_model
from recon.settings import Settings

OPTIONS = Options(8, residual_blocks=1, codebook_size=8, unet_width=1)


@pytest.fixture
def show(tmp_path: Path, write_images: Callable[..., Path]) -> Callable[..., int]:
    """Run the script on images below `tmp_path`."""
    write_images(tmp_path / "images", 5)

    def run(architecture: str = "unet", edge: int = 32, **changes: Any) -> int:
        model = build_model(architecture, Form(3, (edge, edge)), OPTIONS, AutoEncoder)
        torch.save(model.state_dict(), tmp_path / "model.pth")
        settings: dict[str, Any] = {
            "GPUs": "", "num_workers": 0, "tile_size": edge, "architecture": architecture,
            "precision": "float32", "model_path_layers": tmp_path / "model.pth",
            "folder_path_layers": tmp_path / "images", "layers_output": tmp_path / "out",
            "layers_images": 1, **OPTIONS._asdict(),
        }  # fmt: skip
        flags = [part for n, v in (settings | changes).items() for part in (f"--{n}", v)]
        return Show_layers.main([str(flag) for flag in flags])

    return run


def written(folder: Path) -> list[str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        with Image.open(path) as picture:
            picture.load()
    return [str(path.relative_to(folder)) for path in files]


@pytest.mark.parametrize("architecture", list(BUILDERS))
def test_every_network_is_drawn(
    architecture: str, show: Callable[..., int], tmp_path: Path
) -> None:
    assert show(architecture) == 0
    assert written(tmp_path / "out") == ["a/0/latent.png", "a/0/layers.png"]


def test_the_auto_encoder_is_drawn_at_64_pixels_with_all_channels(
    show: Callable[..., int], tmp_path: Path
) -> None:
    assert show("auto_encoder", 64, layers_channels="all") == 0
    channels = written(tmp_path / "out/a/0/channels")
    assert len(channels) == 24
    assert channels[0] == "001_encoder.0.png"
    assert channels[-1] == "024_decoder.16.png"


def test_images_are_chosen_evenly_from_the_first_to_the_last(
    show: Callable[..., int], tmp_path: Path
) -> None:
    assert show(layers_images=3) == 0
    assert {str(Path(name).parent) for name in written(tmp_path / "out")} == {"a/0", "a/4", "b/3"}


def test_images_of_one_name_keep_their_endings(
    show: Callable[..., int], tmp_path: Path, write_images: Callable[..., Path]
) -> None:
    folder = write_images(tmp_path / "twins", names=["1.jpg", "1.png"])
    assert show(layers_images=9, folder_path_layers=folder) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"1.jpg", "1.png"}


def test_an_unreadable_image_is_skipped_or_stops_the_run(
    show: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images/b/3.png").write_bytes(b"damaged")
    assert show(layers_images=2) == 0
    assert "Skipped 1 unreadable" in capsys.readouterr().out
    assert show(layers_images=2, unreadable_images="stop") == 2
    assert "unreadable image: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_path_layers", "none.pth"),
        ("folder_path_layers", "none"),
        ("layers_output", "images/out"),
        ("layers_channels", "some"),
        ("tile_size", "33"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    name: str,
    value: str,
    show: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / value if "/" in value or "none" in value else value
    assert show("dense", **{name: bad}) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_images_whose_names_differ_by_their_endings_have_folders_of_their_own(
    show: Callable[..., int], tmp_path: Path
) -> None:
    images = tmp_path / "images/c"
    images.mkdir()
    for name in ("x.png", "x.jpg", "x.png.jpg"):
        Image.new("RGB", (32, 32), "red").save(images / name)
    assert show(folder_path_layers=images, layers_images=3) == 0
    folders = {str(Path(name).parent) for name in written(tmp_path / "out")}
    assert len(folders) == 3


def test_one_slice_of_a_volume_keeps_its_number(show: Callable[..., int], tmp_path: Path) -> None:
    volume = np.random.default_rng(0).random((32, 32, 3), np.float32)
    (tmp_path / "scans").mkdir()
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "scans/brain.nii.gz")
    assert show(folder_path_layers=tmp_path / "scans") == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["brain.nii.gz@000"]


def test_every_channel_of_a_layer_is_drawn_by_name_or_by_place(
    write_images: Callable[..., Path], make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    torch.save(AutoEncoder().state_dict(), tmp_path / "model.pth")
    model = open_model(tmp_path / "model.pth", make_settings(tile_size=32), AutoEncoder)
    images = open_images(write_images(tmp_path / "seen", 1), model, ImageFolderDataset)
    by_name, by_place = (look_at_channels(model, images, 0, of) for of in ("encoder.2", 1))
    drawn = [figure.axes[0].images[0].get_array() for figure in (by_name, by_place)]
    np.testing.assert_array_equal(*drawn)
    axes = by_name.axes[0]
    assert (axes.get_title(loc="left") + axes.get_title()).startswith("encoder.2  LeakyReLU")
    for layer in ("encoder", 99):
        with pytest.raises(UserError, match=r"one of encoder\.0, .*; got"):
            look_at_channels(model, images, 0, layer)


def test_lack_of_memory_is_told_in_one_line(
    show: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 4 bytes")

    monkeypatch.setattr("recon.pipeline.layers.feature_maps", fail)
    assert show() == 2
    message = capsys.readouterr().err
    assert "the machine's memory is too small" in message
    assert "Traceback" not in message
