"""What encoders keep, rows on disk, and the tables that they become."""

import csv
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from Auto_encoder import AutoEncoder
from recon.analysis import latent_files
from recon.analysis.latent_files import LatentStore, Part, Table, check_format, write_table
from recon.analysis.latents import Encoder, pool
from recon.errors import UserError
from recon.models.dense import VariationalAutoEncoder
from recon.models.vqvae import VectorQuantizedAutoEncoder

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def quantised() -> VectorQuantizedAutoEncoder:
    torch.manual_seed(0)
    return VectorQuantizedAutoEncoder(
        3, "gradient", codebook_size=5, code_dim=4, commitment=0.25, codebook_decay=0.99
    ).eval()


def encoded(model: torch.nn.Module, pooling: str) -> torch.Tensor:
    with torch.no_grad():
        return Encoder(model, pooling)(IMAGES)


# Rows of networks


def test_feature_maps_are_averaged_over_height_and_width() -> None:
    model = AutoEncoder().eval()
    with torch.no_grad():
        expected = model.encoder(IMAGES)
    torch.testing.assert_close(encoded(model, "mean"), expected.mean((2, 3)))
    assert torch.equal(encoded(model, "none"), expected)


def test_half_precision_is_averaged_in_float32() -> None:
    maps = torch.full((1, 1, 64, 64), 0.1, dtype=torch.bfloat16)
    assert pool(maps).dtype == torch.float32
    assert pool(maps).item() == pytest.approx(maps[0, 0, 0, 0].item(), rel=1e-6)


def test_a_vector_stays_as_it_is_and_a_vae_gives_its_mean() -> None:
    model = VariationalAutoEncoder(3, (32, 32), 7).eval()
    with torch.no_grad():
        means = model(IMAGES).latent
    for pooling in ("mean", "none"):
        assert torch.equal(encoded(model, pooling), means)


def test_code_numbers_stay_whole_numbers() -> None:
    codes = encoded(quantised(), "none")
    assert codes.dtype == torch.int64
    assert codes.shape == (2, 8, 8)


def test_pooled_codes_are_the_mean_of_their_entries() -> None:
    model = quantised()
    histograms = torch.nn.functional.one_hot(encoded(model, "none").flatten(1), 5).float().mean(1)
    torch.testing.assert_close(encoded(model, "mean"), histograms @ model.codebook.embedding.data)


# Tables


def table(latents: NDArray[Any], name: str = "tiles/{}.png") -> Table:
    images = np.arange(0, 2 * len(latents), 2)
    return Table(images, latents, lambda image: name.format(image))


def numbers(*shape: int) -> NDArray[np.float32]:
    scale = 10.0 ** np.random.default_rng(1).integers(-30, 30, shape)
    return (np.random.default_rng(0).normal(size=shape) * scale).astype(np.float32)


@pytest.fixture(params=[1, 1 << 20], ids=["row by row", "at once"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BLOCK", "GROUP"):
        monkeypatch.setattr(latent_files, name, request.param)


def written(tmp_path: Path, suffix: str, of: Table) -> Path:
    path = tmp_path / "table.partial"
    write_table(path, suffix, of)
    return path


@pytest.mark.usefixtures("_blocks")
def test_a_csv_is_in_the_format_of_deepcluster_and_gives_every_bit_back(tmp_path: Path) -> None:
    latents = numbers(5, 3)
    path = written(tmp_path, ".csv", table(latents, "a, b/{}.png"))
    assert path.read_bytes().startswith(b"Feature_1,Feature_2,Feature_3,File_Path\n")
    frame = pd.read_csv(path)
    with path.open(newline="") as file:
        rows = [[float(text) for text in row[:3]] for row in list(csv.reader(file))[1:]]
    assert np.array_equal(np.array(rows, np.float32), latents)
    assert frame.File_Path.tolist() == [f"a, b/{place}.png" for place in (0, 2, 4, 6, 8)]


def test_a_csv_spells_numbers_with_the_fewest_digits_that_are_exact(tmp_path: Path) -> None:
    path = written(tmp_path, ".csv", table(np.array([[0.1, 1 / 3]], np.float32)))
    assert path.read_text().splitlines()[1] == "0.1,0.33333334,tiles/0.png"


@pytest.mark.parametrize("shape", [(3, 2, 2), (2, 2)])
def test_whole_maps_stand_in_a_csv_line_by_line(tmp_path: Path, shape: tuple[int, ...]) -> None:
    latents = np.arange(2 * np.prod(shape)).reshape(2, *shape)
    with written(tmp_path, ".csv", table(latents)).open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert [row[:-1] for row in rows] == [[str(n) for n in of.ravel()] for of in latents]


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 3, 3)])
def test_an_npz_holds_features_in_their_shape_and_paths(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    latents = numbers(*shape)
    found = np.load(written(tmp_path, ".npz", table(latents, "ü{}.png")), allow_pickle=False)
    assert found.files == ["features", "file_path"]
    assert found["features"].dtype == np.float32
    assert np.array_equal(found["features"], latents)
    assert found["file_path"].tolist() == ["ü0.png", "ü2.png", "ü4.png", "ü6.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_disk_that_is_full_is_an_oserror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: io.FileIO("/dev/full", "w"))
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path, ".npz", table(numbers(4, 3)))


def test_an_npz_calls_code_numbers_codes(tmp_path: Path) -> None:
    codes = np.arange(18).reshape(2, 3, 3)
    found = np.load(written(tmp_path, ".npz", table(codes)), allow_pickle=False)
    assert found["codes"].dtype == np.int64
    assert np.array_equal(found["codes"], codes)


@pytest.mark.usefixtures("_blocks")
def test_parquet_has_the_columns_of_the_csv(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    latents = numbers(5, 3)
    frame = pd.read_parquet(written(tmp_path, ".parquet", table(latents)))
    assert frame.columns.tolist() == ["Feature_1", "Feature_2", "Feature_3", "File_Path"]
    assert np.array_equal(frame.iloc[:, :3].to_numpy(), latents)
    assert frame.File_Path[1] == "tiles/2.png"


@pytest.mark.usefixtures("_blocks")
def test_parquet_keeps_whole_maps_as_lists(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    latents = numbers(3, 2, 2, 2)
    frame = pd.read_parquet(written(tmp_path, ".parquet", table(latents)))
    assert np.array_equal(np.stack(frame.Features.to_list()), latents.reshape(3, -1))


def test_parquet_without_its_package_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="where pyarrow is not installed"):
        check_format(Path("a.parquet"))
    check_format(Path("a.csv"))


# Rows that grow


def part(*images: int, unreadable: tuple[str, ...] = ()) -> Part:
    latents = np.array([[image, -image] for image in images], np.float32)
    return Part(list(images), latents if images else None, list(unreadable))


def name(image: int) -> str:
    return str(image)


def fill(folder: Path, belongs: dict[str, Any]) -> None:
    with LatentStore(folder, belongs) as store:
        store.add(part(0, 1), 2)
        store.add(part(3, unreadable=("2: damaged",)), 4)


def test_rows_come_back_with_their_images(tmp_path: Path) -> None:
    with LatentStore(tmp_path, {}) as store:
        store.add(part(unreadable=("0: damaged",)), 1)
        store.add(part(1, 2), 3)
        found = store.table(name)
    assert found.images.tolist() == [1, 2]
    assert found.latents.tolist() == [[1, -1], [2, -2]]


def test_the_same_work_goes_on_and_what_was_not_counted_is_cut_off(tmp_path: Path) -> None:
    fill(tmp_path, {"size": (1, 2)})
    with (tmp_path / latent_files.ROWS).open("ab") as file:
        file.write(b"half a row")
    with LatentStore(tmp_path, {"size": (1, 2)}) as store:
        assert store.progress.images == 4
        assert store.progress.unreadable == ("2: damaged",)
        store.add(part(4), 5)
        assert store.table(name).latents[:, 0].tolist() == [0, 1, 3, 4]


def test_other_work_starts_anew(tmp_path: Path) -> None:
    fill(tmp_path, {"weights": "a"})
    with LatentStore(tmp_path, {"weights": "b"}) as store:
        assert store.progress == latent_files.Progress()
        store.add(part(7), 8)
        assert store.table(name).images.tolist() == [7]


@pytest.mark.parametrize("damage", ["rows lost", "rows gone", "no json", "other json"])
def test_damage_starts_anew(tmp_path: Path, damage: str) -> None:
    fill(tmp_path, {})
    rows, progress = tmp_path / latent_files.ROWS, tmp_path / latent_files.PROGRESS
    if damage == "rows lost":
        os.truncate(rows, 20)
    elif damage == "rows gone":
        rows.unlink()
    else:
        progress.write_text("{" if damage == "no json" else "[1]")
    with LatentStore(tmp_path, {}) as store:
        assert store.progress == latent_files.Progress()


@pytest.mark.parametrize(
    "change",
    [
        {"images": "4"}, {"images": -1}, {"rows": -3}, {"rows": 9}, {"rows": None},
        {"row": None}, {"row": ["O", [2]]}, {"row": ["<f4", [-2]]}, {"row": ["<f4", "2"]},
        {"row": [[], [2]]}, {"unreadable": 3}, {"unreadable": [3]}, {"unreadable": "text"},
        {"belongs": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_of_another_form_starts_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    fill(tmp_path, {})
    progress = tmp_path / latent_files.PROGRESS
    progress.write_text(json.dumps(json.loads(progress.read_text()) | change))
    with LatentStore(tmp_path, {}) as store:
        assert store.progress == latent_files.Progress()


def test_a_record_that_is_nested_too_deeply_starts_anew(tmp_path: Path) -> None:
    fill(tmp_path, {})
    (tmp_path / latent_files.PROGRESS).write_text("[" * 200_000)
    with LatentStore(tmp_path, {}) as store:
        assert store.progress == latent_files.Progress()


def test_rows_are_counted_while_the_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_files, "INTERVAL", 0)
    store = LatentStore(tmp_path, {})
    store.add(part(0), 1)  # and the process is killed
    with LatentStore(tmp_path, {}) as later:
        assert later.progress.rows == 1
    store.__exit__(None, None, None)
