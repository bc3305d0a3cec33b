"""Where a result comes from, as plain data that goes into checkpoints, sidecars and workbooks."""

import base64
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from recon.files import file_of

__all__ = ["among", "describe_run", "fingerprint", "flatten", "members", "without_members"]

SAMPLED = 4096  # bytes at either end of a file that tell it from others
MOST_MEMBERS = 200_000

PACKAGES = ("torch", "torchvision", "pytorch-msssim", "numpy", "pillow", "scikit-image", "pydantic")


def describe_run() -> dict[str, Any]:
    """Time, versions and commit of the program that is running."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def fingerprint(paths: Iterable[str], folder: str) -> str:
    """SHA-256 over path below the folder and size in bytes of every file, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            size = Path(folder, file_of(path)).stat().st_size
        except OSError:
            size = -1  # Listed a moment ago, gone now.
        digest.update(os.fsencode(path) + b"\0" + str(size).encode() + b"\0")
    return digest.hexdigest()


def members(paths: Iterable[str], count: int) -> str | None:
    """Eight bytes for each image, sorted, in base 64: enough to tell whether one was among them.

    They are drawn from its file's size, first and last bytes, whatever the name, and from the
    number of a slice. None where there are too many files to open each for that.
    """
    if count > MOST_MEMBERS:
        return None
    digests = np.sort(np.fromiter(map(_sample, paths), np.uint64))
    return base64.b64encode(digests.astype("<u8").tobytes()).decode()


def among(paths: Iterable[str], encoded: str) -> int:
    """Count the files that are among the members."""
    known = np.frombuffer(base64.b64decode(encoded), "<u8")
    return int(np.isin(np.fromiter(map(_sample, paths), np.uint64), known).sum())


def _sample(path: str) -> int:
    digest, name = hashlib.blake2b(digest_size=8), file_of(path)
    try:
        with Path(name).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(str(size).encode())
            for place in (0, max(0, size - SAMPLED)):
                file.seek(place)
                digest.update(file.read(SAMPLED))
        digest.update(os.fsencode(path[len(name) :]))
    except OSError:
        digest.update(os.fsencode(path))  # Gone: like no other.
    return int.from_bytes(digest.digest(), "little")


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
