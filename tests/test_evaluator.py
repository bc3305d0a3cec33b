import math
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor

from Auto_encoder import AutoEncoder
from datasets import ImageFolderDataset
from recon.data.loaders import Batch, Batches, make_loader
from recon.errors import UserError
from recon.evaluation.evaluator import Evaluated, evaluate
from recon.evaluation.pictures import PictureWriter, picture_names
from recon.evaluation.records import Record
from recon.pipeline import run_evaluation

CPU = torch.device("cpu")


def names_of(paths: Sequence[str]) -> list[str]:
    name = picture_names(paths.__getitem__, len(paths))
    return [name(index) for index in range(len(paths))]


# Names of pictures


def test_a_picture_keeps_folder_and_name_of_its_image() -> None:
    assert names_of(["1.png", "a/1.png", "a/b/x.y.TIF"]) == [
        "1_comparison.png",
        "a/1_comparison.png",
        "a/b/x.y_comparison.png",
    ]


def test_images_that_differ_in_their_extension_alone_keep_it() -> None:
    assert names_of(["a/1.png", "a/1.jpg", "b/1.png"]) == [
        "a/1.png_comparison.png",
        "a/1.jpg_comparison.png",
        "b/1_comparison.png",
    ]


def test_no_two_images_share_a_picture() -> None:
    """Every set of names made of stems and extensions that resemble each other."""
    stems = ["1", "1.png", "1.png.jpg", "1_comparison", "1_comparison.png", "1.png_comparison"]
    paths = [f"{f}{s}.{e}" for f in ("", "a/", "1.png/") for s in stems for e in ("png", "jpg")]
    generator = random.Random(0)
    for _ in range(200):
        chosen = generator.sample(paths, 6)
        assert len(set(names_of(chosen))) == 6, chosen


def test_no_picture_is_called_like_a_folder_of_images() -> None:
    folder = "a/1_comparison.png"
    paths = ["a/1.png", f"{folder}/1.png", f"{folder}/2_comparison.png/x.png", f"{folder}/2.png"]
    names = names_of(paths)
    assert len(set(names)) == 4
    assert names[1] == f"{folder}/1_comparison.png"
    assert not {folder, f"{folder}/2_comparison.png"} & set(names)
    assert names_of(paths[::-1]) == names[::-1]
    assert all(name.endswith("_comparison.png") for name in names)


def test_names_do_not_depend_on_the_order_of_the_images() -> None:
    paths = ["a/1.png", "a/1.jpg", "a/1.png.jpg", "b/1.png"]
    forward = dict(zip(paths, names_of(paths), strict=True))
    backward = dict(zip(paths[::-1], names_of(paths[::-1]), strict=True))
    assert forward == backward


@pytest.mark.parametrize("letter", ["x", "é", "\udcff"])
def test_long_names_are_shortened_to_what_a_file_system_takes_and_stay_apart(
    letter: str, tmp_path: Path
) -> None:
    room = (255 - len("1.png")) // len(os.fsencode(letter))
    paths = [f"{letter * room}{number}.png" for number in range(3)]
    names = names_of(paths)
    assert len(set(names)) == 3
    for name in names:
        assert name.endswith("_comparison.png")
        (tmp_path / f"{name}.partial").touch()


def test_bytes_that_are_no_text_survive_in_the_name(tmp_path: Path) -> None:
    (name,) = names_of([os.fsdecode(b"caf\xe9 \xff.png")])
    assert os.fsencode(name) == b"caf\xe9 \xff_comparison.png"
    (tmp_path / name).touch()


# Records


@pytest.fixture
def images(random_images: Callable[..., list[Tensor]]) -> list[Tensor]:
    return random_images(7, 32)


class Listed:
    """A dataset of tensors; None is unreadable."""

    def __init__(self, images: Sequence[Tensor | None]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = self.images[index]
        if image is None:
            raise OSError("damaged")
        return image


def evaluated(
    images: Sequence[Tensor | None],
    reconstruct: Callable[[Tensor], Tensor],
    *,
    batch_size: int = 3,
    num_workers: int = 0,
    threads: int = 1,
) -> list[Evaluated]:
    batches = Batches(len(images), batch_size)
    loader = make_loader(Listed(images), batches, num_workers=num_workers, pin_memory=False)
    return list(evaluate(reconstruct, loader, "image {}".format, CPU, threads=threads))


def records(*args: Any, **options: Any) -> list[Record]:
    return [c.record for batch in evaluated(*args, **options) for c in batch.comparisons]


def darken(images: Tensor) -> Tensor:
    return images * 0.9


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(images: list[Tensor], threads: int) -> None:
    some = [*images, None, images[0], None, None, None]
    alone, shared = (evaluated(some, darken, threads=n) for n in (1, threads))
    for one, other in zip(alone, shared, strict=True):
        assert (one.indices, one.records, one.failures) == (
            other.indices, other.records, other.failures,
        )  # fmt: skip
        for mine, theirs in zip(one.comparisons, other.comparisons, strict=True):
            assert mine.image == theirs.image
            np.testing.assert_array_equal(mine.reconstruction, theirs.reconstruction)


def test_each_of_several_threads_computes_alone_and_others_as_before(images: list[Tensor]) -> None:
    before, seen = torch.get_num_threads(), []

    def watched(pieces: Tensor) -> Tensor:
        seen.append((torch.get_num_threads(), torch.is_grad_enabled(), len(pieces)))
        return pieces

    evaluated(images, watched, batch_size=6, threads=3)
    assert {(number, learning) for number, learning, _ in seen} == {(1, False)}
    assert sorted(count for _, _, count in seen) == [1, 1, 1, 2, 2]  # of batches of 4 and of 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before
    assert torch.get_num_threads() == before


def test_a_failing_network_ends_the_evaluation(images: list[Tensor]) -> None:
    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        evaluated(images, fail, threads=2)


def test_records_come_in_the_order_of_the_images(images: list[Tensor]) -> None:
    assert [r.path for r in records(images, darken)] == [f"image {i}" for i in range(7)]


def test_a_record_holds_what_an_independent_program_measures(images: list[Tensor]) -> None:
    for record, image in zip(records(images, darken), images, strict=True):
        original = image.numpy().transpose(1, 2, 0).astype(np.float64) / 255
        darker = original * 0.9
        mse = ((original - darker) ** 2).mean()
        assert record.mse == pytest.approx(mse, rel=1e-5)
        assert record.psnr == pytest.approx(-10 * np.log10(mse), rel=1e-6)
        assert record.ssim == pytest.approx(
            structural_similarity(
                original, darker, data_range=1.0, channel_axis=-1, gaussian_weights=True,
                sigma=1.5, use_sample_covariance=False,
            ),
            abs=1e-5,
        )  # fmt: skip
        assert (record.width, record.height) == (32, 32)


def test_reconstructions_are_clamped_before_they_are_measured(images: list[Tensor]) -> None:
    white = [torch.full((3, 16, 16), 255, dtype=torch.uint8)]
    (record,) = records(white, lambda batch: batch + 0.5)
    assert record.mse == 0
    assert record.psnr == float("inf")


def test_unreadable_images_are_reported_and_never_scored(images: list[Tensor]) -> None:
    found = evaluated([images[0], None, None, None, images[1]], darken, batch_size=2)
    assert [c.record.path for batch in found for c in batch.comparisons] == ["image 0", "image 4"]
    assert [(f.image, f.reason) for batch in found for f in batch.failures] == [
        (number, "damaged") for number in (1, 2, 3)
    ]


def test_width_and_height_are_not_mixed_up() -> None:
    (record,) = records([torch.zeros(3, 16, 24, dtype=torch.uint8)], darken)
    assert (record.width, record.height) == (24, 16)


def test_records_of_given_reconstructions_do_not_depend_on_the_batch_size(
    images: list[Tensor],
) -> None:
    one = records(images, darken, batch_size=1)
    assert all(records(images, darken, batch_size=n) == one for n in (2, 3, 7))


def test_records_do_not_depend_on_the_workers(images: list[Tensor]) -> None:
    assert records(images, darken, num_workers=2) == records(images, darken)


def test_records_of_a_network_depend_on_the_batch_size_by_rounding_alone(
    images: list[Tensor],
) -> None:
    """Convolution libraries add up in other orders: some 1e-8 of the figures."""
    torch.manual_seed(0)
    model = AutoEncoder().eval()
    results = [
        np.array([r[1:4] for r in records(images, model, batch_size=size)]) for size in (1, 3, 7)
    ]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-6, atol=1e-6)


# Pictures


def test_every_image_gets_its_picture_in_the_folders_of_its_own(
    images: list[Tensor], tmp_path: Path
) -> None:
    paths = ["1.png", "a/1.png", "a/1.jpg", "a/b/2.png", "c/=x.png", "c/ü.png", "d/e/f/3.gif"]
    names = picture_names(paths.__getitem__, 7)
    with PictureWriter(tmp_path, names, 2) as writer:
        for batch in evaluated(images, darken):
            writer.write(batch.comparisons)
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert found == sorted(names(index) for index in range(7))
    with Image.open(tmp_path / "a/b/2_comparison.png") as picture:
        assert picture.width >= 2 * 32


def test_a_picture_that_cannot_be_written_is_an_error(images: list[Tensor], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a file, no folder")

    def write() -> None:
        with PictureWriter(tmp_path, "a/{}.png".format, 2) as writer:
            for batch in evaluated(images, darken):
                writer.write(batch.comparisons)

    with pytest.raises(OSError, match="a"):
        write()


# The whole


def test_evaluation_gives_one_row_per_image_whatever_batch_size_and_workers(
    train: Callable[..., object],
    make_settings: Callable[..., Any],
    write_images: Callable[..., Path],
    network: Any,
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "train", 6)
    write_images(tmp_path / "test", 5, seed=1)
    train(num_epochs=1)
    rows = []
    for options in ({}, {"batch_size_test": 2}, {"num_workers": 2, "batch_size_test": 1}):
        run_evaluation(make_settings(**options), "mse", network, ImageFolderDataset)
        lines = (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()
        rows.append([line.split(",") for line in lines])
    paths = [[row[0] for row in table] for table in rows]
    assert paths[0] == paths[1] == paths[2]
    assert paths[0][1:] == sorted(str(path) for path in (tmp_path / "test").rglob("*.png"))
    numbers = [np.array([row[1:4] for row in table[1:]], dtype=float) for table in rows]
    np.testing.assert_allclose(numbers[1], numbers[0], rtol=1e-5)
    np.testing.assert_allclose(numbers[2], numbers[0], rtol=1e-5)


def test_pictures_are_never_written_where_they_would_be_evaluated_next(
    train: Callable[..., object],
    make_settings: Callable[..., Any],
    write_images: Callable[..., Path],
    network: Any,
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "train", 4)
    train(num_epochs=1)
    settings = make_settings(
        folder_path_test=str(tmp_path / "train"), recon_output_mse=str(tmp_path / "train/out")
    )
    with pytest.raises(UserError, match="must not lie in folder_path_test"):
        run_evaluation(settings, "mse", network, ImageFolderDataset)


def test_the_error_of_a_reconstruction_that_is_not_finite_is_no_number() -> None:
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    batch = Batch(images, torch.arange(2), torch.arange(2), [])
    further = torch.tensor([0.0, torch.inf]).view(2, 1, 1, 1)
    (part,) = evaluate(lambda images: images + further, [batch], str, CPU, draw=False)
    assert [math.isfinite(record.mse) for record in part.records] == [True, False]
