import csv
import logging
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from openpyxl import load_workbook
from optuna.trial import TrialState
from PIL import Image
from sqlalchemy.exc import OperationalError
from torch import Tensor, nn

import Sweep
from datasets import ImageFolderDataset
from recon.analysis.sweep import TENTHS, ask, importances, occupied, open_study, report
from recon.errors import InterruptedRunError, UserError
from recon.pipeline import foresight, sweep_results, sweeping, training
from recon.pipeline.sweep_space import read_space
from recon.pipeline.sweeping import run_sweep
from recon.settings import Settings
from recon.sources import read_settings_file

SPACE: dict[str, Any] = {"learning_rate": [1e-2, 1e-3], "batch_size_train": [2, 4]}


@pytest.fixture(autouse=True)
def _draw_nothing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than training here; one test draws them."""
    if "pictures" not in request.node.name:
        monkeypatch.setattr(training, "plot_curves", lambda *_: None)
        for name in ("plot_loss_curves", "plot_parallel", "plot_importances"):
            monkeypatch.setattr(sweep_results, name, lambda *_: None)


@pytest.fixture
def settings_of(
    make_settings: Callable[..., Settings], write_images: Callable[..., Path], tmp_path: Path
) -> Callable[..., Settings]:
    write_images(tmp_path / "train", 8)

    def make(**changes: Any) -> Settings:
        usual = {
            "sweep_folder": str(tmp_path / "sweeps"),
            "sweep_space": SPACE,
            "sweep_trials": 2,
            "validation_fraction": 0.3,
            "num_epochs": 1,
        }
        return make_settings(**usual | changes)

    return make


@pytest.fixture
def sweep(settings_of: Callable[..., Settings], network: type[nn.Module]) -> Callable[..., Path]:
    def run(*, model: Callable[[int], nn.Module] = network, **changes: Any) -> Path:
        return run_sweep(settings_of(**changes), model, ImageFolderDataset)

    return run


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "recon")
    return caplog


def rows_of(best: Path) -> list[dict[str, str]]:
    with (best.parent / "trials.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def study_of(folder: Path, name: str = "sweep") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/{name}.db")


# A sweep that runs through


def test_a_sweep_trains_as_often_as_asked_each_in_its_folder(sweep: Callable[..., Path]) -> None:
    best = sweep(sweep_trials=3)
    rows = rows_of(best)
    assert [row["Trial"] for row in rows] == ["0", "1", "2"]
    assert {row["State"] for row in rows} == {"complete"}
    for row in rows:
        assert (Path(row["Folder"]) / "Final_Model_AE_MSE.pth").is_file()
        assert float(row["learning_rate"]) in SPACE["learning_rate"]
        assert int(row["batch_size_train"]) in SPACE["batch_size_train"]


def test_the_result_of_a_trial_is_the_lowest_validation_loss_of_its_epochs(
    sweep: Callable[..., Path],
) -> None:
    best = sweep(num_epochs=3, sweep_trials=1, sweep_space={"learning_rate": [0.9]})
    (row,) = rows_of(best)
    with (Path(row["Folder"]) / "training_loss.csv").open(encoding="utf-8") as file:
        losses = [float(line["Validation Loss"]) for line in csv.DictReader(file)]
    assert float(row["Validation Loss"]) == min(losses)
    assert losses[int(row["Best Epoch"]) - 1] == min(losses)


def test_the_best_settings_are_those_of_the_lowest_loss_and_can_be_read_as_settings(
    sweep: Callable[..., Path],
) -> None:
    best = sweep(sweep_trials=3)
    lowest = min(rows_of(best), key=lambda row: float(row["Validation Loss"]))
    values = read_settings_file(best).values
    assert values == {name: float(lowest[name]) for name in SPACE}
    assert Settings(**values).batch_size_train == int(lowest["batch_size_train"])


def test_the_workbook_holds_the_rows_of_the_csv(sweep: Callable[..., Path]) -> None:
    best = sweep()
    sheet = load_workbook(best.parent / "trials.xlsx")["Trials"]
    header, *cells = sheet.iter_rows(values_only=True)
    rows = rows_of(best)
    assert list(header) == list(rows[0])
    assert [str(row[0]) for row in cells] == [row["Trial"] for row in rows]
    assert [row[2] for row in cells] == [float(row["Validation Loss"]) for row in rows]


def test_pictures_are_drawn(sweep: Callable[..., Path]) -> None:
    folder = sweep(sweep_trials=4).parent
    for name in ("loss_curves", "parallel_coordinates", "importance"):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width > 400


def test_the_command_that_is_printed_repeats_what_was_asked_but_not_what_was_swept(
    settings_of: Callable[..., Settings], network: type[nn.Module], said: pytest.LogCaptureFixture
) -> None:
    asked = frozenset({"sweep_trials", "tile_size", "learning_rate"})
    settings = settings_of(sweep_trials=1)
    best = run_sweep(settings, network, ImageFolderDataset, asked=asked)
    command = said.messages[-1].splitlines()[-1]
    assert command.endswith(f"Training_MSE.py --config {best} --tile_size 16")


def test_a_trial_keeps_no_more_checkpoints_than_its_last(sweep: Callable[..., Path]) -> None:
    folder = sweep(sweep_trials=1, num_epochs=3, save_interval=1).parent / "trial_0000"
    (kept,) = folder.glob("Model_AE_epoch_*.pth")
    assert kept.samefile(folder / "Last_Model_AE.pth")


def test_a_password_in_the_storage_is_written_nowhere(
    sweep: Callable[..., Path], tmp_path: Path
) -> None:
    storage = f"sqlite:///{tmp_path}/secret.db"
    folder = sweep(sweep_storage=storage, sweep_trials=1).parent
    written = [p for p in folder.rglob("*") if p.suffix in {".json", ".csv", ".pth", ".py"}]
    assert written
    assert all(b"secret.db" not in path.read_bytes() for path in written)
    assert (tmp_path / "secret.db").is_file()


# One that goes on


def test_finished_trials_stand_when_a_sweep_is_started_again(sweep: Callable[..., Path]) -> None:
    before = rows_of(sweep(sweep_trials=2))
    assert rows_of(sweep(sweep_trials=2)) == before
    assert rows_of(sweep(sweep_trials=3))[:2] == before


def test_a_sweep_in_two_parts_tries_what_one_in_a_piece_does(sweep: Callable[..., Path]) -> None:
    space = {"learning_rate": (1e-4, 1e-2, "log")}
    sweep(sweep_name="parts", sweep_trials=1, sweep_space=space)
    parts = rows_of(sweep(sweep_name="parts", sweep_trials=3, sweep_space=space))
    whole = rows_of(sweep(sweep_name="whole", sweep_trials=3, sweep_space=space))
    kept = ("Trial", "learning_rate", "Validation Loss")
    assert [[row[k] for k in kept] for row in parts] == [[row[k] for k in kept] for row in whole]
    assert len({row["learning_rate"] for row in whole}) == 3


class Killed(BaseException):
    """Ends the process as far as the sweep can tell."""


def test_the_training_of_a_killed_sweep_goes_on_in_its_folder(
    sweep: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(sweeping, "report", die)
        with pytest.raises(Killed):
            sweep(num_epochs=3)
    (left,) = study_of(tmp_path / "sweeps").trials
    assert left.state == TrialState.RUNNING
    first, second, third = rows_of(sweep(num_epochs=3))
    assert (first["State"], first["Note"]) == ("ended", "was ended; trial 1 goes on with it")
    assert second["Note"] == "goes on with trial 0"
    assert Path(second["Folder"]).name == "trial_0000"
    assert [second[name] for name in SPACE] == [first[name] for name in SPACE]
    assert third["State"] == "complete"
    straight = sweep(num_epochs=3, sweep_name="straight", sweep_trials=1)
    assert rows_of(straight)[0]["Validation Loss"] == second["Validation Loss"]


def test_a_signal_ends_the_sweep_with_the_command_that_goes_on(
    settings_of: Callable[..., Settings],
    network: type[nn.Module],
    said: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweeping, "report", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    asked = frozenset({"sweep_trials", "GPUs"})
    with pytest.raises(InterruptedRunError):
        run_sweep(settings_of(num_epochs=2), network, ImageFolderDataset, asked=asked)
    assert said.messages[-1].endswith("Sweep.py --GPUs '' --sweep_trials 2")


def test_a_trial_that_another_process_works_on_is_left_to_it(
    sweep: Callable[..., Path], tmp_path: Path
) -> None:
    sweep(sweep_trials=1)
    study = study_of(tmp_path / "sweeps")
    trial = study.ask()
    folder = tmp_path / "sweeps/sweep/trial_0001"
    folder.mkdir()
    with occupied(folder):
        trial.set_user_attr("folder", folder.name)
        rows = rows_of(sweep(sweep_trials=2))
    assert [row["State"] for row in rows] == ["complete", "running", "complete"]


# Trials that fail


class Weak(nn.Module):
    """Cannot learn in batches of two."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        if self.training and len(images) == 2:
            raise torch.OutOfMemoryError
        return torch.sigmoid(self.layer(images))


def test_a_trial_that_fails_is_listed_and_the_sweep_goes_on(
    sweep: Callable[..., Path], said: pytest.LogCaptureFixture
) -> None:
    space = {"batch_size_train": [2, 4], "learning_rate": (1e-4, 1e-2)}
    best = sweep(model=Weak, sweep_space=space, sweep_trials=3)
    rows = rows_of(best)
    failed = [row for row in rows if row["State"] == "failed"]
    assert failed
    assert all(row["batch_size_train"] == "2" for row in failed)
    assert all("memory is too small" in row["Note"] for row in failed)
    assert [row["State"] for row in rows].count("complete") == 3
    assert read_settings_file(best).values["batch_size_train"] == 4
    assert sum("failed: the GPU's memory" in message for message in said.messages) >= 2


def test_a_sweep_in_which_every_trial_fails_comes_to_an_end(sweep: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"5 trials in a row have failed, .*memory is too small"):
        sweep(model=Weak, sweep_space={"batch_size_train": [2]})


def test_a_fault_of_the_program_ends_the_sweep_and_does_not_come_back(
    sweep: Callable[..., Path], tmp_path: Path
) -> None:
    class Broken(Weak):
        def forward(self, images: Tensor) -> Tensor:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sweep(model=Broken)
    (trial,) = study_of(tmp_path / "sweeps").trials
    assert trial.state == TrialState.FAIL
    assert "ZeroDivisionError" in trial.user_attrs["error"]


def test_a_storage_that_fails_on_the_way_is_told_in_one_line_and_the_sweep_goes_on_later(
    sweep: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, report = tmp_path / "sweeps/sweep.db", sweeping.report

    def vanish(*arguments: Any) -> None:
        database.rename(tmp_path / "away.db")
        database.mkdir()
        report(*arguments)

    monkeypatch.setattr(sweeping, "report", vanish)
    with pytest.raises(UserError, match=r"sweep_storage cannot be written or read \(.*\); start"):
        sweep()
    monkeypatch.setattr(sweeping, "report", report)
    database.rmdir()
    (tmp_path / "away.db").rename(database)
    rows = rows_of(sweep())
    assert [row["State"] for row in rows] == ["ended", "complete", "complete"]
    assert rows[1]["Note"] == "goes on with trial 0"


def test_a_storage_that_fails_for_a_moment_loses_no_trial(
    sweep: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: Any) -> None:
        raise OperationalError("", None, Exception("database is locked"))

    with monkeypatch.context() as patched:
        patched.setattr(sweeping, "report", locked)
        with pytest.raises(UserError, match="database is locked"):
            sweep()
    assert rows_of(sweep())[0]["State"] == "ended"


def test_a_sweep_that_is_finished_needs_nothing_but_its_study(
    sweep: Callable[..., Path], tmp_path: Path, network: type[nn.Module]
) -> None:
    torch.save(network(3).state_dict(), tmp_path / "first.pth")
    best = sweep(initial_weights=str(tmp_path / "first.pth"))
    (tmp_path / "first.pth").unlink()
    assert sweep(initial_weights=str(tmp_path / "first.pth")) == best


# What is refused


def test_another_space_is_refused_for_the_same_study(sweep: Callable[..., Path]) -> None:
    sweep(sweep_trials=1)
    with pytest.raises(UserError, match=r"sweep_name 'sweep' has trials of other settings: swe"):
        sweep(sweep_space={"learning_rate": [1e-2]})


def test_other_settings_of_what_is_not_swept_are_refused_for_the_same_study(
    sweep: Callable[..., Path],
) -> None:
    sweep(sweep_trials=1)
    with pytest.raises(UserError, match=r"weight_decay was 1e-05, now 0\.1"):
        sweep(weight_decay=0.1)


def test_a_range_is_another_space_than_two_choices(sweep: Callable[..., Path]) -> None:
    sweep(sweep_trials=1, sweep_space={"learning_rate": [1e-3, 1e-2]})
    with pytest.raises(UserError, match="sweep_space was"):
        sweep(sweep_space={"learning_rate": (1e-3, 1e-2)})


@pytest.mark.parametrize(
    "changes",
    [
        {"validation_fraction": 0.0},
        {"validation_group": "png"},
        {"resume": "auto"},
        {"initial_weights": "nowhere.pth"},
        {"folder_path_validation": "nowhere"},
        {"architecture": "dense", "tile_size": 40},
        {"loss_weights_mse": {"ms_ssim": 1.0}},
        {"tracking": "wandb"},
    ],
)
def test_nothing_is_written_for_a_sweep_that_cannot_be(
    sweep: Callable[..., Path],
    tmp_path: Path,
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(foresight, "find_spec", lambda _: None)
    with pytest.raises(UserError):
        sweep(**changes)
    assert not (tmp_path / "sweeps").exists()


@pytest.mark.parametrize("name", ["a/b", "..", "", "a b"])
def test_a_name_that_is_no_folder_is_refused(
    settings_of: Callable[..., Settings], name: str
) -> None:
    settings = settings_of().model_copy(update={"sweep_name": name})
    with pytest.raises(UserError, match="sweep_name must be"):
        run_sweep(settings, nn.Identity, ImageFolderDataset)


def test_a_storage_that_does_not_open_is_refused(sweep: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="sweep_storage must be a database"):
        sweep(sweep_storage="nonsense")


def test_no_password_of_a_database_is_shown(sweep: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="sweep_storage must be") as caught:
        sweep(sweep_storage="nonsense://someone:secret@localhost/trials")
    assert "secret" not in str(caught.value)
    assert "someone" in str(caught.value)


def test_several_ranks_are_refused(
    sweep: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="without torchrun"):
        sweep()


def test_a_folder_of_another_sweep_is_not_written_to(
    sweep: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "sweeps/sweep/trial_0000"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match="is of another sweep"):
        sweep()
    assert list(folder.iterdir()) == []


def test_the_script_says_what_is_missing_without_optuna(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in list(sys.modules):
        if name.startswith(("recon.pipeline.sweep", "recon.analysis.sweep")):
            monkeypatch.delitem(sys.modules, name)
    assert Sweep.main(["--GPUs", ""]) == 2
    assert "Sweep.py needs the package optuna: pip install optuna" in capsys.readouterr().err


def test_the_script_sweeps_from_the_command_line(
    settings_of: Callable[..., Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings_of()
    argv = (
        f"--GPUs= --num_workers 0 --folder_path_train {tmp_path}/train --tile_size 16 "
        f"--validation_fraction 0.3 --num_epochs 1 --sweep_folder {tmp_path}/s --sweep_trials 1"
    ).split()
    space = "{'learning_rate': (1e-4, 1e-2, 'log')}"
    assert Sweep.main([*argv, "--sweep_space", space]) == 0
    assert "Train with its settings:" in capsys.readouterr().out
    assert Sweep.main([*argv, "--sweep_space", "{'learning_rat': [1]}"]) == 2
    expected = "unknown setting 'learning_rat' in sweep_space; did you mean 'learning_rate'?"
    assert expected in capsys.readouterr().err


# The study


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return open_study(f"sqlite:///{tmp_path}/study.db", "study", {}, pruning=True)


def test_trials_are_compared_at_the_same_part_of_their_epochs(study: optuna.Study) -> None:
    for epochs in (4, 10, 25):
        trial = study.ask()
        for epoch in range(1, epochs + 1):
            report(trial, 1 / epoch, epoch, epochs)
        study.tell(trial, 1 / epochs)
        steps = study.trials[-1].intermediate_values
        assert max(steps) == TENTHS
        for step, loss in steps.items():
            assert step - 1 < TENTHS / (loss * epochs) - 1e-9 or step == TENTHS / (loss * epochs)
            assert math.isclose(step, TENTHS / (loss * epochs), abs_tol=1)


def test_a_trial_behind_the_median_is_pruned(study: optuna.Study) -> None:
    for loss in (1.0, 2.0, 3.0, 4.0, 5.0):
        trial = study.ask()
        report(trial, loss, 10, 20)
        study.tell(trial, loss)
    report(study.ask(), 2.9, 5, 10)
    with pytest.raises(optuna.TrialPruned):
        report(study.ask(), 3.1, 5, 10)


def test_processes_that_start_together_draw_differently(study: optuna.Study) -> None:
    dimensions = read_space({"learning_rate": (1e-4, 1e-2), "weight_decay": (0.0, 0.1)}, "mse")
    other = optuna.load_study(study_name="study", storage=study._storage)
    first, second = ask(study, dimensions, 0), ask(other, dimensions, 0)
    assert first.params.keys() == second.params.keys() == dimensions.keys()
    assert first.params != second.params


def test_the_setting_that_decides_is_the_most_important(study: optuna.Study) -> None:
    dimensions = read_space({"learning_rate": (1e-4, 1e-2), "weight_decay": (0.0, 0.1)}, "mse")
    for _ in range(20):
        trial = ask(study, dimensions, 0)
        study.tell(trial, trial.params["learning_rate"])
    shares = importances(study)
    assert next(iter(shares)) == "learning_rate"
    assert sum(shares.values()) == pytest.approx(1)
