"""Side-by-side pictures of the evaluated images: which, under which names, and writing them.

Pictures are (H, W, 3) or (H, W) uint8.
"""

import hashlib
import heapq
import math
import os
import struct
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePath
from types import TracebackType
from typing import NamedTuple

import numpy as np
from imagecodecs import deflate_encode
from numpy.typing import NDArray
from PIL import Image

from recon.evaluation.figures import Panel, compose_comparison
from recon.evaluation.records import Record
from recon.files import replacing, synchronise_everything, without_ending

__all__ = ["Comparison", "PictureWriter", "Selection", "count_others", "picture_names", "write_png"]

SUFFIX = "_comparison.png"
LONGEST_NAME = 255 - len(".partial")  # bytes: what file systems take, less the name while writing
PNG = b"\x89PNG\r\n\x1a\n"
DEPTH, UP = 8, 2  # bits; each row less the one above it
COLOUR_TYPES = {2: 0, 3: 2}  # grey or RGB, by the dimensions of the pixels


Score = tuple[float, int]  # SSIM and index, which settles ties


class Comparison(NamedTuple):
    """One image and its reconstruction."""

    image: int  # its index in the dataset
    record: Record
    original: NDArray[np.uint8]
    reconstruction: NDArray[np.uint8]
    noisy: NDArray[np.uint8] | None = None  # what the network was fed, where that is another


class Selection:
    """Keeps the comparisons of lowest and of highest SSIM, and an even sample, in little memory.

    Args:
        number: Of each kind.
        count: Of images.
    """

    def __init__(self, number: int, count: int) -> None:
        self.number = number
        self.sampled = set(
            np.linspace(0, count - 1, min(number, count)).round().astype(int).tolist()
        )
        self.sample: list[Comparison] = []
        self.worst: list[Comparison] = []
        self.best: list[Comparison] = []

    def add(self, comparisons: Sequence[Comparison]) -> None:
        """Take more images into account."""
        self.sample += [c for c in comparisons if c.image in self.sampled]
        self.worst = heapq.nsmallest(self.number, [*self.worst, *comparisons], key=_by_ssim)
        self.best = heapq.nlargest(self.number, [*self.best, *comparisons], key=_by_ssim)

    def chosen(self, everywhere: Callable[[list[Score]], list[list[Score]]]) -> list[Comparison]:
        """This process's comparisons among those selected over all processes.

        Args:
            everywhere: From the scores of this process to those of every process.
        """
        worst = _merged(everywhere([_by_ssim(c) for c in self.worst]))[: self.number]
        best = _merged(everywhere([_by_ssim(c) for c in self.best]))[-self.number :]
        wanted = {index for _, index in (*worst, *best)} | self.sampled
        kept = {c.image: c for c in (*self.sample, *self.worst, *self.best)}
        return [comparison for image, comparison in kept.items() if image in wanted]


def _by_ssim(comparison: Comparison) -> Score:
    ssim = comparison.record.ssim
    return (ssim if ssim == ssim else -math.inf), comparison.image


def _merged(parts: Iterable[list[Score]]) -> list[Score]:
    return sorted(score for part in parts for score in part)


class PictureWriter:
    """Composes and writes comparisons in threads while the next batch is evaluated.

    A picture appears whole or not at all. Only after the last is the disk waited for: what a
    failure of the machine takes before that, the next evaluation writes again.

    Args:
        folder: Below which pictures are written.
        names: Relative name of each picture, by the index of its image.
        threads: That compose and encode.
    """

    def __init__(self, folder: Path, names: Callable[[int], str], threads: int) -> None:
        self.folder, self.names = folder, names
        self.pool = ThreadPoolExecutor(threads)
        self.most_pending = 8 * threads  # keeps memory constant when the disk is slow
        self.pending: deque[Future[None]] = deque()
        self.written = array("Q")  # hashes of the names

    def __enter__(self) -> "PictureWriter":
        return self

    def write(self, comparisons: Iterable[Comparison]) -> None:
        """Queue pictures.

        Raises:
            OSError: If an earlier picture could not be written.
        """
        for comparison in comparisons:
            name = self.names(comparison.image)
            path = self.folder / name
            self.written.append(_hash(name))
            self.pending.append(self.pool.submit(_write, path, comparison))
            while len(self.pending) > self.most_pending:
                self.pending.popleft().result()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.pool.shutdown(cancel_futures=error is not None)
        if error is None:
            for future in self.pending:
                future.result()
            if self.folder.exists():
                synchronise_everything()


def _write(path: Path, comparison: Comparison) -> None:
    panels = [
        Panel("Original", comparison.original),
        Panel("Reconstruction", comparison.reconstruction),
    ]
    if comparison.noisy is not None:
        panels.insert(1, Panel("Noisy", comparison.noisy))
    write_png(path, compose_comparison(panels, _caption(comparison.record)))


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a grey or RGB picture quickly; it appears whole or not at all, in its own time."""
    with replacing(path, durable=False) as partial:
        partial.write_bytes(_encode_png(np.asarray(picture)))


def _encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of (H, W) or (H, W, 3) pixels: libdeflate takes a fourth less time than zlib."""
    height, width = pixels.shape[:2]
    lines = pixels.reshape(height, -1)
    rows = np.empty((height, 1 + lines.shape[1]), np.uint8)
    rows[:, 0], rows[0, 1:] = UP, lines[0]
    np.subtract(lines[1:], lines[:-1], out=rows[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, DEPTH, COLOUR_TYPES[pixels.ndim], 0, 0, 0)
    parts = {b"IHDR": header, b"IDAT": bytes(deflate_encode(rows.tobytes(), level=1)), b"IEND": b""}
    return PNG + b"".join(_chunk(name, data) for name, data in parts.items())


def _chunk(name: bytes, data: bytes) -> bytes:
    """A piece of a PNG file, between its length and its checksum."""
    checksum = zlib.crc32(data, zlib.crc32(name))
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def _caption(record: Record) -> str:
    caption = f"MSE {record.mse:.5f}   PSNR {record.psnr:.2f} dB   SSIM {record.ssim:.4f}"
    return caption if record.noisy is None else f"{caption}   gain {record.noisy.gain:+.2f} dB"


def count_others(folder: Path, written: Iterable["array[int]"]) -> int:
    """How many comparisons below a folder are not among those that were written.

    Args:
        folder: Of all comparisons.
        written: By each process: `PictureWriter.written`.
    """
    known = np.concatenate([np.asarray(hashes, np.uint64) for hashes in written])
    found = (
        _hash(os.path.relpath(os.path.join(place, name), folder))  # noqa: PTH118 - as str
        for place, _, names in os.walk(folder)
        for name in names
        if name.endswith(SUFFIX)
    )
    return int(np.isin(np.fromiter(found, np.uint64), known, invert=True).sum())


def picture_names(relative: Callable[[int], str], count: int) -> Callable[[int], str]:
    """Name the picture of each image so that no two are the same.

    `a/1.png` gives `a/1_comparison.png`. Where a folder also holds `1.jpg`, each keeps its
    extension: `a/1.png_comparison.png`. Where a folder of images is called like the picture, a hash
    of the image's path is added.

    Args:
        relative: Path of an image below its folder, by its index.
        count: Of images.
    """
    # Hashes, eight bytes each: the names of a million images would cost a hundred megabytes.
    stems = np.fromiter(
        (_hash(without_ending(relative(i))) for i in range(count)), np.uint64, count
    )
    paths = np.fromiter((_hash(relative(i)) for i in range(count)), np.uint64, count)
    values, counts = np.unique(stems, return_counts=True)
    # A stem is also taken where a file bears it as its whole name: 1.png beside 1.png.jpg.
    shared = set(values[(counts > 1) | np.isin(values, paths)].tolist())

    folders = {folder for i in range(count) for folder in _taken(relative(i))}

    def name(index: int) -> str:
        path = relative(index)
        base = path if _hash(without_ending(path)) in shared else without_ending(path)
        while (picture := _shortened(base)) in folders:
            base = f"{base}_{_hash(base):016x}"
        return picture

    return name


def _taken(path: str) -> list[str]:
    """The folders of an image that are called like a picture."""
    if SUFFIX not in path:  # Of a million images nearly all.
        return []
    return [str(folder) for folder in PurePath(path).parents if folder.name.endswith(SUFFIX)]


def _hash(text: str) -> int:
    spelt = os.fsencode(text.replace(os.sep, "/"))  # A walk spells paths as the system does.
    digest = hashlib.blake2b(spelt, digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _shortened(base: str) -> str:
    """Add the suffix, shortening names that the file system would refuse."""
    parent, name = os.path.split(base)
    if len(os.fsencode(name + SUFFIX)) > LONGEST_NAME:
        kept = os.fsencode(name)[: LONGEST_NAME - len(SUFFIX) - 17]
        name = f"{os.fsdecode(kept)}_{_hash(name):016x}"
    return os.path.join(parent, name + SUFFIX)  # noqa: PTH118 - as str, like what it came from
