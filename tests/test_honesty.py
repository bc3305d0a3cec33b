"""Runs that would flatter are refused or say so."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.utils.data import get_worker_info

from Auto_encoder import AutoEncoder
from datasets import ImageFolderDataset
from recon.data.loaders import Loader
from recon.errors import UserError
from recon.files import exclusive
from recon.pipeline import (
    assembling,
    is_of_another_run,
    open_model,
    run_evaluation,
    run_training,
)
from recon.pipeline.images import TrainingData
from recon.ranks import Ranks
from recon.settings import Settings
from recon.training.checkpoint import read_model_file, save_final
from recon.training.keeper import Keeper
from recon.training.resume import LAST, find_checkpoint
from recon.training.runtime import Runtime

Train = Callable[..., object]
Write = Callable[..., Path]


@pytest.fixture
def evaluate(make_settings: Callable[..., Any], network: Any) -> Callable[..., Any]:
    def run(**changes: Any) -> Any:
        return run_evaluation(make_settings(**changes), "mse", network, ImageFolderDataset)

    return run


@pytest.mark.parametrize("inner", ["train", "validation"])
def test_a_validation_folder_inside_the_training_folder_is_refused(
    inner: str, train: Train, write_images: Write, tmp_path: Path
) -> None:
    outer = write_images(tmp_path / "outer", 4)
    folders = {"train": outer, "validation": outer, inner: outer / "a"}
    with pytest.raises(UserError, match="must lie outside folder_path_train"):
        train(
            folder_path_train=str(folders["train"]),
            folder_path_validation=str(folders["validation"]),
        )


def test_images_that_were_trained_on_are_counted_in_evaluation(
    train: Train,
    evaluate: Callable[..., Any],
    write_images: Write,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_images(tmp_path / "train", 6)
    test = write_images(tmp_path / "test", 3, seed=1)
    (test / "renamed.png").write_bytes((tmp_path / "train/a/0.png").read_bytes())
    train()
    caplog.set_level("WARNING", "recon")
    evaluate()
    assert "1 of the 4 test images are like images that the model was trained on" in caplog.text
    run = pd.read_excel(tmp_path / "metrics.xlsx", sheet_name=2, dtype=str)
    rows = dict(zip(run["Name"], run["Value"], strict=True))
    assert rows["test images.trained on"] == "1"
    assert "training.data.train.members" not in rows


def test_images_that_the_initial_weights_were_trained_on_are_counted_too(
    train: Train, evaluate: Callable[..., Any], write_images: Write, tmp_path: Path
) -> None:
    write_images(tmp_path / "train", 6)
    write_images(tmp_path / "other", 6, seed=1)
    write_images(tmp_path / "test", 2, seed=2)
    first, second = (tmp_path / f"{name}.pth" for name in ("first", "second"))
    train()
    shutil.copy(tmp_path / "out/Final_Model_AE_MSE.pth", first)
    shutil.copy(tmp_path / "out/Final_Model_AE_MSE.json", first.with_suffix(".json"))
    train(folder_path_train=str(tmp_path / "other"), initial_weights=str(first), num_epochs=1)
    train(
        folder_path_train=str(tmp_path / "other"),
        initial_weights=str(first),
        resume=str(tmp_path / "out/Last_Model_AE.pth"),
        num_epochs=2,
    )
    shutil.copy(tmp_path / "out/Final_Model_AE_MSE.pth", second)
    shutil.copy(tmp_path / "out/Final_Model_AE_MSE.json", second.with_suffix(".json"))
    record = json.loads(second.with_suffix(".json").read_text())
    beside = json.loads(first.with_suffix(".json").read_text())
    used = record["data"]["initial weights"]
    assert used["weights_sha256"] == beside["weights_sha256"]
    for folder, count in (("train", 6), ("other", 6), ("test", 0)):
        evaluate(model_path_mse=str(second), folder_path_test=str(tmp_path / folder))
        run = json.loads((tmp_path / "metrics.json").read_text())
        assert run["test images"]["trained on"] == count


def test_validation_images_that_are_trained_on_under_other_names_are_counted(
    train: Train, write_images: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_folder = write_images(tmp_path / "train", 6)
    validation = write_images(tmp_path / "validation", 3, seed=1)
    shutil.copy(next(train_folder.rglob("*.png")), validation / "renamed.png")
    train(folder_path_validation=str(validation))
    assert "1 of the 4 validation images are byte for byte among those to train on" in caplog.text


def test_the_log_with_its_curve_is_not_written_among_the_images(
    train: Train, write_images: Write, tmp_path: Path
) -> None:
    write_images(tmp_path / "train", 4)
    with pytest.raises(UserError, match="must lie outside folder_path_train"):
        train(training_loss_file_mse=str(tmp_path / "train/loss.csv"))


def test_the_record_beside_the_log_is_of_the_run_that_wrote_it(
    train: Train, write_images: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "train", 6)
    train(learning_rate=0.02)
    monkeypatch.setattr(Keeper, "finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(learning_rate=0.01)
    record = json.loads((tmp_path / "out/loss.json").read_text())
    assert record["settings"]["learning_rate"] == 0.01
    assert record["results"]["epochs"] == 2


def test_nothing_is_said_where_no_image_was_trained_on(
    train: Train,
    evaluate: Callable[..., Any],
    write_images: Write,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_images(tmp_path / "train", 6)
    write_images(tmp_path / "test", 3, seed=1)
    train()
    evaluate()
    assert "flatter" not in caplog.text
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["test images"]["trained on"] == 0
    assert record["weights_sha256"] == record["training"]["weights_sha256"]
    assert record["seconds"] >= 0


def test_a_workbook_and_the_sidecar_of_its_model_name_the_same_weights_in_half_precision(
    train: Train, evaluate: Callable[..., Any], write_images: Write, tmp_path: Path
) -> None:
    write_images(tmp_path / "train", 6)
    write_images(tmp_path / "test", 3, seed=1)
    train()
    weights, record = read_model_file(tmp_path / "out/Final_Model_AE_MSE.pth")
    halves = {n: w.half() if w.is_floating_point() else w for n, w in weights.items()}
    save_final(tmp_path / "half.pth", halves, record)
    evaluate(model_path_mse=str(tmp_path / "half.pth"))
    beside = json.loads((tmp_path / "half.json").read_text())
    run = json.loads((tmp_path / "metrics.json").read_text())
    assert run["weights_sha256"] == beside["weights_sha256"] != record["weights_sha256"]


def test_curves_of_noise_are_not_written_where_they_would_be_evaluated(
    train: Train, evaluate: Callable[..., Any], write_images: Write, tmp_path: Path
) -> None:
    write_images(tmp_path / "train", 6)
    test = write_images(tmp_path / "test", 3, seed=1)
    train()
    with pytest.raises(UserError, match="curves of noise_sweep would be evaluated"):
        evaluate(reconstruction_metrics_mse=str(test / "metrics.xlsx"), noise_sweep=(0.1,))
    (tmp_path / "metrics.csv").mkdir()
    with pytest.raises(UserError, match="which is a folder"):
        evaluate()


@pytest.mark.parametrize(
    "changes",
    [
        {"folder_path_train": "bad", "validation_fraction": 0.0},
        {"folder_path_validation": "bad"},
        {"tracking": "wandb"},
    ],
)
def test_a_refused_run_leaves_the_one_before_it_as_it_was(
    changes: dict[str, Any],
    train: Train,
    write_images: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # As if it were not installed.
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "train", 8)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/torn.png").write_bytes(b"no image")
    train(validation_fraction=0.25, validation_group="image")
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    with pytest.raises(UserError):
        train(**({"validation_fraction": 0.25, "validation_group": "image"} | changes))
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


def test_a_run_without_a_readable_image_says_why(train: Train, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/torn.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of the 1 training images can be read: .*torn\.png"):
        train()
    assert not list((tmp_path / "out").glob("*.pth"))


def test_a_second_run_into_one_folder_is_refused(
    train: Train, write_images: Write, tmp_path: Path
) -> None:
    write_images(tmp_path / "train", 4)
    (tmp_path / "out").mkdir()
    with (
        exclusive(tmp_path / "out", "model_saved_location_mse"),
        pytest.raises(UserError, match="another run is writing"),
    ):
        train()
    train()


def test_a_second_run_into_one_log_is_refused(
    train: Train, make_settings: Callable[..., Any], write_images: Write, tmp_path: Path
) -> None:
    write_images(tmp_path / "train", 4)
    log = Path(make_settings().training_loss_file_mse)
    with (
        exclusive(log, "training_loss_file_mse"),
        pytest.raises(UserError, match="training_loss_file_mse must be a file of its own"),
    ):
        train(model_saved_location_mse=str(tmp_path / "elsewhere"))
    train(model_saved_location_mse=str(tmp_path / "elsewhere"))


def test_only_the_newest_checkpoints_are_kept_where_a_number_is_set(
    train: Train, write_images: Write, tmp_path: Path
) -> None:
    write_images(tmp_path / "train", 4)
    train(num_epochs=5, keep_checkpoints=2)
    kept = sorted(path.name for path in (tmp_path / "out").glob("Model_AE_epoch_*"))
    assert kept == ["Model_AE_epoch_004.pth", "Model_AE_epoch_005.pth"]


def test_kept_checkpoints_of_an_older_and_longer_run_go_first(
    train: Train, write_images: Write, tmp_path: Path
) -> None:
    write_images(tmp_path / "train", 4)
    train(num_epochs=5)
    train(num_epochs=2, keep_checkpoints=2)
    kept = sorted(path.name for path in (tmp_path / "out").glob("Model_AE_epoch_*"))
    assert kept == ["Model_AE_epoch_001.pth", "Model_AE_epoch_002.pth"]
    (tmp_path / "out" / LAST).unlink()
    found = find_checkpoint("auto", tmp_path / "out")
    assert found is not None
    assert found[0].name == "Model_AE_epoch_002.pth"


def test_a_batch_that_bad_files_leave_with_one_image_does_not_end_a_run_that_skips_them(
    make_settings: Callable[..., Any], write_images: Write, tmp_path: Path
) -> None:
    write_images(tmp_path / "train", 4, edge=32)
    for index in range(4):
        (tmp_path / f"train/bad{index}.png").write_bytes(b"bad")
    settings = make_settings(
        tile_size=32, crop_size=None, batch_size_train=2, num_epochs=3, unreadable_images="skip"
    )
    run_training(settings, "mse", AutoEncoder, ImageFolderDataset)
    record = json.loads((tmp_path / "out/Final_Model_AE_MSE.json").read_text())
    assert record["results"]["unreadable"] == 4
    assert record["results"]["epochs"] == 3


def test_ctrl_c_at_the_end_of_one_loader_still_ends_the_workers_of_the_other(
    make_settings: Callable[..., Any],
    network: Any,
    write_images: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_images(tmp_path / "train", 6)
    ended: list[Loader] = []

    def end(loader: Loader) -> None:
        ended.append(loader)
        if len(ended) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Loader, "end", end)
    with pytest.raises(KeyboardInterrupt):
        run_training(
            make_settings(validation_fraction=0.3, validation_group="image"),
            "mse",
            network,
            ImageFolderDataset,
        )
    assert len(set(ended)) == 2


class Dying(ImageFolderDataset):
    """Its reading process is killed, as the kernel does when memory has run out."""

    def __getitem__(self, index: int) -> Any:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_reading_process_that_is_killed_ends_the_run_in_one_line(
    make_settings: Callable[..., Any], network: Any, write_images: Write, tmp_path: Path
) -> None:
    write_images(tmp_path / "train", 4)
    with pytest.raises(UserError, match="a process that reads images has died") as caught:
        run_training(make_settings(num_workers=1), "mse", network, Dying)
    assert "\n" not in str(caught.value)
    assert "num_workers" in str(caught.value)
    assert not multiprocessing.active_children()


def test_initial_weights_that_learnt_from_other_intensities_are_worth_a_warning(
    train: Train, write_images: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path / "train", 4)
    train(input_normalization="zscore", model_saved_location_mse=str(tmp_path / "first"))
    first = str(tmp_path / "first/Final_Model_AE_MSE.pth")
    caplog.set_level("WARNING", "recon")
    train(input_normalization="none", initial_weights=first)
    assert "was trained with input_normalization = 'zscore', this run has 'none'" in caplog.text
    caplog.clear()
    train(input_normalization="zscore", initial_weights=first)
    assert "was trained with" not in caplog.text


def test_initial_weights_are_not_looked_for_where_a_run_is_resumed(
    train: Train, write_images: Write, tmp_path: Path
) -> None:
    write_images(tmp_path / "train", 4)
    first = tmp_path / "first"
    train(model_saved_location_mse=str(first))
    weights = str(first / "Final_Model_AE_MSE.pth")
    train(initial_weights=weights, num_epochs=1)
    shutil.rmtree(first)
    train(initial_weights=weights, num_epochs=2, resume="auto", schedule="cosine")


def test_each_of_several_processes_needs_two_images_of_a_batch() -> None:
    runtime = Runtime(torch.device("cpu"), 1, "float32", Ranks(0, 2, 0))
    data = TrainingData(None, None, {"train": {"images": 12}}, lambda: None)  # type: ignore[arg-type]
    assembling._check_batches(Settings(batch_size_train=4), data, runtime)
    for changes in ({"batch_size_train": 3}, {"batch_size_train": 8, "images_per_epoch": 3}):
        with pytest.raises(UserError, match="at least 2 for each of 2 processes"):
            assembling._check_batches(Settings(**changes), data, runtime)


def test_a_log_of_another_run_than_the_models_is_told_apart(
    train: Train,
    write_images: Write,
    make_settings: Callable[..., Any],
    network: Any,
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "train", 4)
    train(num_epochs=1)
    log = tmp_path / "out/loss.csv"
    model = open_model(tmp_path / "out/Final_Model_AE_MSE.pth", make_settings(), network)
    assert not is_of_another_run(log, model)
    assert not is_of_another_run(tmp_path / "none.csv", model)
    record = json.loads(log.with_suffix(".json").read_text())
    log.with_suffix(".json").write_text(json.dumps(record | {"date": "2020-01-01T00:00:00+00:00"}))
    assert is_of_another_run(log, model)
    assert not is_of_another_run(log, model._replace(provenance={}))


def test_a_password_of_a_database_is_in_no_record_and_no_model(
    train: Train,
    write_images: Write,
    make_settings: Callable[..., Any],
    network: Any,
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "train", 4)
    write_images(tmp_path / "test", 2)
    storage = "mysql://me:secret@db/trials"
    train(num_epochs=1, sweep_storage=storage)
    run_evaluation(make_settings(sweep_storage=storage), "mse", network, ImageFolderDataset)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {".pth", ".json", ".csv", ".xlsx"} <= {path.suffix for path in written}
    texts = [path.read_bytes() for path in written if path.suffix != ".xlsx"]
    with zipfile.ZipFile(tmp_path / "metrics.xlsx") as book:
        texts += [book.read(name) for name in book.namelist()]
    assert not any(b"secret" in text for text in texts)
