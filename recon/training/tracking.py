"""Follow a training in TensorBoard or Weights & Biases.

Pictures are (H, W, 3) uint8 arrays. Trackers only watch: they change neither the weights nor the
random state of a run, and one that fails is given up while the run goes on.
"""

import hashlib
import logging
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from recon.errors import UserError
from recon.files import check_writable, replacing, spell_json
from recon.training.panels import Panel, compose_panel

__all__ = [
    "EpochTracking", "TensorBoardTracker", "TrackedRun", "Tracker", "WandbTracker",
    "missing_package", "open_trackers", "run_name",
]  # fmt: skip

logger = logging.getLogger("recon")

PANEL = "Reconstructions"
READABLE = 24  # characters of a folder's name in the name of a run
PATIENCE = 60.0  # seconds to wait for an upload when a run has ended


class TrackedRun(NamedTuple):
    """What a tracker is told of the run."""

    folder: Path  # where it writes; the same one when the run is resumed
    config: Mapping[str, Any]  # plain data
    project: str
    mode: str  # "offline" or "online"
    epoch: int | None  # epochs that a resumed run has behind it; None for a new run


class Tracker(Protocol):
    """Something that shows a training while it runs."""

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """Take the figures of an epoch, which counts from 1."""

    def panel(self, picture: NDArray[np.uint8], epoch: int) -> None:
        """Take the picture of an epoch, (H, W, 3)."""

    def finish(self) -> None:
        """Write everything down and close."""


# Trackers


class TensorBoardTracker:
    """Writes event files; `tensorboard --logdir tracking` shows them.

    Args:
        run: What to track.

    Raises:
        ImportError: If the package tensorboard is missing.
    """

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        done = run.epoch or 0
        # Whatever an earlier part of the run wrote of epochs that are trained anew is hidden.
        self.writer = SummaryWriter(str(run.folder), purge_step=done + 1)
        text = textwrap.indent(spell_json(run.config), "    ")  # Markdown shows it as code.
        self.writer.add_text("config", text, done)

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """Write the figures of an epoch."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def panel(self, picture: NDArray[np.uint8], epoch: int) -> None:
        """Write the picture of an epoch, (H, W, 3)."""
        self.writer.add_image(PANEL, picture, epoch, dataformats="HWC")
        self.writer.flush()

    def finish(self) -> None:
        """Close the event file."""
        self.writer.close()


class WandbTracker:
    """Writes a run of Weights & Biases: a folder for `wandb sync`, or straight to the server.

    A step there cannot be written twice. So epochs that were logged before the run was taken back
    to an earlier checkpoint are left as they are; a file beside the run remembers the last one.

    Args:
        run: What to track.

    Raises:
        ImportError: If the package wandb is missing.
        UserError: If the run is online and nobody is logged in.
    """

    def __init__(self, run: TrackedRun) -> None:
        # Else logs go to the home folder, and crash reports to the makers, offline too.
        os.environ.setdefault("WANDB_CACHE_DIR", str((run.folder / "cache").resolve()))
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if run.mode == "online" and not wandb.login(prompt=False):
            raise UserError(
                "wandb_mode = 'online' needs a login: run wandb login, or choose 'offline'"
            )
        self.memory = run.folder / "wandb_epoch.txt"
        self.logged = int(self.memory.read_text("utf-8")) if self.memory.is_file() else 0
        self.wandb = wandb
        self.run = wandb.init(
            project=run.project,
            dir=run.folder,
            mode="online" if run.mode == "online" else "offline",
            id=f"{run.folder.parent.name}-{run.folder.name}",
            config=dict(run.config),
            resume="allow",
            allow_val_change=True,  # A resumed run may have more epochs to go.
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                reinit="create_new",
                finish_timeout=PATIENCE,
            ),
        )
        if run.mode == "online":
            logger.info("Tracked at %s", self.run.url)

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """Log the figures of an epoch."""
        self._log(values, epoch)

    def panel(self, picture: NDArray[np.uint8], epoch: int) -> None:
        """Log the picture of an epoch, (H, W, 3)."""
        self._log({PANEL: self.wandb.Image(picture)}, epoch)

    def finish(self) -> None:
        """Close the run; online, wait for a while until everything is sent."""
        self.run.finish()

    def _log(self, values: Mapping[str, Any], epoch: int) -> None:
        if epoch > self.logged:
            self.run.log(dict(values), step=epoch)
            with replacing(self.memory) as partial_file:
                partial_file.write_text(str(epoch), "utf-8")


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
}


def run_name(objective: str, checkpoints: Path) -> str:
    """A name that a run keeps when it is resumed, and that no run in another folder bears.

    Args:
        objective: Of the run: "mse".
        checkpoints: Folder of its checkpoints.
    """
    path = checkpoints.resolve()
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", path.name)[:READABLE]
    return f"{objective}-{readable}-{digest}"


def open_trackers(
    tracking: str,
    folder: Path,
    *,
    name: str,
    config: Mapping[str, Any],
    project: str,
    mode: str,
    epoch: int | None = None,
) -> list[Tracker]:
    """Open trackers; all that they write lies in `<folder>/<name>/<time of the run's start>`.

    Args:
        tracking: "tensorboard", "wandb", both with a comma between them, or "" for none.
        folder: The setting tracking_folder.
        name: What `run_name` gave.
        config: Plain data to show with the run.
        project: Of Weights & Biases.
        mode: Of Weights & Biases: "offline" or "online".
        epoch: Epochs that a resumed run has behind it; None for a new run.

    Raises:
        UserError: If a package is missing, a login is, or the folder cannot be written to.
    """
    if not tracking:
        return []
    place = _folder_of_run(folder / name, resumed=epoch is not None)
    check_writable(place, "tracking_folder")
    run = TrackedRun(place, config, project, mode, epoch)
    trackers: list[Tracker] = []
    for kind in dict.fromkeys(tracking.split(",")):
        try:
            trackers.append(TRACKERS[kind](run))
        except ImportError:
            raise missing_package(kind) from None
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - a run that is resumed at night must go on
            _give_up(f"tracking = {kind!r}", error)
    return trackers


def missing_package(kind: str) -> UserError:
    """The error for a tracker whose package is not there."""
    return UserError(f"tracking = {kind!r} needs the package {kind}: pip install {kind}")


def _folder_of_run(folder: Path, *, resumed: bool) -> Path:
    """The newest folder of a resumed run, or a new one."""
    earlier = sorted(path for path in folder.glob("*") if path.is_dir())
    if resumed and earlier:
        return earlier[-1]
    return folder / datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S-%f")


def _give_up(what: str, error: Exception) -> None:
    reason = str(error).partition("\n")[0]
    logger.warning("%s has failed and is given up: %s: %s", what, type(error).__name__, reason)


@contextmanager
def _surviving(what: str, leave_out: Callable[[], object]) -> Iterator[None]:
    """Do something whose failure must not end a training: warn, and leave it out from now on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it fails of, the run goes on
        leave_out()
        _give_up(what, error)


# Epochs


@dataclass
class EpochTracking:
    """Hands every epoch to the trackers that still work.

    Args:
        trackers: Open; those that fail are taken out.
        panel: Gives the rows of the picture, (N, C, H, W) each; None for no pictures.
    """

    trackers: list[Tracker]
    panel: Panel | None = None

    def record(self, row: Mapping[str, float], epoch: int) -> None:
        """Track an epoch that has ended.

        Args:
            row: Its figures by column of the log; NaN where there is none.
            epoch: From 1.
        """
        values = {name: value for name, value in row.items() if name != "Epoch" and value == value}
        self._each(lambda tracker: tracker.scalars(values, epoch))
        picture = self._picture() if self.trackers else None
        if picture is not None:
            self._each(lambda tracker: tracker.panel(picture, epoch))

    def finish(self) -> None:
        """Close the trackers."""
        self._each(lambda tracker: tracker.finish())
        self.trackers.clear()

    def _picture(self) -> NDArray[np.uint8] | None:
        if self.panel is None:
            return None
        with _surviving("The panel of reconstructions", partial(setattr, self, "panel", None)):
            return compose_panel(*self.panel())
        return None

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tracker in list(self.trackers):
            with _surviving(type(tracker).__name__, partial(self.trackers.remove, tracker)):
                act(tracker)
