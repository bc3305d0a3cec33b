"""An evaluation spoils no other run, nor its own model and images."""

import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import get_worker_info

from datasets import ImageFolderDataset
from recon.errors import UserError
from recon.files import exclusive
from recon.pipeline import run_evaluation


@pytest.fixture
def evaluate(
    make_settings: Callable[..., Any],
    network: Any,
    write_images: Callable[..., Path],
    tmp_path: Path,
) -> Callable[..., Any]:
    """Evaluate a small model on three images."""
    write_images(tmp_path / "test", 3)
    torch.save(network(3).state_dict(), tmp_path / "model.pth")

    def run(datasets: Any = ImageFolderDataset, **changes: Any) -> Any:
        usual = {"model_path_mse": str(tmp_path / "model.pth")}
        return run_evaluation(make_settings(**usual | changes), "mse", network, datasets)

    return run


def test_a_second_run_into_one_workbook_is_refused(
    evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    with (
        exclusive(tmp_path / "metrics.csv", "training_loss_file_mse"),
        pytest.raises(UserError, match="reconstruction_metrics_mse must be a file of its own"),
    ):
        evaluate()
    evaluate()
    evaluate()
    beside = {path.name for path in tmp_path.glob("*metrics*")}
    assert beside == {".metrics.csv.lock", "metrics.csv", "metrics.json", "metrics.xlsx"}


def test_pictures_of_other_evaluations_are_counted(
    evaluate: Callable[..., Any],
    write_images: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    evaluate()
    evaluate()
    assert "other evaluations" not in caplog.text
    evaluate(folder_path_test=str(write_images(tmp_path / "others", names=["one.png"])))
    assert f"3 pictures below {tmp_path / 'pictures'} are of other evaluations" in caplog.text
    caplog.clear()
    evaluate(save_images="none")
    assert "4 pictures below" in caplog.text


def test_the_model_is_told_in_a_few_words(
    train: Callable[..., Any],
    evaluate: Callable[..., Any],
    write_images: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "recon")
    evaluate()
    assert "model.pth (of no record, 16 x 16 pixels)\n" in caplog.text
    write_images(tmp_path / "train", 4)
    train(validation_fraction=0.0)
    evaluate(model_path_mse=str(tmp_path / "out/Final_Model_AE_MSE.pth"))
    assert "AE_MSE.pth (auto_encoder, 16 x 16 pixels, trained with MSE)\n" in caplog.text


def test_the_record_of_the_model_is_not_replaced(
    evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "link"):
        with pytest.raises(UserError, match=r"model\.json': it tells what model\.pth is"):
            evaluate(reconstruction_metrics_mse=str(folder / "model.xlsx"))
    assert not (tmp_path / "model.json").exists()


@pytest.mark.parametrize("part", ["test", "train", "validation"])
def test_pictures_among_the_images_of_a_run_are_refused(
    part: str, evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    inside = tmp_path / part / "inside"
    changes = {"folder_path_validation": str(tmp_path / "validation")}
    with pytest.raises(UserError, match=f"recon_output_mse must not lie in folder_path_{part}"):
        evaluate(**changes, recon_output_mse=str(inside))
    book = str(inside / "metrics.xlsx")
    with pytest.raises(UserError, match=f"_mse must not lie in folder_path_{part}.*noise_sweep"):
        evaluate(**changes, reconstruction_metrics_mse=book, noise_sweep=(0.1,))
    assert not inside.exists()


def test_a_folder_that_bears_the_name_of_a_picture_is_gone_round(
    evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    shutil.copytree(tmp_path / "test/a", tmp_path / "test/a/0_comparison.png")
    evaluate(save_images="all")
    pictures = [path for path in (tmp_path / "pictures").rglob("*.png") if path.is_file()]
    assert len(pictures) == 5


class Dying(ImageFolderDataset):
    """Its reading process is killed, as the kernel does when memory has run out."""

    def __getitem__(self, index: int) -> Any:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_reading_process_that_is_killed_ends_the_evaluation_in_one_line(
    evaluate: Callable[..., Any],
) -> None:
    with pytest.raises(UserError, match="a process that reads images has died") as caught:
        evaluate(Dying, num_workers=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("culprit", ["evaluating.spell_json", "evaluating.flatten"])
def test_a_record_that_cannot_be_written_leaves_the_old_results(
    culprit: str, evaluate: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    evaluate()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*metrics*")}
    monkeypatch.setattr(f"recon.pipeline.{culprit}", fail)
    with pytest.raises(OSError, match="No space"):
        evaluate()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*metrics*")} == before


def test_reconstructions_that_are_not_finite_end_an_evaluation_and_leave_the_old_results(
    evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    evaluate()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*metrics*")}
    weights = torch.load(tmp_path / "model.pth")
    weights["encoder.0.weight"].fill_(3e38)
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"model\.pth makes of .*png numbers that are not finite"):
        evaluate()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*metrics*")} == before
