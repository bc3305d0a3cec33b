"""Tiles decoded once: later epochs read them at the speed of memory.

A cache holds one slot per image: a key, a checksum, and the uint8 tile. The key is made of the
image's path, size, time stamp and reading options, so that a changed image, another preparation
or a torn slot is noticed when it is read, and the image is decoded again. Tiles deeper than 8 bit
are not cached.
"""

import hashlib
import logging
import mmap
import os
import zlib
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from recon.files import file_of

__all__ = ["CachedDataset", "FileStore", "MemoryStore", "Store", "open_store"]

logger = logging.getLogger("recon")

KEY = 16  # bytes
CHECKSUM = 4  # bytes
HEADER = KEY + CHECKSUM


class Store(Protocol):
    """Bytes that all processes of a run share."""

    def read(self, offset: int, size: int, /) -> bytes | memoryview:
        """The bytes at an offset; fewer past the end."""

    def write(self, offset: int, content: bytes, /) -> None:
        """Put bytes at an offset, if there is room."""


class MemoryStore:
    """Anonymous memory, shared with the processes that are forked later.

    Args:
        size: In bytes; pages are taken only as they are written.
    """

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size)

    def read(self, offset: int, size: int) -> memoryview:
        """The bytes at an offset."""
        return memoryview(self.memory)[offset : offset + size]

    def write(self, offset: int, content: bytes) -> None:
        """Put bytes at an offset."""
        self.memory[offset : offset + len(content)] = content


class FileStore:
    """A file that outlives the run, and that several runs may share.

    Plain reads and writes, since a full disk kills a process that writes to mapped memory. After
    a write that fails, nothing more is written.

    Args:
        path: Of the file, made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self.full = False

    def read(self, offset: int, size: int) -> bytes:
        """The bytes at an offset; fewer past the end."""
        return os.pread(self.file, size, offset)

    def write(self, offset: int, content: bytes) -> None:
        """Put bytes at an offset, or warn once that the disk is full."""
        if self.full:
            return
        try:
            os.pwrite(self.file, content, offset)
        except OSError as error:
            self.full = True
            logger.warning("Tiles are no longer cached: %s", error.strerror)


class PathDataset(Protocol):
    """A dataset that names the file of each image."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...

    @property
    def paths(self) -> "Paths":
        """Path of each image."""


class Paths(Protocol):
    """Path by index."""

    def __getitem__(self, index: int, /) -> str: ...


class CachedDataset:
    """A dataset that decodes each image once.

    Args:
        dataset: What to cache: (C, H, W) tensors.
        store: Where to keep the tiles.
        shape: (C, H, W) of every tile.
        options: What else decides the pixels, in words.
        slots: How many images fit; the others are decoded each time.
    """

    def __init__(
        self,
        dataset: PathDataset,
        store: Store,
        *,
        shape: tuple[int, int, int],
        options: str,
        slots: int,
    ) -> None:
        self.dataset, self.store, self.shape = dataset, store, shape
        self.options, self.slots = options, slots
        self.tile = int(np.prod(shape))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tensor:
        """The tile (C, H, W), uint8 or float32, from the cache or decoded."""
        if index >= self.slots:
            return self.dataset[index]
        key = self._key(index)
        offset = index * (HEADER + self.tile)
        cached = self._read(offset, key)
        if cached is not None:
            return cached
        tile = self.dataset[index]
        if tile.dtype == torch.uint8 and tuple(tile.shape) == self.shape:
            content = tile.numpy().tobytes()
            self.store.write(offset, key + _checksum(content) + content)
        return tile

    def _read(self, offset: int, key: bytes) -> Tensor | None:
        slot = self.store.read(offset, HEADER + self.tile)
        if len(slot) < HEADER + self.tile or slot[:KEY] != key:
            return None
        content = bytearray(slot[HEADER:])  # A copy: another process may be writing this slot.
        if slot[KEY:HEADER] != _checksum(content):
            return None
        return torch.frombuffer(content, dtype=torch.uint8).view(self.shape)

    def _key(self, index: int) -> bytes:
        path = self.dataset.paths[index]
        status = os.stat(file_of(path))  # noqa: PTH116 - twice as fast as Path.stat, for every tile
        facts = f"{self.options} {status.st_size} {status.st_mtime_ns} ".encode()
        return hashlib.blake2b(facts + os.fsencode(path), digest_size=KEY).digest()


def _checksum(content: bytes | bytearray) -> bytes:
    return zlib.crc32(content).to_bytes(CHECKSUM, "little")


def open_store(kind: str, folder: Path, name: str, size: int) -> Store | None:
    """Open a store, or warn and go on without one.

    Args:
        kind: "memory" or "disk".
        folder: Of the files of disk stores.
        name: What the file is for.
        size: In bytes, for memory.
    """
    try:
        if kind == "memory":
            return MemoryStore(size)
        if not hasattr(os, "pread"):
            raise OSError("this system has no reading at an offset; cache = 'memory' needs none")
        folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8)
        return FileStore(folder / f"{digest.hexdigest()}.tiles")
    except OSError as error:
        logger.warning("Tiles are not cached: %s", error.strerror or error)
        return None
