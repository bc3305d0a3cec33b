"""Where a result comes from, as plain data that goes into checkpoints, sidecars and workbooks."""

import base64
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recon.errors import quoted, shortened
from recon.files import file_of

__all__ = [
    "INITIAL", "Sampled", "among", "check_provenance", "copied", "describe_run", "fingerprint",
    "flatten", "joined_members", "members", "sample_files", "without_members",
]  # fmt: skip

# Bytes that tell a file from others: so many pieces of it, evenly from its first to its last.
PIECE, PIECES = 4096, 16
CHUNK = 2**20  # bytes read at a time, of what is read whole
MOST_MEMBERS = 200_000
MEMBER = 8  # bytes

# A record that is read may hold so much; one of this program holds some hundred values, and the
# members of its images as one text.
MOST_VALUES, MOST_LETTERS, DEEPEST, BITS = 100_000, 2**26, 50, 64
PLAIN = {str, int, float, bool, type(None)}  # what JSON holds, besides what holds others
HOLDERS = {dict, list, tuple}

INITIAL = "initial weights"  # the part of a record's data that the weights to start from had

PACKAGES = ("torch", "torchvision", "pytorch-msssim", "numpy", "pillow", "scikit-image", "pydantic")


def describe_run() -> dict[str, Any]:
    """Time, versions and commit of the program that is running."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def fingerprint(paths: Iterable[str], folder: str, *, dated: bool = False) -> str:
    """SHA-256 over path below the folder and size in bytes of every file, in their order.

    Args:
        paths: Below the folder.
        folder: Of all.
        dated: Whether the times at which a file was changed take part, in contents or in rights.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = Path(folder, file_of(path)).stat()
        except OSError:
            facts = [-1]  # Listed a moment ago, gone now.
        else:
            facts = [status.st_size]
            facts += [status.st_mtime_ns, status.st_ctime_ns] if dated else []
        digest.update(os.fsencode(path) + b"\0" + " ".join(map(str, facts)).encode() + b"\0")
    return digest.hexdigest()


def sample_files(paths: Iterable[str], count: int) -> NDArray[np.uint64] | None:
    """Eight bytes for each image, in their order: the same for copies, whatever their names.

    They are drawn from its file's size and pieces of its bytes, and from the number of a slice:
    large files that differ between the pieces are alike, too, and `copied` tells them apart.
    None where there are too many files to open each for that.
    """
    if count > MOST_MEMBERS:
        return None
    return np.fromiter(map(_sample, paths), np.uint64, count)


class Sampled(NamedTuple):
    """Images and what `sample_files` gives for them."""

    path_of: Callable[[int], str]  # by their index
    samples: NDArray[np.uint64]


def copied(some: Sampled, others: Sampled) -> NDArray[np.bool_]:
    """Tell which of some images are byte for byte among others.

    Only files whose samples are the same, and do not cover them, are read whole.
    """
    content = cache(_content)  # Of a volume once, for all its slices.

    def identity(images: Sampled, index: int) -> tuple[int, bytes]:
        return int(images.samples[index]), content(file_of(images.path_of(index)))

    alike = np.flatnonzero(np.isin(others.samples, some.samples))
    known = {identity(others, int(index)) for index in alike}
    found = np.isin(some.samples, others.samples)
    for index in np.flatnonzero(found):
        found[index] = identity(some, int(index)) in known
    return found


def _content(file: str) -> bytes:
    """Digest of a whole file; nothing where its sample is of the whole, or it is gone by now."""
    digest = hashlib.blake2b()
    try:
        with Path(file).open("rb") as stream:
            if stream.seek(0, os.SEEK_END) <= PIECE * PIECES:
                return b""
            stream.seek(0)
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    except OSError:
        return b""
    return digest.digest()


def members(samples: NDArray[np.uint64] | None) -> str | None:
    """What `sample_files` gives, sorted, in base 64: tells whether an image like one is there."""
    if samples is None:
        return None
    return base64.b64encode(np.sort(samples).astype("<u8").tobytes()).decode()


def among(paths: Iterable[str], encoded: str) -> int:
    """Count the files that are like one of the members, in size and samples."""
    digests = np.fromiter(map(_sample, paths), np.uint64)
    return int(np.isin(digests, _decoded(encoded)).sum())


def joined_members(records: Iterable[str | None]) -> str | None:
    """The members of several records together; None where none of them is known."""
    known = [_decoded(record) for record in records if record is not None]
    if not known:
        return None
    return base64.b64encode(np.unique(np.concatenate(known)).tobytes()).decode()


def _decoded(record: str) -> NDArray[np.uint64]:
    return np.frombuffer(base64.b64decode(record), "<u8")


def _sample(path: str) -> int:
    digest, name = hashlib.blake2b(digest_size=8), file_of(path)
    try:
        if not Path(name).is_file():
            raise FileNotFoundError  # Opening a FIFO or a device would hang.
        with Path(name).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                raise EOFError  # No image, so no copy of one.
            digest.update(str(size).encode())
            whole = size <= PIECE * PIECES
            for number in range(1 if whole else PIECES):
                file.seek((size - PIECE) * number // (PIECES - 1) if number else 0)
                digest.update(file.read(size if whole else PIECE))
        digest.update(os.fsencode(path[len(name) :]))
    except (OSError, EOFError):
        digest.update(os.fsencode(path))  # Like no other.
    return int.from_bytes(digest.digest(), "little")


def check_provenance(record: Mapping[str, Any]) -> None:
    """Prove that a model's record is plain, and what is read back of it of its kinds.

    Raises:
        TypeError: If a value is of another kind.
        ValueError: If there are too many or too large ones, or members are no base 64.
    """
    _check_plain(record)
    for name in ("settings", "network", "preparation", "data"):
        _check_mapping(record.get(name, {}), name)
    noise = record.get("settings", {}).get("noise_std", 0)
    if isinstance(noise, bool) or not isinstance(noise, int | float):
        raise TypeError(f"settings.noise_std is {quoted(noise)}, expected a number")
    for part, facts in record.get("data", {}).items():
        _check_mapping(facts, shortened(f"data.{part}"))
        known = facts.get("members")
        if known is not None and len(base64.b64decode(known, validate=True)) % MEMBER:
            raise ValueError(shortened(f"data.{part}") + ".members are cut short")


def _check_plain(record: object) -> None:
    """Prove that a record can be written as JSON, before anything looks at its values.

    What is held twice counts twice, as it would be written: so this ends, whatever holds itself.
    """
    waiting, values, letters = [("the record", record, 0)], 1, 0
    while waiting:
        name, value, depth = waiting.pop()
        if type(value) in PLAIN:
            letters += _size(name, value)
        elif type(value) in HOLDERS and depth <= DEEPEST:
            values += len(value)  # type: ignore[arg-type]
            if values <= MOST_VALUES:
                waiting += [(of, part, depth + 1) for of, part in _parts(name, value)]
        else:
            kind = "nested too deeply" if depth > DEEPEST else type(value).__name__
            raise TypeError(f"{name} is {kind}, expected what JSON can hold")
        if values > MOST_VALUES or letters > MOST_LETTERS:
            raise ValueError(
                f"it holds more than {MOST_VALUES} values or {MOST_LETTERS} letters, at {name}"
            )


def _size(name: str, value: Any) -> int:
    """The letters that a plain value adds to a record, about."""
    if type(value) is int and value.bit_length() > BITS:
        raise ValueError(f"{name} is a whole number of more than {BITS} bits")
    return len(value) if type(value) is str else 0


def _parts(name: str, value: Any) -> Iterator[tuple[str, object]]:
    """Everything that a value holds, by where it is; names count as texts."""
    if type(value) is not dict:
        yield from ((name, part) for part in value)
        return
    for key, part in value.items():
        if type(key) is not str:
            raise TypeError(f"{name} has a name of {type(key).__name__}, expected text")
        yield name, key
        yield shortened(key if name == "the record" else f"{name}.{key}"), part


def _check_mapping(value: object, name: str) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is {quoted(value)}, expected names and values")


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested names and values as one table: `settings.seed` and so on."""
    rows: dict[str, str] = {}
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            rows |= flatten(value, f"{prefix}{name}.")
        else:
            rows[prefix + name] = str(value)
    return rows


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this program's own checkout, with a mark if files differ from it."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def without_members(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a training for a person to read: without the digests of its images."""
    data = {
        part: {name: value for name, value in facts.items() if name != "members"}
        for part, facts in provenance.get("data", {}).items()
    }
    return {**provenance, "data": data} if data else dict(provenance)
