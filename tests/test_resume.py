import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datasets import ImageFolderDataset
from recon.errors import InterruptedRunError, UserError
from recon.pipeline import run_training, training
from recon.training.checkpoint import read_model_file
from recon.training.keeper import Keeper
from recon.training.resume import epoch_name
from recon.training.runtime import Runtime
from recon.training.trainer import Trainer

Train = Callable[..., dict[str, Tensor]]
WriteImages = Callable[..., Path]

TIMES = {"Seconds", "Images/s"}
LAST = "Last_Model_AE.pth"
# Random windows, turns, colours and blur; a warm-up, a decay and an average of the weights.
FULL = {"augmentation": True, "crop_size": 12, "validation_fraction": 0.3, "save_interval": 2}


@pytest.fixture
def images(write_images: WriteImages, tmp_path: Path) -> Path:
    return write_images(tmp_path / "train", names=[f"{i // 3}/{i}.png" for i in range(15)])


def places(tmp_path: Path, name: str) -> dict[str, str]:
    folder = tmp_path / name
    return {
        "model_saved_location_mse": str(folder),
        "training_loss_file_mse": str(folder / "l.csv"),
    }


def log_of(folder: Path) -> list[dict[str, str]]:
    """Rows of the log without the times."""
    with (folder / "l.csv").open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def spelled(value: Any) -> Any:
    """Nested plain data whose equality is that of every bit."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {name: spelled(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [spelled(entry) for entry in value]
    return repr(value)


def end_of(folder: Path) -> dict[str, Any]:
    """What decides all that would follow: weights, moments, averages, random state, best epoch."""
    saved = torch.load(folder / LAST, weights_only=True)
    state = saved["run"]["state"]
    history = [[*row[:6], row[8]] for row in state["history"]]
    kept = {name: saved["run"][name] for name in ("average", "random", "scaler")}
    best = [state[name] for name in ("epoch", "step", "best_epoch", "best_loss", "sums")]
    return spelled(
        [
            saved["model_state_dict"],
            saved["optimizer_state_dict"],
            history,
            best,
            kept,
            saved["epoch"],
        ]
    )


def assert_alike(one: Path, other: Path) -> None:
    assert end_of(one) == end_of(other)
    assert log_of(one) == log_of(other)
    for kind in ("Final", "Best"):
        models = [
            torch.load(f / f"{kind}_Model_AE_MSE.pth", weights_only=True) for f in (one, other)
        ]
        assert spelled(models[0]) == spelled(models[1])


class Stop(Exception):  # noqa: N818 - it stands for a power cut, not for an error
    """The end of the process, as far as the run can see."""


def cut_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the run without notice when so many epochs have been saved."""
    begin = Trainer._train_epoch

    def train_epoch(trainer: Trainer, watch: Any) -> Any:
        if trainer.state.epoch == epochs:
            raise Stop
        return begin(trainer, watch)

    monkeypatch.setattr(Trainer, "_train_epoch", train_epoch)


def signal_in(epoch: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM to this process in the middle of a step, both counted from 0."""
    take_step = Trainer._step

    def step_and_signal(trainer: Trainer, *args: Any) -> Tensor:
        if (trainer.state.epoch, trainer.state.step) == (epoch, step):
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(trainer, *args)

    monkeypatch.setattr(Trainer, "_step", step_and_signal)


close_epoch = Trainer._close_epoch


def closed_as_worse(trainer: Trainer, watch: Any) -> None:
    """Close an epoch that is not the best."""
    trainer.state.best_loss = -1.0
    close_epoch(trainer, watch)


# Equal to a run in one go


@pytest.mark.parametrize("done", [1, 3])
def test_a_run_cut_between_epochs_and_resumed_equals_one_in_one_go(
    done: int, train: Train, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(num_epochs=4, **FULL, **places(tmp_path, "whole"))
    with monkeypatch.context() as patch:
        cut_after(done, patch)
        with pytest.raises(Stop):
            train(num_epochs=4, **FULL, **places(tmp_path, "parts"))
    train(num_epochs=4, **FULL, **places(tmp_path, "parts"), resume="auto")
    assert_alike(tmp_path / "whole", tmp_path / "parts")


def test_a_run_ended_by_a_signal_in_validation_saves_at_once_and_validates_when_it_goes_on(
    train: Train, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, signalled = Trainer._judge, []

    def judge_and_signal(trainer: Trainer, *args: Any) -> Any:
        if trainer.state.epoch == 1 and not torch.is_grad_enabled() and not signalled:
            signalled.append(trainer.state.step)
            os.kill(os.getpid(), signal.SIGTERM)
        return judge(trainer, *args)

    small = {"batch_size_train": 2}  # Several batches of validation: the rest are left out.
    train(num_epochs=3, **FULL, **places(tmp_path, "whole"), **small)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_judge", judge_and_signal)
        with pytest.raises(InterruptedRunError):
            train(num_epochs=3, **FULL, **places(tmp_path, "parts"), **small)
    saved = torch.load(tmp_path / "parts" / LAST, weights_only=True)
    assert (saved["epoch"], saved["run"]["state"]["step"]) == (1, *signalled)
    assert len(log_of(tmp_path / "parts")) == 1
    train(num_epochs=3, **FULL, **places(tmp_path, "parts"), **small, resume="auto")
    assert_alike(tmp_path / "whole", tmp_path / "parts")


def test_a_signal_at_the_final_model_still_tells_how_to_go_on(
    train: Train,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    caplog.set_level("INFO", "recon")
    monkeypatch.setattr(Keeper, "finish", end)
    with pytest.raises(KeyboardInterrupt):
        train(num_epochs=1, **places(tmp_path, "run"))
    assert "Go on with:" in caplog.text


@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (1, 1), (1, 2), (2, 2)])
def test_a_run_ended_by_a_signal_in_an_epoch_and_resumed_equals_one_in_one_go(
    epoch: int,
    step: int,
    train: Train,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train(num_epochs=3, **FULL, **places(tmp_path, "whole"))
    with monkeypatch.context() as patch:
        signal_in(epoch, step, patch)
        with pytest.raises(InterruptedRunError) as caught:
            train(num_epochs=3, **FULL, **places(tmp_path, "parts"))
    assert caught.value.signum == signal.SIGTERM
    saved = torch.load(tmp_path / "parts" / LAST, weights_only=True)
    assert saved["epoch"] == epoch
    assert saved["run"]["state"]["step"] == step + 1
    train(num_epochs=3, **FULL, **places(tmp_path, "parts"), resume="auto")
    assert_alike(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("lost", ["_link", "write_log", "Keeper._save_model"])
def test_a_run_killed_right_after_its_checkpoint_lacks_nothing_after_resume(
    lost: str, train: Train, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best model, the kept checkpoint and the log of that epoch come after the checkpoint."""
    options = FULL | {"save_interval": 1, "num_epochs": 2}
    train(**options, **places(tmp_path, "whole"))

    def cut(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(f"recon.training.keeper.{lost}", cut)
        with pytest.raises(Stop):
            train(**options, **places(tmp_path, "parts"))
    # Later epochs shall not make up for it.
    monkeypatch.setattr("recon.training.trainer.Trainer._close_epoch", closed_as_worse)
    train(**options, **places(tmp_path, "parts"), resume="auto")
    files = [sorted(p.name for p in (tmp_path / n).iterdir()) for n in ("whole", "parts")]
    assert files[0] == files[1]


def test_a_kept_checkpoint_that_cannot_be_named_leaves_nothing_behind(
    train: Train, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recon.training.keeper.publish", fail)
    with pytest.raises(OSError, match="No space"):
        train(**FULL | {"save_interval": 1}, **places(tmp_path, "run"))
    assert not list((tmp_path / "run").glob("*.partial"))


def test_a_run_interrupted_twice_equals_one_in_one_go(
    train: Train, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(num_epochs=2, **FULL, **places(tmp_path, "whole"))
    for number, resume in enumerate(["", "auto"]):
        with monkeypatch.context() as patch:
            signal_in(0, number, patch)
            with pytest.raises(InterruptedRunError):
                train(num_epochs=2, **FULL, **places(tmp_path, "parts"), resume=resume)
    train(num_epochs=2, **FULL, **places(tmp_path, "parts"), resume="auto")
    assert_alike(tmp_path / "whole", tmp_path / "parts")


def test_resuming_with_other_workers_changes_nothing(
    train: Train, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(num_epochs=2, **FULL, **places(tmp_path, "whole"))
    with monkeypatch.context() as patch:
        signal_in(0, 1, patch)
        with pytest.raises(InterruptedRunError):
            train(num_epochs=2, **FULL, **places(tmp_path, "parts"))
    train(num_epochs=2, **FULL, **places(tmp_path, "parts"), resume="auto", num_workers=2)
    assert_alike(tmp_path / "whole", tmp_path / "parts")


def test_resuming_without_an_average_of_the_weights_equals_one_go(
    train: Train, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = FULL | {"weight_averaging": 0.0}
    train(num_epochs=2, **options, **places(tmp_path, "whole"))
    with monkeypatch.context() as patch:
        signal_in(1, 0, patch)
        with pytest.raises(InterruptedRunError):
            train(num_epochs=2, **options, **places(tmp_path, "parts"))
    train(num_epochs=2, **options, **places(tmp_path, "parts"), resume="auto")
    assert_alike(tmp_path / "whole", tmp_path / "parts")


def test_resuming_a_finished_run_changes_nothing(
    train: Train, images: Path, tmp_path: Path
) -> None:
    first = train(**places(tmp_path, "run"))
    again = train(**places(tmp_path, "run"), resume="auto")
    assert spelled(first) == spelled(again)
    assert len(log_of(tmp_path / "run")) == 2


def test_resuming_makes_a_model_and_its_sidecar_a_pair_again(
    train: Train, images: Path, tmp_path: Path
) -> None:
    train(num_epochs=1, **places(tmp_path, "run"))
    model = tmp_path / "run/Final_Model_AE_MSE.pth"
    older = model.with_suffix(".json").read_bytes()
    train(num_epochs=2, **places(tmp_path, "run"))
    model.with_suffix(".json").write_bytes(older)  # As a kill between the two renames leaves them.
    with pytest.raises(UserError, match="describes other weights"):
        read_model_file(model)
    train(num_epochs=2, **places(tmp_path, "run"), resume="auto")
    assert read_model_file(model).provenance["results"]["epochs"] == 2


def test_an_older_checkpoint_can_be_named(train: Train, images: Path, tmp_path: Path) -> None:
    train(num_epochs=3, **places(tmp_path, "one"))
    path = tmp_path / "one/Model_AE_epoch_001.pth"
    train(num_epochs=3, **places(tmp_path, "other"), resume=str(path))
    assert end_of(tmp_path / "one") == end_of(tmp_path / "other")


# Which checkpoint


def test_a_checkpoint_that_is_gone_on_from_stays_until_there_is_a_newer_one(
    train: Train, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = places(tmp_path, "run")
    train(num_epochs=4, save_interval=1, **run)
    second = tmp_path / "run" / epoch_name(2)
    settings = {"save_interval": 1, "keep_checkpoints": 1, "resume": str(second), **run}
    with monkeypatch.context() as patch:
        cut_after(2, patch)
        with pytest.raises(Stop):
            train(num_epochs=4, **settings)
    assert second.is_file()
    train(num_epochs=4, **settings)
    kept = sorted(path.name for path in (tmp_path / "run").glob("Model_AE_epoch_*"))
    assert kept == [epoch_name(4)]


def test_fewer_epochs_than_a_checkpoint_is_in_are_refused(
    train: Train, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        signal_in(2, 0, patch)
        with pytest.raises(InterruptedRunError):
            train(num_epochs=4, **places(tmp_path, "run"))
    with pytest.raises(UserError, match=r"num_epochs must be at least 3 to go on .*, got 2"):
        train(num_epochs=2, **places(tmp_path, "run"), resume="auto")


def test_the_best_model_of_another_run_is_not_taken_for_the_own(
    train: Train, images: Path, tmp_path: Path
) -> None:
    for name, seed in (("one", 0), ("two", 1)):
        train(num_epochs=2, seed=seed, save_interval=1, **places(tmp_path, name))
    last = str(tmp_path / "two" / LAST)
    train(num_epochs=2, seed=1, save_interval=1, **places(tmp_path, "one"), resume=last)
    best = [read_model_file(tmp_path / n / "Best_Model_AE_MSE.pth").weights for n in ("one", "two")]
    assert spelled(best[0]) == spelled(best[1])


def test_auto_starts_anew_where_there_is_none(
    train: Train, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "recon")
    train(num_epochs=1, **places(tmp_path, "run"), resume="auto")
    assert "starting anew" in caplog.text
    assert len(log_of(tmp_path / "run")) == 1


def test_auto_never_writes_over_checkpoints_that_cannot_be_read(
    train: Train, images: Path, tmp_path: Path
) -> None:
    train(num_epochs=1, **places(tmp_path, "run"))
    for path in (tmp_path / "run").glob("*epoch*.pth"):
        path.write_bytes(path.read_bytes()[:100])
    (tmp_path / "run/Last_Model_AE.pth").write_bytes(b"torn")
    before = {p: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    with pytest.raises(UserError, match="resume = 'auto' must find a checkpoint that can be read"):
        train(num_epochs=2, **places(tmp_path, "run"), resume="auto")
    assert {p: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


def test_auto_does_not_take_a_split_without_its_checkpoint(
    train: Train, images: Path, tmp_path: Path
) -> None:
    split = {"validation_fraction": 0.5, "validation_group": "image"}
    train(num_epochs=1, **places(tmp_path, "run"), **split)
    for path in (tmp_path / "run").glob("*.pth"):
        path.unlink()
    before = json.loads((tmp_path / "run/validation_split.json").read_text())["validation"]
    less = {**split, "validation_fraction": 0.2}
    train(num_epochs=1, **places(tmp_path, "run"), **less, resume="auto")
    after = json.loads((tmp_path / "run/validation_split.json").read_text())["validation"]
    assert 0 < len(after) < len(before)


def test_auto_picks_the_newest(
    train: Train, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(num_epochs=2, **places(tmp_path, "run"))
    (tmp_path / "run" / LAST).unlink()
    older = tmp_path / "run/Model_AE_epoch_001.pth"
    shutil.copy2(older, older.with_name("Model_AE_epoch_009.pth"))  # Of a longer run before.
    caplog.set_level("INFO", "recon")
    train(num_epochs=2, **places(tmp_path, "run"), resume="auto")
    assert "Model_AE_epoch_002.pth after epoch 2" in caplog.text


def test_auto_counts_epochs_above_999_rightly(
    train: Train, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(num_epochs=2, **places(tmp_path, "run"))
    folder = tmp_path / "run"
    (folder / LAST).unlink()
    (folder / "Model_AE_epoch_002.pth").rename(folder / "Model_AE_epoch_1000.pth")
    (folder / "Model_AE_epoch_001.pth").rename(folder / "Model_AE_epoch_999.pth")
    caplog.set_level("INFO", "recon")
    train(num_epochs=2, **places(tmp_path, "run"), resume="auto")
    assert "Model_AE_epoch_1000.pth after epoch 2" in caplog.text


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "other"])
def test_auto_passes_over_a_damaged_one_and_says_so(
    damage: str, train: Train, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(num_epochs=2, **places(tmp_path, "run"))
    whole = end_of(tmp_path / "run")
    last = tmp_path / "run" / LAST
    content = bytearray(last.read_bytes())
    for place in range(100, len(content), 97):  # One bit alone may hit what nothing reads.
        content[place] ^= 16
    damaged = {"truncated": bytes(content[:-9]), "empty": b"", "flipped": bytes(content)}
    damaged["other"] = (tmp_path / "run/Final_Model_AE_MSE.pth").read_bytes()
    for path in (last, tmp_path / "run/Model_AE_epoch_002.pth"):
        path.unlink()
        path.write_bytes(damaged[damage])
    caplog.set_level("INFO", "recon")
    train(num_epochs=2, **places(tmp_path, "run"), resume="auto")
    assert caplog.text.count("Passed over: ") == 2
    assert "Model_AE_epoch_001.pth after epoch 1" in caplog.text
    assert end_of(tmp_path / "run") == whole


def test_a_damaged_checkpoint_that_was_named_is_refused(
    train: Train, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.pth").write_bytes(b"no")
    with pytest.raises(UserError, match=r"a\.pth is no readable"):
        train(resume=str(tmp_path / "a.pth"))
    with pytest.raises(UserError, match=r"b\.pth is missing"):
        train(resume=str(tmp_path / "b.pth"))


# What may change


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tile_size", 24),
        ("batch_size_train", 3),
        ("learning_rate", 0.5),
        ("weight_decay", 0.5),
        ("weight_averaging", 0.5),
        ("optimizer", "adam"),
        ("schedule", "constant"),
        ("warmup_fraction", 0.5),
        ("gradient_clip", 0.5),
        ("seed", 7),
        ("precision", "bfloat16"),
        ("input_normalization", "none"),
        ("intensity_range", (0.0, 9.0)),
        ("loss_weights_mse", {"l1": 1.0}),
        ("augmentation", False),
        ("augment_hue", 0.3),
        ("crop_size", 14),
        ("images_per_epoch", 4),
        ("balance_folders", True),
    ],
)
def test_changed_settings_are_refused_by_name(
    name: str, value: Any, train: Train, images: Path, tmp_path: Path
) -> None:
    train(num_epochs=1, **places(tmp_path, "run"))
    with pytest.raises(UserError, match=f"cannot be resumed.* {name} was .*, now ") as caught:
        train(num_epochs=2, **places(tmp_path, "run"), resume="auto", **{name: value})
    assert "\n" not in str(caught.value)
    assert repr(value) in str(caught.value) or json.dumps(list(value)) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_workers", 1),
        ("save_interval", 3),
        ("unreadable_images", "stop"),
        ("folder_path_test", "elsewhere"),
        ("batch_size_test", 1),
        ("cache", "none"),
    ],
)
def test_settings_that_do_not_decide_the_weights_may_change(
    name: str, value: Any, train: Train, images: Path, tmp_path: Path
) -> None:
    train(num_epochs=1, **places(tmp_path, "run"))
    train(num_epochs=2, **places(tmp_path, "run"), resume="auto", **{name: value})
    assert len(log_of(tmp_path / "run")) == 2


def test_the_number_of_epochs_may_change(train: Train, images: Path, tmp_path: Path) -> None:
    train(num_epochs=1, **places(tmp_path, "run"))
    train(num_epochs=3, **places(tmp_path, "run"), resume="auto")
    assert [row["Epoch"] for row in log_of(tmp_path / "run")] == ["1", "2", "3"]


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "replaced"])
def test_changed_training_images_are_refused(
    change: str, train: Train, images: Path, write_images: WriteImages, tmp_path: Path
) -> None:
    train(num_epochs=1, **places(tmp_path, "run"))
    if change == "added":
        write_images(images, names=["0/new.png"])
    if change == "removed":
        (images / "0/0.png").unlink()
    if change == "renamed":
        (images / "0/0.png").rename(images / "0/00.png")
    if change == "replaced":
        write_images(images, names=["0/0.png"], edge=24, seed=9)
    with pytest.raises(UserError, match="the training images have changed"):
        train(num_epochs=2, **places(tmp_path, "run"), resume="auto")


def test_the_training_folder_may_be_named_from_elsewhere(
    train: Train, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(num_epochs=1, **places(tmp_path, "run"))
    monkeypatch.chdir(images)
    train(num_epochs=2, **places(tmp_path, "run"), resume="auto", folder_path_train=".")
    assert len(log_of(tmp_path / "run")) == 2


def test_a_checkpoint_of_the_other_objective_is_refused(
    train: Train, images: Path, tmp_path: Path, make_settings: Callable[..., Any], network: Any
) -> None:
    train(num_epochs=1, **places(tmp_path, "run"))
    settings = make_settings(
        resume=str(tmp_path / "run" / LAST),
        model_saved_location_ssim=str(tmp_path / "ssim"),
        training_loss_file_ssim=str(tmp_path / "ssim/l.csv"),
    )
    with pytest.raises(UserError, match=r"cannot be resumed.*objective"):
        run_training(settings, "ssim", network, ImageFolderDataset)


def test_a_checkpoint_that_records_no_run_is_refused(
    train: Train, images: Path, tmp_path: Path
) -> None:
    """Such as one that another program wrote with our keys."""
    train(num_epochs=1, **places(tmp_path, "run"))
    saved = torch.load(tmp_path / "run" / LAST, weights_only=True)
    del saved["provenance"]
    torch.save(saved, tmp_path / "a.pth")
    with pytest.raises(UserError, match="lacks provenance"):
        train(resume=str(tmp_path / "a.pth"))


# A process of its own, with worker processes, ended from outside

PROGRAM = """
import sys, time
sys.path[:0] = [{tests!r}, {root!r}]
from conftest import TwoLayers
from datasets import ImageFolderDataset
from recon.command import run_command
from recon.pipeline import run_training, training

class Slow(TwoLayers):
    def forward(self, images):
        time.sleep({pause})
        return super().forward(images)

def job(settings, asked):
    run_training(settings, "mse", Slow, ImageFolderDataset, asked=asked)

if __name__ == "__main__":
    sys.exit(run_command({{}}, None, job))
"""


def program(pause: float) -> str:
    tests = Path(__file__).resolve().parent
    return PROGRAM.format(tests=str(tests), root=str(tests.parent), pause=pause)


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_a_signal_to_all_processes_of_a_run_saves_it_and_resume_equals_one_go(
    train: Train, images: Path, tmp_path: Path
) -> None:
    """As `timeout` and batch systems send it: to the workers too."""
    options = {"num_epochs": "2", "tile_size": "16", "batch_size_train": "2", "GPUs": ""}
    options |= {"validation_fraction": "0", "precision": "float32", "num_workers": "2"}
    options |= {"folder_path_train": str(images), **places(tmp_path, "parts")}
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    process = subprocess.Popen(
        [sys.executable, "-c", program(0.5), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout or ():
        if line.startswith("Images:"):
            break
    while not (tmp_path / "parts" / LAST).is_file() and process.poll() is None:
        time.sleep(0.05)  # It reads an image before it begins.
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert output.splitlines()[-1] == "error: ended by SIGTERM"
    saved = torch.load(tmp_path / "parts" / LAST, weights_only=True)
    assert saved["run"]["state"]["step"] > 0
    assert saved["epoch"] < 2
    same = {"batch_size_train": 2, "augmentation": True}
    train(**same, **places(tmp_path, "parts"), resume="auto")
    train(**same, **places(tmp_path, "whole"))
    assert_alike(tmp_path / "whole", tmp_path / "parts")


# Beginnings


def test_a_run_that_is_ended_before_its_first_epoch_is_the_one_that_goes_on(
    train: Train, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert images.is_dir()
    expected = train(**places(tmp_path, "alone"), **FULL, seed=5)
    train(**places(tmp_path, "runs"), **FULL, seed=1)
    with monkeypatch.context() as patch:
        cut_after(0, patch)
        with pytest.raises(Stop):
            train(**places(tmp_path, "runs"), **FULL, seed=5)
    found = train(**places(tmp_path, "runs"), **FULL, seed=5, resume="auto")
    assert spelled(found) == spelled(expected)
    assert end_of(tmp_path / "runs") == end_of(tmp_path / "alone")


@pytest.mark.parametrize("moment", ["check_space", "check_readable", "_tracking"])
def test_a_run_that_is_ended_before_it_has_begun_leaves_the_one_before_as_it_was(
    train: Train, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    assert images.is_dir()
    steady = {**FULL, "schedule": "constant", "warmup_fraction": 0.0}
    train(**places(tmp_path, "alone"), **steady, num_epochs=3)
    train(**places(tmp_path, "runs"), **steady, num_epochs=2)

    def stop(*_: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(training, moment, stop)
        with pytest.raises(Stop):
            train(**places(tmp_path, "runs"), **steady, seed=5)
    train(**places(tmp_path, "runs"), **steady, num_epochs=3, resume="auto")
    assert_alike(tmp_path / "runs", tmp_path / "alone")


@pytest.mark.parametrize("contents", ["other", "same size"])
@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_run_does_not_go_on_with_other_images(
    train: Train, write_images: WriteImages, tmp_path: Path, part: str, contents: str
) -> None:
    for name in ("train", "validation"):
        write_images(tmp_path / name, 4)
    settings = {
        **places(tmp_path, "run"),
        "folder_path_train": str(tmp_path / "train"),
        "folder_path_validation": str(tmp_path / "validation"),
    }
    train(**settings, num_epochs=1)
    path = next((tmp_path / part).rglob("*.png"))
    content = path.read_bytes()
    if contents == "other":
        path.rename(path.with_name("other.png"))
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    part = {"train": "training"}.get(part, part)
    with pytest.raises(UserError, match=f"the {part} images have changed since"):
        train(**settings, num_epochs=2, resume="auto")


def test_the_best_model_comes_along_into_another_folder(
    train: Train, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert images.is_dir()
    rising = {"learning_rate": 3.0, "schedule": "constant", "warmup_fraction": 0.0}
    settings = {**FULL, **rising, "save_interval": 1, "weight_averaging": 0.0, "gradient_clip": 0.0}
    train(**places(tmp_path, "one"), **settings, num_epochs=4)
    best = json.loads((tmp_path / "one/Best_Model_AE_MSE.json").read_text())["results"]["epochs"]
    assert best < 4
    last = str(tmp_path / "one/Model_AE_epoch_004.pth")
    train(**places(tmp_path, "two"), **settings, num_epochs=4, resume=last)
    for name in ("Best_Model_AE_MSE.pth", "Best_Model_AE_MSE.json"):
        assert (tmp_path / "two" / name).is_file()
    (tmp_path / "one/Best_Model_AE_MSE.json").unlink()
    caplog.set_level("WARNING", "recon")
    train(**places(tmp_path, "three"), **settings, num_epochs=4, resume=last)
    assert f"The best model so far, of epoch {best}, is not in" in caplog.text


def test_the_best_model_comes_along_from_the_middle_of_an_epoch(
    train: Train, images: Path, tmp_path: Path
) -> None:
    assert images.is_dir()
    rising = {"learning_rate": 3.0, "schedule": "constant", "warmup_fraction": 0.0}
    settings = {**FULL, **rising, "save_interval": 1, "weight_averaging": 0.0, "gradient_clip": 0.0}
    train(**places(tmp_path, "one"), **settings, num_epochs=4)
    record = json.loads((tmp_path / "one/Best_Model_AE_MSE.json").read_text())
    best = record["results"]["epochs"]
    checkpoint = tmp_path / f"one/Model_AE_epoch_{best:03d}.pth"
    content = torch.load(checkpoint, weights_only=True)
    content["run"]["state"]["step"] = 1  # of the epoch after the best one
    torch.save(content, checkpoint)
    train(**places(tmp_path, "two"), **settings, num_epochs=4, resume=str(checkpoint))
    brought = json.loads((tmp_path / "two/Best_Model_AE_MSE.json").read_text())
    assert brought["weights_sha256"] == record["weights_sha256"]


def test_a_device_that_scales_losses_goes_on_from_one_that_does_not(
    train: Train, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert images.is_dir()
    train(**places(tmp_path, "one"), **FULL, num_epochs=1)
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    monkeypatch.setattr(Runtime, "scaler", lambda _: scaler)
    train(**places(tmp_path, "one"), **FULL, num_epochs=2, resume="auto")
    assert torch.load(tmp_path / "one" / LAST, weights_only=True)["run"]["scaler"]


def _without(*names: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for name in names[:-1]:
            content = content[name]
        del content[names[-1]]

    return change


def _with(value: Any, *names: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for name in names[:-1]:
            content = content[name]
        content[names[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _with({}, "provenance"), _with(3, "run"), _without("run", "average"),
        _with(None, "run", "average"), _with([], "optimizer_state_dict", "param_groups"),
        _with({}, "run", "random"), _with({"a": 1}, "model_state_dict"),
        _with({}, "run", "state"), _without("run", "scaler"), _with(None, "provenance", "data"),
    ],
)  # fmt: skip
def test_a_checkpoint_whose_parts_do_not_fit_is_refused_in_one_line(
    train: Train, images: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    assert images.is_dir()
    train(**places(tmp_path, "run"), **FULL, num_epochs=1)
    content = torch.load(tmp_path / "run" / LAST, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "changed.pth")
    with pytest.raises(UserError) as caught:
        train(**places(tmp_path, "run"), **FULL, resume=str(tmp_path / "changed.pth"))
    assert "changed.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


STATE = ("run", "state")
MALFORMED = [
    _with(-5, *STATE, "epoch"), _with("1", *STATE, "epoch"), _with(True, *STATE, "epoch"),
    _with(-1, *STATE, "step"), _with("low", *STATE, "best_loss"),
    _with(float("nan"), *STATE, "best_loss"), _with(9, *STATE, "best_epoch"),
    _with([], *STATE, "unreadable"), _with({"a": 3}, *STATE, "unreadable"),
    _with([], *STATE, "history"), _with([[1, "x", 1, 1, 1, 1, 1, 1]], *STATE, "history"),
    _with([[1, 1, 1, 1, 1, 1, 1, 1, 3]], *STATE, "history"), _with(3, *STATE, "history"),
    _with([-1], *STATE, "sums", "codes"), _with("no", *STATE, "seconds"),
    _with("1", "run", "average", "updates"), _with(-1, "run", "average", "updates"),
    _with(torch.zeros(2, 7), "optimizer_state_dict", "state", 0, "exp_avg"),
    _with("zeros", "optimizer_state_dict", "state", 0, "exp_avg"),
    _with("0.1", "optimizer_state_dict", "param_groups", 0, "weight_decay"),
    _with(float("nan"), "optimizer_state_dict", "param_groups", 0, "eps"),
    _with([0.9, 0.99], "optimizer_state_dict", "param_groups", 0, "betas"),
    _with([], "optimizer_state_dict", "param_groups"),
    _with((0.9, 0.99, 0.9), "optimizer_state_dict", "param_groups", 0, "betas"),
    _with((float("nan"), 0.99), "optimizer_state_dict", "param_groups", 0, "betas"),
    _with(None, "optimizer_state_dict", "param_groups", 0, "eps"),
    _with(True, "optimizer_state_dict", "param_groups", 0, "maximize"),
    _with(float("inf"), "optimizer_state_dict", "param_groups", 0, "lr"),
    lambda content: content["optimizer_state_dict"]["param_groups"][0].pop("betas"),
    _with(10**10, *STATE, "epoch"), _with(10**400, *STATE, "sums", "images"),
    _with([2**70], *STATE, "sums", "codes"), _with(float("nan"), *STATE, "sums", "loss"),
    _with(float("inf"), *STATE, "sums", "penalty"), _with(1.0, *STATE, "sums", "loss"),
    _with(3, *STATE, "sums", "images"), _with(10**6, *STATE, "step"),
    _with(-1.0, *STATE, "seconds"), _with(float("inf"), *STATE, "seconds"),
    _with(float("nan"), *STATE, "seconds"), _with(-float("inf"), *STATE, "best_loss"),
    _with(0.001, *STATE, "best_loss"), _with(0, *STATE, "best_epoch"),
    _with(10**400, *STATE, "best_loss"), _with(float("nan"), *STATE, "history", 0, 1),
    _with(float("nan"), *STATE, "history", 0, 2), _with(float("inf"), *STATE, "history", 0, 2),
    _with(-float("inf"), *STATE, "history", 0, 3), _with(10**400, *STATE, "history", 0, 4),
    _with(-0.1, *STATE, "history", 0, 5), _with(float("nan"), *STATE, "history", 0, 6),
    _with({"KL": float("nan")}, *STATE, "history", 0, 8),
    _with(2**60, "run", "average", "updates"),
    _with(10**9, "run", "random", "numpy", 2), _with(-7, "run", "random", "numpy", 2),
    _with(torch.ones(2), "provenance", "objective"), _with({}, "provenance", "objective"),
    _with(torch.ones(2), "provenance", "settings", "seed"),
    _with([torch.ones(2)], "provenance", "data", "train", "fingerprint"),
    _with([1] * 623, "run", "random", "numpy", 1), _with(True, "run", "random", "numpy", 2),
    _with([2**70] * 624, "run", "random", "numpy", 1), _with({}, "provenance", "settings"),
]  # fmt: skip


def test_a_checkpoint_whose_state_is_malformed_is_refused_in_one_line(
    train: Train, images: Path, tmp_path: Path
) -> None:
    assert images.is_dir()
    train(**places(tmp_path, "run"), **FULL, num_epochs=1)
    for number, change in enumerate(MALFORMED):
        content = torch.load(tmp_path / "run" / LAST, weights_only=True)
        change(content)
        torch.save(content, tmp_path / "changed.pth")
        with pytest.raises(UserError, match=r"changed\.pth cannot be resumed: .+") as caught:
            train(**places(tmp_path, "run"), **FULL, resume=str(tmp_path / "changed.pth"))
        assert "\n" not in str(caught.value), number


def _moment(name: str, of: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    """Change what the optimiser keeps of the first weight that has such a value."""

    def change(content: dict[str, Any]) -> None:
        states = content["optimizer_state_dict"]["state"].values()
        state = next(state for state in states if name in state)
        state[name] = of(state[name])

    return change


def _dropped(content: dict[str, Any]) -> None:
    state = content["optimizer_state_dict"]["state"][0]
    del state[next(iter(state))]


MOMENTS = [
    *(
        _moment(name, of)
        for name in ("exp_avg", "exp_avg_sq", "momentum")
        for of in (
            lambda _: None, lambda t: t.sum().expand(t.shape), lambda t: t.to_sparse(),
            lambda t: t * float("nan"), lambda t: t + float("inf"), lambda t: t.bool(),
            lambda t: t.to(torch.complex64), lambda t: t.int(), lambda t: t.double(),
            lambda t: t[:0], lambda t: torch._neg_view(t),
        )
    ),
    *(
        _moment("step", lambda _, value=value: torch.tensor(value))
        for value in (float("nan"), float("inf"), -1.0, 1)
    ),
    _moment("exp_avg_sq", lambda t: t - 1), _moment("exp_avg", lambda t: t[None]), _dropped,
    _with({}, "optimizer_state_dict", "state"), _with([], "optimizer_state_dict", "state"),
    _with({}, "optimizer_state_dict", "state", 99),
    _with([0], "optimizer_state_dict", "param_groups", 0, "params"),
]  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_a_checkpoint_whose_optimiser_is_malformed_is_refused_and_nothing_is_written(
    optimizer: str, train: Train, images: Path, tmp_path: Path
) -> None:
    assert images.is_dir()
    options = {**FULL, "optimizer": optimizer, "num_epochs": 1}
    train(**places(tmp_path, "run"), **options)
    saved = tmp_path / "run" / LAST
    before = saved.read_bytes()
    for number, change in enumerate(MOMENTS):
        content = torch.load(saved, weights_only=True)
        try:
            change(content)
        except StopIteration:
            continue  # It is of another optimiser.
        torch.save(content, tmp_path / "changed.pth")
        options["resume"] = str(tmp_path / "changed.pth")
        with pytest.raises(UserError, match=r"changed\.pth cannot be resumed: .+") as caught:
            train(**places(tmp_path, "run"), **options)
        assert "\n" not in str(caught.value), number
        assert saved.read_bytes() == before


def test_a_run_whose_images_so_far_were_unreadable_goes_on(
    train: Train, images: Path, tmp_path: Path
) -> None:
    assert images.is_dir()
    train(**places(tmp_path, "run"), **FULL, num_epochs=1)
    path = tmp_path / "run" / LAST
    content = torch.load(path, weights_only=True)
    content["run"]["state"]["step"] = 1  # of which no image is in the sums
    content["run"]["state"]["history"][0][3] = float("inf")  # as where images are the same
    torch.save(content, path)
    train(**places(tmp_path, "run"), **FULL, num_epochs=2, resume="auto")


def test_a_run_that_has_nothing_left_to_do_says_so(
    train: Train, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert images.is_dir()
    caplog.set_level("INFO", "recon")
    train(**places(tmp_path, "run"), **FULL, num_epochs=1)
    train(**places(tmp_path, "run"), **FULL, num_epochs=1, resume="auto")
    assert "All 1 epochs are done; a higher num_epochs would go on" in caplog.text


def test_a_log_of_a_run_in_another_folder_is_not_replaced_in_silence(
    train: Train, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert images.is_dir()
    log = {"training_loss_file_mse": str(tmp_path / "loss.csv")}
    for name, told in (("first", False), ("first", False), ("second", True)):
        train(**places(tmp_path, name) | log, **FULL, num_epochs=1)
        words = f"loss.csv is of the run in {tmp_path / 'first'}, and is replaced"
        assert (words in caplog.text) == told
