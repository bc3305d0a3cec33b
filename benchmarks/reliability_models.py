"""Damaged and malicious model files: refused in one line or read whole, and never executed."""

import builtins
import faulthandler
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.reliability_runs import Result, TwoLayers, fork, wait
from recon.errors import UserError
from recon.training.checkpoint import load_strictly, read_checkpoint, read_model_file, save_final

__all__ = ["models"]

SLOW = 20  # seconds after which a file counts as hanging
MEMORY = 400e6  # bytes that refusing all files may take at most
HUGE = 2**40  # bytes that a file claims
Draw = np.random.Generator


class Runs:
    """A pickle that runs a command."""

    def __init__(self, canary: Path, by: str) -> None:
        self.canary, self.by = canary, by

    def __reduce__(self) -> tuple[Any, ...]:
        """What unpickling calls."""
        code = f"open({str(self.canary)!r}, 'w')"
        return {
            "os.system": (os.system, (f"touch {self.canary}",)),
            "exec": (builtins.exec, (code,)),
            "eval": (builtins.eval, (code,)),
            "open": (open, (str(self.canary), "w")),
            "mkdir": (os.mkdir, (str(self.canary),)),
            "subprocess": (subprocess.check_call, (["touch", str(self.canary)],)),
            "state": (Path, (str(self.canary),), {"x": Runs(self.canary, "os.system")}),
        }[self.by]


CALLS = ("os.system", "exec", "eval", "open", "mkdir", "subprocess", "state")


class FakeTensor:
    """Claims to be a tensor that is rebuilt by a command."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        """What unpickling calls."""
        return torch._utils._rebuild_tensor_v2, (
            Runs(self.canary, "exec"),
            0,
            (1,),
            (1,),
            False,
            {},
        )


def models(scratch: Path, count: int) -> Result:
    """Read many model files that are not as they should be."""
    canary, report = scratch / "canary", scratch / "report.jsonl"
    original = _write(scratch / "files", canary, count)
    paths = sorted(p for p in (scratch / "files").iterdir() if p.suffix == ".pth")
    report.touch()
    failures: list[str] = []
    done: list[Any] = []
    while len(done) < len(paths):
        work = (paths[len(done) :], original, report)
        code = wait(fork(scratch / "models.log", _read, *work), 600)
        done = [json.loads(line) for line in report.read_text().splitlines()]
        if code != 0:
            with report.open("a") as file:
                file.write(json.dumps([paths[len(done)].name, f"ended the process: {code}"]) + "\n")
            done = [json.loads(line) for line in report.read_text().splitlines()]
    failures += [f"{name}: {told}" for name, told in done if told not in ("refused", "harmless")]
    failures += ["a file was executed"] if canary.exists() else []
    tally = Counter(told for _, told in done)
    figure = (
        f"{len(paths)} files: {tally['refused']} refused in one line, {tally['harmless']} "
        f"unharmed, {len(failures)} loaded in part, executed, hanging or greedy"
    )
    return Result("damaged and malicious models", figure, failures)


def _write(folder: Path, canary: Path, count: int) -> Path:
    """All files; those by design, and as many damaged ones as are missing. The original's path."""
    folder.mkdir()
    torch.manual_seed(1)
    weights = dict(TwoLayers().state_dict())
    original = folder.parent / "original.pth"
    save_final(original, weights, {})
    made = dict(_malicious(weights, canary)) | dict(_crafted(original.read_bytes(), weights))
    draw, whole = np.random.default_rng(3), original.read_bytes()
    for number in range(max(0, count - len(made))):
        name, change = list(DAMAGES.items())[number % len(DAMAGES)]
        made[f"{name}-{number:04}"] = change(bytearray(whole), draw)
    for name, data in made.items():
        (folder / f"{name}.pth").write_bytes(data)
    return original


def _saved(content: Any, *, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def _malicious(weights: dict[str, Tensor], canary: Path) -> Iterator[tuple[str, bytes]]:
    """Files that run something when they are unpickled."""
    for call in CALLS:
        bomb = Runs(canary, call)
        places = {
            "alone": bomb,
            "weight": weights | {"encoder.0.weight": bomb},
            "name": {bomb: weights["encoder.0.weight"]} if call != "state" else [bomb],
            "nested": {"model_state_dict": weights, "run": {"state": [({"x": bomb},)]}},
        }
        for place, content in places.items():
            for legacy in (False, True):
                name = f"runs-{call}-{place}-{'legacy' if legacy else 'zip'}"
                yield name, _saved(content, legacy=legacy)
            yield f"runs-{call}-{place}-pickle", pickle.dumps(content)
    yield "fake-tensor", _saved(weights | {"encoder.0.weight": FakeTensor(canary)})
    touch = str(canary).encode()
    yield "global-posix", b"cposix\nsystem\n(S'touch " + touch + b"'\ntR."
    yield "global-inst", b"(S'touch " + touch + b"'\nios\nsystem\n."
    yield "global-obj", b"(cos\nsystem\nS'touch " + touch + b"'\no."
    yield "build", b"ctorch.nn.modules.module\nModule\n)\x81}S'forward'\ncos\nsystem\nsb."
    told = b"touch " + touch
    called = b"\x8c\x05posix\x8c\x06system\x93\x8c" + bytes([len(told)]) + told + b"\x85R."
    yield "stacked", b"\x80\x04" + called
    yield "extension", b"\x80\x02\x82\x01."


def _crafted(whole: bytes, weights: dict[str, Tensor]) -> Iterator[tuple[str, bytes]]:
    """Archives that claim what they do not hold."""
    entries = {i.filename: zipfile.ZipFile(io.BytesIO(whole)).read(i) for i in _infos(whole)}
    first = next(name for name in entries if "/data/" in name)
    yield "bomb", _zipped(entries | {first: bytes(2**28)}, zipfile.ZIP_DEFLATED)
    yield "duplicate-entry", _zipped(entries, more=[(first, bytes(len(entries[first])))])
    head = next(name for name in entries if name.endswith("data.pkl"))
    yield "duplicate-pickle", _zipped(entries, more=[(head, pickle.dumps({}))])
    yield "climbing-names", _zipped({f"../../{name}": data for name, data in entries.items()})
    yield "root-names", _zipped({f"/etc/{name}": data for name, data in entries.items()})
    yield "no-weights", _zipped({head: entries[head]})
    yield "short-weight", _zipped(entries | {first: entries[first][:8]})
    for size in (HUGE, 2**62, 2**31):
        claimed = struct.pack("<q", size)
        wider = entries[head].replace(b"K\xa2", b"\x8a\x08" + claimed, 1)
        yield f"claims-{size}", _zipped(entries | {head: wider})
        legacy = _saved(weights, legacy=True)
        yield f"claims-legacy-{size}", legacy.replace(struct.pack("<q", 162), claimed)
    yield "pickled-terabyte", b"\x80\x04\x96" + struct.pack("<Q", HUGE) + b"x."
    yield "memo-terabyte", b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b"."
    sparse = {"encoder.0.weight": torch.zeros(1).expand(HUGE)}
    yield "expanded", _saved(weights | sparse)
    yield "deep", b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    yield "missing-weight", _saved(dict(list(weights.items())[1:]))
    yield "one-more-weight", _saved(weights | {"x": torch.zeros(1)})


def _infos(data: bytes) -> list[zipfile.ZipInfo]:
    return zipfile.ZipFile(io.BytesIO(data)).infolist()


def _zipped(
    entries: dict[str, bytes],
    method: int = zipfile.ZIP_STORED,
    more: list[tuple[str, bytes]] | None = None,
) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in [*(more or []), *entries.items()]:
            archive.filelist = [e for e in archive.filelist if e.filename != name or more]
            archive.NameToInfo.pop(name, None)  # No warning about a name that is there already.
            archive.writestr(name, data)
    return stream.getvalue()


def _flip(data: bytearray, draw: Draw) -> bytes:
    for place in draw.integers(0, len(data), draw.integers(1, 4)):
        data[place] ^= 1 << draw.integers(8)
    return bytes(data)


def _cut(data: bytearray, draw: Draw) -> bytes:
    return bytes(data[: draw.integers(0, len(data))])


def _splice(data: bytearray, draw: Draw) -> bytes:
    return bytes(data[: draw.integers(len(data))] + data[draw.integers(len(data)) :])


def _directory(data: bytearray, draw: Draw) -> bytes:
    start = data.index(b"PK\x01\x02")
    for place in draw.integers(start, len(data), draw.integers(1, 4)):
        data[place] = draw.integers(256)
    return bytes(data)


def _zeros(data: bytearray, draw: Draw) -> bytes:
    start = int(draw.integers(len(data)))
    end = min(len(data), start + int(draw.integers(1, 2000)))
    data[start:end] = bytes(end - start)
    return bytes(data)


DAMAGES: dict[str, Callable[[bytearray, Draw], bytes]] = {
    "flipped": _flip, "cut": _cut, "spliced": _splice, "directory": _directory, "zeros": _zeros,
}  # fmt: skip


def _read(paths: list[Path], original: Path, report: Path) -> int:
    """Read every file, appending its name and what came of it to the report."""
    expected = read_model_file(original).weights
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with report.open("a", buffering=1) as file:
        for path in paths:
            faulthandler.dump_traceback_later(SLOW, exit=True)
            began, told = time.monotonic(), _outcome(path, expected)
            grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            told = f"{grown / 1e6:.0f} MB taken" if grown > MEMORY else told
            told = "slow" if time.monotonic() - began > SLOW / 2 else told
            file.write(json.dumps([path.name, told]) + "\n")
    faulthandler.cancel_dump_traceback_later()
    return 0


def _outcome(path: Path, expected: dict[str, Tensor]) -> str:
    model = TwoLayers()
    untouched = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        read_checkpoint(path)
    except UserError as error:
        if "\n" in str(error):
            return "refused in several lines"
    try:
        load_strictly(model, read_model_file(path).weights, path)
    except UserError as error:
        if "\n" in str(error):
            return "refused in several lines"
        return "refused" if _equal(model.state_dict(), untouched) else "loaded in part"
    except Exception as error:  # noqa: BLE001 - whatever else is a fault
        return f"{type(error).__name__}: {error}"
    return "harmless" if _equal(model.state_dict(), expected) else "other weights"


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other)
