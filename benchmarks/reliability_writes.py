"""Every step of writing made to fail, and to be interrupted: the old file or the new one, whole."""

import contextlib
import errno
import io
import json
import os
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from openpyxl import load_workbook
from PIL import Image

from benchmarks.reliability_runs import (
    FINAL,
    Result,
    TwoLayers,
    evaluate,
    flags_for,
    fork,
    train,
    wait,
    write_images,
)
from datasets import ImageFolderDataset, read_image
from recon.command import run_command
from recon.pipeline.checking import run_check
from recon.pipeline.exporting import run_export
from recon.pipeline.layers import run_layers
from recon.settings import Settings
from recon.training.checkpoint import read_checkpoint, read_model_file
from recon.training.logs import read_log

__all__ = ["writes"]

IMAGES = 3
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SMALL: dict[str, Any] = {"num_epochs": 1, "cache": "disk", "save_images": "all"}
# What a run can do without: the cache; links, nameless files and one way of opening, for each of
# which there is another.
SPARED = (
    "pwrite", "open cache", "os.link", "open out", "open pictures", "open drawn",
    "open latents.csv.unfinished", "open metrics.xlsx", "open image_check.xlsx",
)  # fmt: skip
# Where two files that belong together are renamed, nothing can come between but this.
HALVES = [f"os.rename {kind}_Model_AE_MSE.json.partial" for kind in ("Best", "Final")]
KINDS: dict[str, Callable[[], BaseException]] = {
    "full disk": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "Ctrl-C": KeyboardInterrupt,
}


def export(settings: Settings, asked: frozenset[str]) -> None:
    """The job of an export."""
    run_export(settings, TwoLayers, ImageFolderDataset, asked=asked)


def check(settings: Settings, _asked: frozenset[str]) -> int:
    """The job of a check."""
    return run_check(settings, ImageFolderDataset, read_image)


def layers(settings: Settings, asked: frozenset[str]) -> None:
    """The job that draws layers."""
    run_layers(settings, TwoLayers, ImageFolderDataset, asked=asked)


JOBS: dict[str, Callable[[Settings, frozenset[str]], int | None]] = {
    "train": train, "evaluate": evaluate, "export": export, "check": check, "layers": layers
}  # fmt: skip


class Faults:
    """Raises at the n-th step of writing below a folder: open, write, synchronise, rename, link."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.steps = str(folder), 0
        self.at, self.kind, self.log = -1, "", list[str]()
        self.calls: dict[str, Callable[..., Any]] = {"fsync": os.fsync, "pwrite": os.pwrite}
        sys.addaudithook(self._heed)

    @contextlib.contextmanager
    def armed(self, at: int, kind: str) -> Iterator[None]:
        """Raise at a step, counted from 0; at none if it is negative."""
        self.steps, self.at, self.kind, self.log = 0, at, kind, []
        for name in self.calls:
            setattr(os, name, partial(self._call, name))
        try:
            yield
        finally:
            self.kind = ""
            for name, call in self.calls.items():
                setattr(os, name, call)

    def _call(self, name: str, *args: Any) -> Any:
        self._step(name)
        return self.calls[name](*args)

    def _heed(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.kind or event not in ("open", "os.rename", "os.link"):
            return
        is_ours = str(args[0]).startswith(self.folder)
        if is_ours and (event != "open" or int(args[2] or 0) & WRITING):
            path = Path(str(args[0]))
            name = "cache" if "cache" in path.parts else path.name
            self._step(f"{event} {name}")

    def _step(self, name: str) -> None:
        self.log.append(name)
        self.steps += 1
        if self.steps - 1 == self.at:
            raise KINDS[self.kind]()


def writes(scratch: Path, stride: int) -> Result:
    """Fail at every step of a training and of all that is done with its model and images.

    Args:
        scratch: Folder.
        stride: 1 takes every step, n every n-th one, and of full disks four times as many.
    """
    write_images(scratch / "images", IMAGES)
    write_images(scratch / "others", IMAGES, seed=1)
    report = scratch / "report.json"
    code = wait(fork(scratch / "writes.log", _try_all, scratch, stride, report), 900)
    if code != 0:
        told = (scratch / "writes.err").read_text()[-2000:]
        return Result("writing fails", "the trial itself fails", [f"exit {code}: {told}"])
    counts, failures = json.loads(report.read_text())
    figure = (
        ", ".join(f"{number} {name}" for name, number in counts.items())
        + f"; {len(failures)} torn files, files left behind or wrong endings"
    )
    return Result("writing fails", figure, failures)


def _try_all(scratch: Path, stride: int, report: Path) -> int:
    torch.set_num_threads(1)
    temporary = scratch / "tmp"
    temporary.mkdir()
    tempfile.tempdir = str(temporary)
    faults, old, out = Faults(scratch), scratch / "old", scratch / "out"
    for job in JOBS:
        _run(job, scratch, seed=0)
    out.rename(old)
    counts, failures = Counter[str](), list[str]()
    for job in JOBS:
        steps = _steps(faults, job, scratch)
        trials = [(kind, at) for kind in KINDS for at in range(steps)]
        trials += [("limit", size) for size in _sizes(old)]
        for number, (kind, at) in enumerate(trials):
            if number % (max(1, stride // 4) if kind == "full disk" else stride):
                continue
            _reset(old, out)
            guard = _limited(at) if kind == "limit" else faults.armed(at, kind)
            code, said = _guarded(guard, job, scratch)
            where = faults.log[at] if kind in KINDS else f"{at} bytes"
            told = [_ending(kind, where, code, said), *_damaged(scratch, out)]
            if where in HALVES and all(" describes other weights" in text for text in told[1:]):
                counts["model and sidecar half replaced, refused when read"] += len(told[1:])
                told = told[:1]
            failures += [f"{job}, {kind} at {where}: {problem}" for problem in told if problem]
            counts[f"{kind}: {'run ended' if code else 'run went on'}"] += 1
    report.write_text(json.dumps([counts, failures]))
    return 0


def _steps(faults: Faults, job: str, scratch: Path) -> int:
    _reset(scratch / "old", scratch / "out")
    with faults.armed(-1, "full disk"):
        _run(job, scratch)
    return faults.steps


def _reset(old: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(old, out)
    shutil.rmtree(out / "cache", ignore_errors=True)


def _run(job: str, scratch: Path, seed: int = 1) -> tuple[int, str]:
    """Exit code and what went to the error output."""
    images, out = scratch / "images", scratch / "out"
    further = {
        "folder_path_test": scratch / "others",
        "image_check_file": out / "image_check.xlsx",
        "latents_file": out / "latents.csv",
        "folder_path_latents": images,
        "model_path_latents": out / FINAL,
        "layers_output": out / "drawn",
        "layers_images": 1,
        "folder_path_layers": images,
        "model_path_layers": out / FINAL,
    }
    flags = flags_for(images, out, seed=seed, **SMALL, **further)
    with (
        contextlib.redirect_stderr(io.StringIO()) as said,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        return run_command({}, flags, JOBS[job]), said.getvalue()


def _guarded(
    guard: contextlib.AbstractContextManager[None], job: str, scratch: Path
) -> tuple[int, str]:
    try:
        with guard:
            return _run(job, scratch)
    except Exception as error:  # noqa: BLE001 - a traceback for the user is a fault
        return -1, f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _limited(size: int) -> Iterator[None]:
    """Let no file grow beyond a size: writing fails with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _sizes(old: Path) -> list[int]:
    """Limits at which one file after the other fails: at its beginning, middle and end."""
    sizes = [path.stat().st_size for path in old.rglob("*") if path.is_file()]
    return sorted({limit for size in sizes for limit in (0, size // 2, max(0, size - 1))})


def _ending(kind: str, where: str, code: int, said: str) -> str:
    """What is wrong with how the run ended."""
    expected = 130 if kind == "Ctrl-C" else 2
    if code == 0:
        is_spared = kind == "limit" or (kind == "full disk" and where.startswith(SPARED))
        return "" if is_spared else "the run went on"
    is_told = said.startswith("error: ") and said.count("\n") == 1
    return "" if code == expected and is_told else f"exit {code}, {said!r}"


def _damaged(scratch: Path, out: Path) -> Iterator[str]:
    """Files that are not whole, missing or left behind."""
    for path in (scratch / "old").rglob("*"):
        here = out / path.relative_to(scratch / "old")
        if path.is_file() and "cache" not in path.parts and not here.is_file():
            yield f"{here.name} is missing"
    # openpyxl removes its own at the end of the process.
    left = [p.name for p in (scratch / "tmp").iterdir() if not p.name.startswith("openpyxl.")]
    left += [path.name for path in out.rglob("*.partial")]
    yield from (f"{name} is left behind" for name in left)
    for path in out.rglob("*"):
        check = CHECKS.get(path.suffix)
        if check is not None and path.suffix != ".partial":
            try:
                check(path)
            except Exception as error:  # noqa: BLE001 - damaged bytes raise anything
                yield f"{path.name} is not whole: {error!r}"


def _check_weights(path: Path) -> None:
    read_model_file(path)
    if path.name.startswith(("Last", "Model")):
        read_checkpoint(path)


def _check_picture(path: Path) -> None:
    with Image.open(path) as picture:
        picture.verify()


def _check_table(path: Path) -> None:
    if path.name == "loss.csv":
        read_log(path)
    sets = 2 if path.name == "image_check.csv" else 1
    if path.name != "loss.csv" and len(path.read_text().splitlines()) != 1 + sets * IMAGES:
        raise ValueError("rows are missing")


def _check_book(path: Path) -> None:
    with contextlib.closing(load_workbook(path, read_only=True)) as book:
        rows = list(book.worksheets[0].iter_rows(values_only=True))
    lines = path.with_suffix(".csv").read_text().splitlines()
    if [str(row[1]) for row in rows[1:]] != [line.split(",")[1] for line in lines[1:]]:
        raise ValueError("workbook and csv differ")


CHECKS: dict[str, Callable[[Path], object]] = {
    ".pth": _check_weights,
    ".json": lambda path: json.loads(path.read_text()),
    ".png": _check_picture,
    ".csv": _check_table,
    ".xlsx": _check_book,
}
