import ast
import inspect
import json
import logging
import math
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]
from torch import Tensor

from recon.errors import UserError
from recon.training.logs import as_columns
from recon.training.panels import panel_of
from recon.training.state import get_random_state
from recon.training.tracking import EpochTracking, Tracker, open_trackers, run_name
from recon.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]
Images = Callable[..., list[Tensor]]

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


class Notebook:
    """A tracker that keeps all in memory, and fails from an epoch on if it is told to."""

    def __init__(self, fails_at: float = math.inf, error: Exception | None = None) -> None:
        self.fails_at, self.error = fails_at, error or OSError(28, "No space left on device")
        self.values: dict[int, dict[str, float]] = {}
        self.pictures: dict[int, NDArray[np.uint8]] = {}
        self.finished = False

    def scalars(self, values: Any, epoch: int) -> None:
        if epoch >= self.fails_at:
            raise self.error
        self.values[epoch] = dict(values)

    def panel(self, picture: NDArray[np.uint8], epoch: int) -> None:
        self.pictures[epoch] = picture

    def finish(self) -> None:
        self.finished = True


def start(folder: Path, tracking: str = "tensorboard", **changes: Any) -> list[Tracker]:
    usual: dict[str, Any] = {"name": "mse-a", "config": {"seed": 3}, "project": "p"}
    return open_trackers(tracking, folder, **{**usual, "mode": "offline", **changes})


def read_events(folder: Path) -> Any:
    return event_accumulator.EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "images": 0}
    ).Reload()


def read_wandb(path: Path) -> Iterator[Any]:
    """The records of a file of W&B: a log in the format of LevelDB, (checksum, length, kind)."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    content, offset = path.read_bytes(), 7
    whole = b""
    while offset < len(content):
        if 32768 - offset % 32768 < 7:
            offset += 32768 - offset % 32768
        _, length, kind = struct.unpack_from("<IHB", content, offset)
        whole += content[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def written(path: Path) -> list[Any]:
    """All records of a file, whose writer is a process of W&B's that may end after the run."""
    for _ in range(600):
        found = list(read_wandb(path))
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def logged_rows(records: list[Any]) -> dict[int, dict[str, Any]]:
    """Values by step, without W&B's own."""
    rows: dict[int, dict[str, Any]] = {}
    for record in records:
        if record.HasField("history"):
            values = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            assert values["_step"] not in rows
            rows[values["_step"]] = {n: v for n, v in values.items() if not n.startswith("_")}
    return rows


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


# What is handed on


def test_missing_values_and_the_number_of_the_epoch_are_no_scalars() -> None:
    tracker = Notebook()
    EpochTracking([tracker]).record({"Epoch": 2.0, "Loss": 0.5, "Validation Loss": math.nan}, 2)
    assert tracker.values == {2: {"Loss": 0.5}}
    assert tracker.pictures == {}


def test_a_panel_is_made_of_originals_and_reconstructions_once_for_all_trackers() -> None:
    calls: list[int] = []

    def panel() -> tuple[Tensor, Tensor]:
        calls.append(1)
        return torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)

    one, other = Notebook(), Notebook()
    EpochTracking([one, other], panel).record({"Loss": 0.5}, 1)
    assert len(calls) == 1
    assert one.pictures[1].shape == (14, 14, 3)
    assert one.pictures[1][2, 2].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(one.pictures[1], other.pictures[1])


def test_a_training_with_trackers_learns_bit_for_bit_what_it_learns_without(
    make_trainer: MakeTrainer, random_images: Images, tmp_path: Path
) -> None:
    plain = make_trainer(random_images(6), validation=random_images(3, seed=1), epochs=3)
    plain.fit(lambda _: None)
    state = torch.get_rng_state()
    tracked = make_trainer(random_images(6), validation=random_images(3, seed=1), epochs=3)
    tracking = EpochTracking(start(tmp_path), panel_of(tracked, 2))

    def follow(trainer: Trainer) -> None:
        history = trainer.state.history[-1:]
        row = {name: column[0] for name, column in as_columns(history).items()}
        tracking.record(row, trainer.state.epoch)

    tracked.fit(follow)
    tracking.finish()
    weights = plain.model.state_dict()
    assert all(torch.equal(v, weights[name]) for name, v in tracked.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    events = read_events(next((tmp_path / "mse-a").iterdir()))
    losses = [event.value for event in events.Scalars("Validation Loss")]
    assert losses == pytest.approx([row.validation_loss for row in tracked.state.history])
    assert len(events.Images("Reconstructions")) == 3


# Failures


@pytest.mark.parametrize("error", [OSError(28, "No space left"), ImportError("x"), UserError("x")])
def test_a_tracker_that_fails_is_left_out_with_one_warning(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    broken, sound = Notebook(2, error), Notebook()
    tracking = EpochTracking([broken, sound])
    with caplog.at_level(logging.WARNING, "recon"):
        for epoch in (1, 2, 3):
            tracking.record({"Loss": 1.0}, epoch)
        tracking.finish()
    assert list(broken.values) == [1]
    assert list(sound.values) == [1, 2, 3]
    assert sound.finished
    assert not broken.finished
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"Notebook has failed and is given up: {type(error).__name__}: ")


def test_the_panel_is_left_out_with_one_warning_where_reconstruction_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def panel() -> tuple[Tensor, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to")

    tracker = Notebook()
    tracking = EpochTracking([tracker], panel)
    with caplog.at_level(logging.WARNING, "recon"):
        tracking.record({"Loss": 1.0}, 1)
        tracking.record({"Loss": 2.0}, 2)
    assert tracker.values == {1: {"Loss": 1.0}, 2: {"Loss": 2.0}}
    assert warnings_of(caplog) == [
        "The panel of reconstructions has failed and is given up: OutOfMemoryError: "
        "CUDA out of memory."
    ]


def test_a_tracker_that_fails_at_the_end_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Clinging(Notebook):
        def finish(self) -> None:
            raise ConnectionResetError("Connection lost")

    sound = Notebook()
    with caplog.at_level(logging.WARNING, "recon"):
        EpochTracking([Clinging(), sound]).finish()
    assert sound.finished
    assert len(warnings_of(caplog)) == 1


def test_tensorboard_without_room_on_the_disk_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackers: list[Any] = start(tmp_path)
    writer = trackers[0].writer

    def fail() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "flush", fail)
    tracking = EpochTracking(trackers)
    with caplog.at_level(logging.WARNING, "recon"):
        tracking.record({"Loss": 1.0}, 1)
    writer.close()
    assert tracking.trackers == []
    assert "No space left on device" in warnings_of(caplog)[0]


def test_a_tracker_that_cannot_be_opened_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise TimeoutError("the server does not answer")

    monkeypatch.setattr("wandb.init", fail)
    with caplog.at_level(logging.WARNING, "recon"):
        assert start(tmp_path, "wandb") == []
    assert warnings_of(caplog) == [
        "tracking = 'wandb' has failed and is given up: TimeoutError: the server does not answer"
    ]


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    message = f"^tracking = '{package}' needs the package {package}: pip install {package}$"
    with pytest.raises(UserError, match=message):
        start(tmp_path, package)


def test_online_without_a_login_is_refused_without_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wandb.login", lambda *, prompt: prompt)
    with pytest.raises(UserError, match=r"^wandb_mode = 'online' needs a login: run wandb login"):
        start(tmp_path, "wandb", mode="online")


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^tracking_folder must be in a folder"):
        start(tmp_path / "file")


# Where it goes


def test_nothing_is_tracked_or_written_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert start(tmp_path, "") == []
    assert list(tmp_path.iterdir()) == []


def test_importing_the_module_imports_no_tracker() -> None:
    source = Path(inspect.getfile(EpochTracking)).read_text(encoding="utf-8")
    imports = [n for n in ast.parse(source).body if isinstance(n, ast.Import | ast.ImportFrom)]
    names = " ".join(ast.unparse(node) for node in imports)
    assert "logging" in names
    assert "wandb" not in names
    assert "tensorboard" not in names


def test_a_name_tells_folders_apart_and_objectives(tmp_path: Path) -> None:
    name = run_name("mse", tmp_path / "a" / "my runs")
    assert name.startswith("mse-my_runs-")
    assert name == run_name("mse", tmp_path / "b" / ".." / "a" / "my runs")
    others = {run_name("mse", tmp_path / "b" / "my runs"), run_name("ssim", tmp_path / "a/my runs")}
    assert len(others | {name}) == 3
    assert len(run_name("mse", tmp_path / ("x" * 200))) < 50


def test_a_new_run_has_a_folder_of_its_own_and_a_resumed_one_goes_on_in_the_newest(
    tmp_path: Path,
) -> None:
    for epoch, folders in ((None, 1), (None, 2), (4, 2)):
        before = files_below(tmp_path)
        for tracker in start(tmp_path, epoch=epoch):
            tracker.finish()
        (new,) = files_below(tmp_path) - before
        found = sorted((tmp_path / "mse-a").iterdir())
        assert len(found) == folders
        assert new.parent == found[-1]


def test_a_run_that_was_not_tracked_so_far_can_be_resumed(tmp_path: Path) -> None:
    (tracker,) = start(tmp_path, epoch=4)
    tracker.scalars({"Loss": 1.0}, 5)
    tracker.finish()
    (folder,) = (tmp_path / "mse-a").iterdir()
    assert [event.step for event in read_events(folder).Scalars("Loss")] == [5]


# TensorBoard


def test_tensorboard_holds_figures_pictures_and_settings(tmp_path: Path) -> None:
    (tracker,) = start(tmp_path)
    for epoch in (1, 2):
        tracker.scalars({"Loss": 1 / epoch, "Images/s": 10.0 * epoch}, epoch)
        tracker.panel(PICTURE, epoch)
    (folder,) = (tmp_path / "mse-a").iterdir()
    events = read_events(folder)  # Before it is closed: a run that is killed loses nothing.
    tracker.finish()
    assert sorted(events.Tags()["scalars"]) == ["Images/s", "Loss"]
    assert [(event.step, event.value) for event in events.Scalars("Loss")] == [(1, 1.0), (2, 0.5)]
    assert [event.step for event in events.Images("Reconstructions")] == [1, 2]
    (tmp_path / "a.png").write_bytes(events.Images("Reconstructions")[0].encoded_image_string)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), PICTURE)
    (text,) = events.Tensors("config/text_summary")
    assert b'"seed": 3' in text.tensor_proto.string_val[0]


def test_tensorboard_shows_every_epoch_of_a_resumed_run_once(tmp_path: Path) -> None:
    for epoch, epochs, loss in ((None, (1, 2, 3), 1.0), (2, (3, 4), 2.0)):
        (tracker,) = start(tmp_path, epoch=epoch)
        for number in epochs:
            tracker.scalars({"Loss": loss}, number)
            tracker.panel(PICTURE, number)
        tracker.finish()
    (folder,) = (tmp_path / "mse-a").iterdir()
    events = read_events(folder)
    shown = [(event.step, event.value) for event in events.Scalars("Loss")]
    assert shown == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    assert [event.step for event in events.Images("Reconstructions")] == [1, 2, 3, 4]


# Weights & Biases


def test_wandb_keeps_a_resumed_run_under_one_name_each_epoch_once_and_all_below_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("WANDB_CACHE_DIR", raising=False)
    before = get_random_state()
    for epoch, epochs in ((None, (1, 2, 3)), (2, (3, 4))):
        (tracker,) = start(tmp_path / "tracking", "wandb", epoch=epoch)
        for number in epochs:
            tracker.scalars({"Loss": 1 / number}, number)
            tracker.panel(PICTURE, number)
        tracker.finish()
    after = get_random_state()
    assert torch.equal(after["torch"], before["torch"])
    assert (after["python"], after["numpy"]) == (before["python"], before["numpy"])
    (folder,) = (tmp_path / "tracking/mse-a").iterdir()
    parts = [written(path) for path in sorted(folder.glob("wandb/offline-*/*.wandb"))]
    runs = [record.run for part in parts for record in part if record.HasField("run")]
    assert {run.run_id for run in runs} == {f"mse-a-{folder.name}"}
    assert {run.project for run in runs} == {"p"}
    first, second = (logged_rows(part) for part in parts)
    assert {step: row["Loss"] for step, row in first.items()} == {1: 1.0, 2: 0.5, 3: 1 / 3}
    assert {step: row["Loss"] for step, row in second.items()} == {4: 0.25}
    pictures = list(folder.glob("wandb/offline-*/files/media/images/Reconstructions_*.png"))
    assert len(pictures) == 4
    np.testing.assert_array_equal(np.asarray(Image.open(pictures[0])), PICTURE)
    assert files_below(home) == set()
    assert Path(os.environ["WANDB_CACHE_DIR"]).is_relative_to(folder)
    assert capfd.readouterr() == ("", "")
