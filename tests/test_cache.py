"""Tiles decoded once."""

import errno
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datasets import ImageFolderDataset
from recon.data.cache import HEADER, CachedDataset, FileStore, MemoryStore, Store, open_store
from recon.data.loaders import Batches, make_loader

SHAPE = (3, 8, 8)
SLOT = HEADER + 3 * 8 * 8


class Counting:
    """A dataset that counts how often it decodes."""

    def __init__(self, dataset: ImageFolderDataset) -> None:
        self.dataset, self.paths, self.decoded = dataset, dataset.paths, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tensor:
        self.decoded += 1
        return self.dataset[index]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


def cached(folder: Path, store: Store, options: str = "a", slots: int = 4) -> CachedDataset:
    counting = Counting(ImageFolderDataset(folder, 8))
    return CachedDataset(counting, store, shape=SHAPE, options=options, slots=slots)


def decoded(dataset: CachedDataset) -> int:
    assert isinstance(dataset.dataset, Counting)
    return dataset.dataset.decoded


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore(4 * SLOT) if request.param == "memory" else FileStore(tmp_path / "tiles")


def test_the_second_reading_decodes_nothing_and_gives_the_same_pixels(
    images: Path, store: Store
) -> None:
    dataset = cached(images, store)
    first = [dataset[i] for i in range(4)]
    second = [dataset[i] for i in range(4)]
    assert decoded(dataset) == 4
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_returned_tile_can_be_changed_without_changing_the_cache(
    images: Path, store: Store
) -> None:
    dataset = cached(images, store)
    before = dataset[0].clone()
    dataset[0].zero_()
    assert torch.equal(dataset[0], before)


def test_an_image_that_changed_is_decoded_again(images: Path, store: Store) -> None:
    dataset = cached(images, store)
    assert dataset[0].any()
    Image.new("RGB", (8, 8)).save(images / "0.png")
    assert not dataset[0].any()


def test_other_reading_options_decode_again(images: Path, store: Store) -> None:
    assert cached(images, store)[0].any()
    other = cached(images, store, options="b")
    assert other[0].any()
    assert decoded(other) == 1


def test_tiles_beyond_the_limit_are_decoded_every_time(images: Path, store: Store) -> None:
    dataset = cached(images, store, slots=2)
    for _ in range(2):
        assert [dataset[i].shape for i in range(4)] == [SHAPE] * 4
    assert decoded(dataset) == 2 + 2 * 2


def test_a_torn_slot_is_noticed(images: Path, store: Store) -> None:
    dataset = cached(images, store)
    expected = dataset[1].clone()
    store.write(SLOT + HEADER + 5, b"\x00\x01\x02torn")
    assert torch.equal(dataset[1], expected)
    assert decoded(dataset) == 2


def test_deep_tiles_pass_through(tmp_path: Path, store: Store) -> None:
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "deep.png")
    dataset = cached(tmp_path, store)
    assert all(dataset[0].dtype == torch.float32 for _ in range(2))
    assert decoded(dataset) == 2


def test_worker_processes_share_the_cache(images: Path, store: Store) -> None:
    dataset = cached(images, store)
    loader = make_loader(dataset, Batches(4, 2), num_workers=2, pin_memory=False)
    batches = [batch.images for batch in loader]
    assert len(batches) == 2
    again = cached(images, store)
    assert torch.equal(torch.cat(batches), torch.stack([again[i] for i in range(4)]))
    assert decoded(again) == 0


def test_a_disk_cache_serves_the_next_run(images: Path, tmp_path: Path) -> None:
    first = cached(images, FileStore(tmp_path / "tiles"))
    assert first[2].any()
    second = cached(images, FileStore(tmp_path / "tiles"))
    assert torch.equal(first[2], second[2])
    assert decoded(second) == 0


def test_a_cache_file_that_is_cut_short_is_filled_again(images: Path, tmp_path: Path) -> None:
    dataset = cached(images, FileStore(tmp_path / "tiles"))
    expected = [dataset[i].clone() for i in range(4)]
    os.truncate(tmp_path / "tiles", SLOT + 7)
    assert all(torch.equal(dataset[i], expected[i]) for i in range(4))


def test_a_full_disk_falls_back_to_decoding_with_one_warning(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    dataset = cached(images, FileStore(tmp_path / "tiles"))
    monkeypatch.setattr(os, "pwrite", full)
    for _ in range(2):
        assert all(dataset[i].any() for i in range(4))
    assert decoded(dataset) == 8
    assert caplog.text.count("no longer cached: No space left on device") == 1


def test_a_folder_that_cannot_be_made_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert open_store("disk", tmp_path / "file" / "cache", "tiles", SLOT) is None
    assert "Tiles are not cached" in caplog.text


# Slices of volumes


def volume(folder: Path, value: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    voxels = np.arange(8 * 8 * 4, dtype=np.uint8).reshape(8, 8, 4) + np.uint8(value)
    nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(folder / "a.nii.gz")
    return folder


def test_the_slices_of_a_volume_are_cached_one_by_one(tmp_path: Path, store: Store) -> None:
    dataset = cached(volume(tmp_path / "volumes"), store)
    first = [dataset[index] for index in range(4)]
    assert all(torch.equal(dataset[index], first[index]) for index in range(4))
    assert decoded(dataset) == 4
    assert not torch.equal(first[0], first[1])


def test_the_slices_of_a_volume_that_changed_are_decoded_again(
    tmp_path: Path, store: Store
) -> None:
    dataset = cached(volume(tmp_path / "volumes"), store)
    before = dataset[2]
    os.utime(volume(tmp_path / "volumes", 9) / "a.nii.gz", (0, 0))
    assert torch.equal(dataset[2], before + 9)
    assert decoded(dataset) == 2


def test_training_and_validation_share_the_limit(
    train: Callable[..., object],
    write_images: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "recon")
    write_images(tmp_path / "train", 12)
    slot = HEADER + 3 * 16 * 16
    train(
        num_epochs=1,
        validation_fraction=1 / 3,
        validation_group="image",
        cache_limit_gb=(6 * slot + 9) / 1e9,
    )
    assert "holds 4 of 8 tiles" in caplog.text
    assert "holds 2 of 4 tiles" in caplog.text


def test_processes_that_are_not_forked_read_without_a_cache(
    train: Callable[..., object],
    write_images: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_images(tmp_path / "train", 4)
    expected = train(num_epochs=1)
    for user in ("recon.data.loaders", "recon.pipeline.images"):
        monkeypatch.setattr(f"{user}.workers_fork", lambda: False)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        found = train(num_epochs=1, num_workers=1)
    finally:
        multiprocessing.set_start_method(before, force=True)
    for name, value in expected.items():
        assert torch.equal(found[name], value)


def test_a_system_without_reading_at_an_offset_caches_in_memory_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(os, "pread")
    assert open_store("disk", tmp_path, "name", 8) is None
    assert "cache = 'memory'" in caplog.text
    assert open_store("memory", tmp_path, "name", 8) is not None
