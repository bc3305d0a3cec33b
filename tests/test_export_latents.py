"""Export_latents.py writes one row for each image, however it is run."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

import Export_latents
from Auto_encoder import AutoEncoder
from datasets import ImageFolderDataset
from recon.analysis import latent_files
from recon.errors import UserError
from recon.models.registry import BUILDERS, Form, Options, build_model
from recon.pipeline import exporting
from recon.pipeline.exporting import run_export

ROOT = Path(__file__).resolve().parents[1]
WriteImages = Callable[..., Path]


@pytest.fixture
def place(tmp_path: Path, write_images: WriteImages, network: Callable[[int], Any]) -> Path:
    """A folder with a small model and seven images."""
    write_images(tmp_path / "images", 7)
    torch.manual_seed(0)
    torch.save(network(3).state_dict(), tmp_path / "model.pth")
    return tmp_path


@pytest.fixture
def export(
    place: Path, make_settings: Callable[..., Any], network: Callable[[int], Any]
) -> Callable[..., pd.DataFrame]:
    """Run an export of the small model; returns the table, if it is a csv."""

    def run(**changes: Any) -> pd.DataFrame:
        usual: dict[str, Any] = {
            "model_path_latents": str(place / "model.pth"),
            "folder_path_latents": str(place / "images"),
            "latents_file": str(place / "out/features.csv"),
            "batch_size_test": 3,
            "deterministic": True,
        }
        target = run_export(make_settings(**usual | changes), network, ImageFolderDataset)
        return pd.read_csv(target) if target.suffix == ".csv" else pd.DataFrame()

    return run


def paths(place: Path) -> list[str]:
    folder = place / "images"
    return [f"{folder}/{name}.png" for name in ("a/0", "a/2", "a/4", "a/6", "b/1", "b/3", "b/5")]


# Rows


def test_rows_that_are_not_finite_are_refused(
    export: Callable[..., pd.DataFrame], place: Path
) -> None:
    weights = torch.load(place / "model.pth")
    weights["encoder.0.weight"].fill_(3e38)
    torch.save(weights, place / "model.pth")
    with pytest.raises(UserError, match=r"model\.pth makes of .*0\.png numbers that are not fin"):
        export()
    assert not (place / "out/features.csv").exists()


def test_every_image_has_its_row_in_order(
    export: Callable[..., pd.DataFrame], place: Path, network: Callable[[int], Any]
) -> None:
    frame = export(input_normalization="none")
    assert frame.columns.tolist() == [*(f"Feature_{n}" for n in range(1, 7)), "File_Path"]
    assert frame.File_Path.tolist() == paths(place)
    model = network(3).eval()
    model.load_state_dict(torch.load(place / "model.pth"))
    dataset = ImageFolderDataset(str(place / "images"), (16, 16))
    for row, image in zip(frame.to_numpy(), dataset, strict=True):
        expected = model.encoder(image[None] / 255).mean((2, 3))[0].detach()
        np.testing.assert_allclose(row[:-1].astype(float), expected, rtol=1e-4, atol=1e-5)


def test_the_rows_of_a_finished_export_are_let_go_before_they_are_removed(
    export: Callable[..., pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, remove = [], shutil.rmtree

    def look(folder: Path, **options: Any) -> None:
        held.extend(p for p in psutil.Process().memory_maps() if str(folder) in p.path)
        remove(folder, **options)

    monkeypatch.setattr("recon.pipeline.exporting.shutil.rmtree", look)
    export()
    assert not held


def test_rows_do_not_depend_on_batches_workers_or_format(
    export: Callable[..., pd.DataFrame], place: Path
) -> None:
    frame = export()
    assert export(batch_size_test=100).equals(frame)
    export(num_workers=1, latents_file=str(place / "out/f.NPZ"))
    found = np.load(place / "out/f.NPZ")
    assert np.array_equal(found["features"], frame.iloc[:, :-1].to_numpy().astype(np.float32))
    assert found["file_path"].tolist() == frame.File_Path.tolist()


def test_the_images_are_prepared_as_the_model_was_trained(
    export: Callable[..., pd.DataFrame], place: Path
) -> None:
    frame = export(input_normalization="imagenet")
    weights = torch.load(place / "model.pth")
    preparation = {
        "tile_size": [16, 16], "channels": 3, "input_normalization": "imagenet",
        "intensity_range": None,
    }  # fmt: skip
    content = {"model_state_dict": weights, "provenance": {"preparation": preparation}}
    torch.save(content, place / "recorded.pth")
    assert export(
        input_normalization="none", model_path_latents=str(place / "recorded.pth")
    ).equals(frame)


def test_unreadable_images_are_listed_and_no_rows(
    export: Callable[..., pd.DataFrame], place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (place / "images/a/2.png").write_bytes(b"damaged")
    assert export().File_Path.tolist() == [p for p in paths(place) if not p.endswith("a/2.png")]
    record = json.loads((place / "out/features.json").read_text())
    assert (record["rows"], record["unreadable"], record["images"]["found"]) == (6, 1, 7)
    assert "a/2.png" in record["skipped"][0]
    assert "Skipped 1 unreadable" in caplog.text


def test_the_record_beside_the_table_says_where_it_comes_from(
    export: Callable[..., pd.DataFrame], place: Path
) -> None:
    export()
    record = json.loads((place / "out/features.json").read_text())
    assert record["model"] == str(place / "model.pth")
    assert len(record["weights_sha256"]) == len(record["images"]["fingerprint"]) == 64
    assert record["preparation"]["tile_size"] == [16, 16]
    assert record["row"] == {"type": "float32", "shape": [6]}
    assert record["settings"]["latents_pooling"] == "mean"
    assert record["seconds"] >= 0
    assert record["table"] == str(place / "out/features.csv")
    assert sorted(path.name for path in (place / "out").iterdir()) == [
        "features.csv",
        "features.json",
    ]


# Going on


def fail_at(monkeypatch: pytest.MonkeyPatch, batch: int) -> list[int]:
    """End the export at a batch; returns the list that image indices are added to as they come."""
    seen: list[int] = []
    encode, left = exporting._encode, [batch]

    def counted(model: Any, images: Any, pool: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        seen.extend(images.indices.tolist())
        return encode(model, images, pool)

    monkeypatch.setattr(exporting, "_encode", counted)
    return seen


def test_an_export_that_ended_goes_on_where_it_stood(
    export: Callable[..., pd.DataFrame], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = export(latents_file=str(place / "whole/features.csv"))
    with monkeypatch.context() as patch:
        fail_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            export()
    assert [path.name for path in (place / "out").iterdir()] == ["features.csv.unfinished"]
    seen = fail_at(monkeypatch, 100)
    assert export().equals(whole)
    assert 0 < len(seen) < 7
    assert seen == list(range(7 - len(seen), 7))


@pytest.mark.parametrize("change", ["weights", "images", "contents", "pooling"])
def test_an_export_of_something_else_starts_anew(
    export: Callable[..., pd.DataFrame],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    network: Callable[[int], Any],
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            export()
    if change == "weights":
        torch.save(network(3).state_dict(), place / "model.pth")
    elif change == "images":
        (place / "images/b/5.png").rename(place / "images/b/7.png")
    elif change == "contents":  # of the same size
        path = place / "images/a/0.png"
        path.write_bytes(path.read_bytes())
    pooling = "none" if change == "pooling" else "mean"
    seen = fail_at(monkeypatch, 100)
    frame = export(latents_pooling=pooling)
    assert seen == list(range(7))
    assert len(frame) == 7


def test_images_that_were_mended_are_read_anew(
    export: Callable[..., pd.DataFrame], place: Path, network: Callable[[int], Any]
) -> None:
    whole = export(latents_file=str(place / "whole/features.csv"))
    good = {path: path.read_bytes() for path in (place / "images").rglob("*.png")}
    for path, content in good.items():
        path.write_bytes(bytes(len(content)))
    with pytest.raises(UserError, match="none of the 7 images can be read"):
        export()
    for path, content in good.items():
        path.write_bytes(content)
    assert export().equals(whole)


def test_an_unreadable_image_of_the_run_before_stops_the_next_one_too(
    export: Callable[..., pd.DataFrame], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "images/a/0.png").write_bytes(b"")
    with monkeypatch.context() as patch:
        fail_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            export()
    with pytest.raises(UserError, match=r"unreadable image: .*0\.png"):
        export(unreadable_images="stop")


def test_a_table_that_cannot_be_written_leaves_the_old_one_and_the_rows(
    export: Callable[..., pd.DataFrame], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export()
    before = (place / "out/features.csv").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setitem(latent_files.WRITERS, ".csv", full)
        with pytest.raises(OSError, match="No space"):
            export(latents_pooling="none")
    assert (place / "out/features.csv").read_bytes() == before
    seen = fail_at(monkeypatch, 1)
    assert len(export(latents_pooling="none").columns) == 6 * 16 * 16 + 1
    assert seen == []


# Networks


@pytest.mark.parametrize("architecture", ["auto_encoder", *BUILDERS])
@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_every_network_is_exported(
    architecture: str, pooling: str, place: Path, make_settings: Callable[..., Any]
) -> None:
    options = Options(8, residual_blocks=1, codebook_size=8, unet_width=1)
    model = build_model(architecture, Form(3, (32, 32)), options, AutoEncoder)
    torch.save(model.state_dict(), place / "network.pth")
    settings = make_settings(
        architecture=architecture,
        model_path_latents=str(place / "network.pth"),
        folder_path_latents=str(place / "images/b"),
        latents_file=str(place / "out/f.npz"),
        latents_pooling=pooling,
        tile_size=32,
        **options._asdict(),
    )
    found = np.load(run_export(settings, AutoEncoder, ImageFolderDataset))
    is_coded = architecture == "vqvae" and pooling == "none"
    rows = found["codes" if is_coded else "features"]
    assert len(rows) == len(found["file_path"]) == 3
    assert rows.dtype == (np.int64 if is_coded else np.float32)
    assert rows.ndim == 2 or pooling == "none"


# The script


def test_bad_input_is_refused_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "empty").mkdir()
    (place / "bad").mkdir()
    (place / "bad/1.png").write_bytes(b"damaged")
    weights = AutoEncoder().state_dict()
    torch.save(weights, place / "auto.pth")
    good = {
        "GPUs": "", "num_workers": "0", "tile_size": "32",
        "model_path_latents": str(place / "auto.pth"),
        "folder_path_latents": str(place / "images/b"),
        "latents_file": str(place / "out/features.csv"),
    }  # fmt: skip
    for name, value, told in (
        ("latents_file", str(place / "features.txt"), "that ends in"),
        ("latents_file", str(place / "auto.pth/features.csv"), "latents_file"),
        ("latents_pooling", "max", "latents_pooling"),
        ("model_path_latents", str(place / "none.pth"), "missing"),
        ("model_path_latents", str(place / "model.pth"), "another network"),
        ("folder_path_latents", str(place / "none"), "folder_path_latents"),
        ("folder_path_latents", str(place / "empty"), "folder_path_latents"),
        ("folder_path_latents", str(place / "bad"), "none of the 1 images can be read"),
    ):
        flags = [part for n, v in (good | {name: value}).items() for part in (f"--{n}", v)]
        assert Export_latents.main(flags) == 2, name
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith("error: ")
        assert told in error
    assert Export_latents.main([p for n, v in good.items() for p in (f"--{n}", v)]) == 0
    assert pd.read_csv(place / "out/features.csv").shape == (3, 513)


def test_unreadable_images_stop_an_export_where_that_is_asked(
    export: Callable[..., pd.DataFrame], place: Path
) -> None:
    (place / "images/a/2.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match="unreadable image: "):
        export(unreadable_images="stop")


# Ranks


PROGRAM = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import Config
from conftest import TwoLayers
from datasets import ImageFolderDataset
from recon.command import run_command
from recon.pipeline.exporting import run_export

def job(settings, asked):
    run_export(settings, TwoLayers, ImageFolderDataset, asked=asked)

sys.exit(run_command(Config, sys.argv[1:], job))
"""


def test_two_ranks_write_what_one_writes(export: Callable[..., pd.DataFrame], place: Path) -> None:
    (place / "images/b/3.png").write_bytes(b"damaged")
    alone = export()
    program = place / "program.py"
    program.write_text(PROGRAM.format(root=str(ROOT)))
    flags = {
        "GPUs": "", "precision": "float32", "num_workers": "0", "tile_size": "16",
        "batch_size_test": "3", "deterministic": "True",
        "model_path_latents": str(place / "model.pth"),
        "folder_path_latents": str(place / "images"),
        "latents_file": str(place / "two/features.csv"),
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(program), *(part for n, v in flags.items() for part in (f"--{n}", v))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(place / "two/features.csv").equals(alone)
    assert done.stdout.count("Latents: ") == 1


def test_memory_that_runs_out_ends_an_export_in_one_line(
    export: Callable[..., pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(exporting, "_encode", fail)
    with pytest.raises(UserError, match="try --batch_size_test 1"):
        export()
