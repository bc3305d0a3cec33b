"""The facts of one image, without its pixels: what it is, how it looks, what is wrong with it.

Pixels are (C, H, W): uint8 in 0..255, or float32 in [0, 1]; C = 3 (RGB) or 1 (grey). Grey levels
are (H, W) float32 in 0..255. Digests and hashes are 64-bit numbers, so that 100 000 images take
some megabytes; that two of a million different images share a digest has a chance of 3e-8.
"""

import gzip
import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recon.errors import printable
from recon.files import file_of

__all__ = [
    "AMBIGUOUS",
    "EMPTY",
    "UNREADABLE",
    "VANISHED",
    "Facts",
    "inspect_image",
    "look_of",
    "lost_image",
]

Reader = Callable[[str], NDArray[Any]]

UNREADABLE, VANISHED, EMPTY = "unreadable", "vanished", "empty file"
AMBIGUOUS = "ambiguous intensities"  # and so begins the reader's reason

PILLOW_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TIFF_MODES = {0: "L", 1: "L", 2: "RGB", 3: "P", 5: "CMYK", 6: "YCbCr", 8: "LAB"}
TIFF_KINDS = {2: " signed", 3: " float"}  # TIFF 6.0, sample format
PNG_BIT_DEPTH = 24  # the byte that says it
NIFTI_KINDS = {"i": " signed", "f": " float"}
# The length of its header, of either version and byte order, or gzip.
NIFTI_MAGIC = (b"\\\1\0\0", b"\0\0\1\\", b"\x1c\2\0\0", b"\0\0\2\x1c", b"\x1f\x8b")
NIFTI_HEADER = 540  # bytes, of the longer version
DICOM_MAGIC, DICOM_START = b"DICM", 128

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
EDGE, LOW = 32, 8  # pixels of the thumbnail; frequencies of it, either way
_STEPS = np.arange(EDGE)
# The lowest rows of the discrete cosine transform (type II), unscaled: (LOW, EDGE).
COSINES = np.cos(np.pi / EDGE * np.outer(_STEPS[:LOW], _STEPS + 0.5)).astype(np.float32)


class Facts(NamedTuple):
    """What is known of one file.

    Attributes:
        place: Digest of the path that all links lead to.
        format: "PNG" and so on; "" where the header cannot be read.
        mode: Kind of pixels: "L" (grey), "RGB", "P" (palette), with "A" for alpha.
        bits: Per sample; 0 where unknown.
        width: In pixels, upright; 0 where unknown.
        height: In pixels, upright; 0 where unknown.
        deviation: Standard deviation of the grey levels 0..255; NaN for an unreadable file.
        pixels: Digest of shape and pixels as they are read, whatever the file's format.
        look: Perceptual hash.
        problem: "" or what keeps the file from being read.
        reason: Of the problem, in the reader's words.
    """

    place: int
    format: str = ""
    mode: str = ""
    bits: int = 0
    width: int = 0
    height: int = 0
    deviation: float = float("nan")
    pixels: int = 0
    look: int = 0
    problem: str = ""
    reason: str = ""


def inspect_image(path: str, read_image: Reader) -> Facts:
    """Read a file once and say what it is. No file, however damaged, raises.

    Args:
        path: Of the file.
        read_image: From a path to pixels (C, H, W). It raises `ValueError` or `OSError`, in the
            words "<path>: <reason>", for a file that it cannot read, with escapes for what
            cannot be printed of the path.
    """
    facts = _header(path)
    try:
        pixels = read_image(path)
        grey = grey_levels(pixels)
        height, width = grey.shape
        return facts._replace(
            width=width,
            height=height,
            # Of a constant, rounding would leave a little.
            deviation=float(grey.std()) if grey.min() < grey.max() else 0.0,
            pixels=_digest(
                f"{pixels.shape} {pixels.dtype}".encode(), np.ascontiguousarray(pixels).data
            ),
            look=look_of(grey),
        )
    except (ValueError, OSError, MemoryError) as error:
        reason = (str(error) or type(error).__name__).removeprefix(f"{printable(path)}: ")
        return facts._replace(problem=_problem(path, error), reason=reason)


def lost_image(path: str) -> Facts:
    """What is known of a file that ended the process which read it."""
    reason = "the process that read it died; the file is damaged, or too large for the memory"
    return Facts(_place(path), problem=UNREADABLE, reason=reason)


def _place(path: str) -> int:
    file = file_of(path)
    return _digest(os.fsencode(os.path.realpath(file) + path[len(file) :]))


def _problem(path: str, error: Exception) -> str:
    """Name what keeps a file from being read."""
    # A path may hold any words; the cause is the reason without it.
    if str(error.__cause__ or error).startswith(AMBIGUOUS):
        return AMBIGUOUS
    try:
        status = Path(file_of(path)).stat()
        return EMPTY if S_ISREG(status.st_mode) and status.st_size == 0 else UNREADABLE
    except FileNotFoundError:
        return VANISHED
    except OSError:
        return UNREADABLE


def grey_levels(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Luma of pixels (C, H, W) as (H, W), 0..255."""
    scale = 1 if pixels.dtype == np.uint8 else 255
    grey = np.zeros(pixels.shape[1:], np.float32)
    for plane, weight in zip(pixels, LUMA if len(pixels) == 3 else (1,), strict=True):
        grey += np.multiply(plane, weight * scale, dtype=np.float32)
    return grey


def look_of(grey: NDArray[np.float32]) -> int:
    """Perceptual hash (pHash): which low frequencies are stronger than their median.

    A thumbnail of 32 x 32 area means, its 8 x 8 lowest cosine coefficients, one bit for each
    (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", section
    3.2.1). Ten lines here: the package imagehash would bring SciPy and PyWavelets along.

    Args:
        grey: (H, W), 0..255.
    """
    # Other pictures than mode F would be rounded on the way down.
    thumbnail = Image.fromarray(grey).resize((EDGE, EDGE), Image.Resampling.BOX)
    waves = COSINES @ np.asarray(thumbnail) @ COSINES.T  # (LOW, LOW)
    return int.from_bytes(np.packbits(waves > np.median(waves)).tobytes(), "big")


def _digest(*parts: bytes | memoryview) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "big")


def _header(path: str) -> Facts:
    """What the first bytes of a file say; nothing where they are damaged."""
    facts, file = Facts(_place(path)), Path(file_of(path))
    # Decoders raise anything on damaged bytes; the reason is the reader's to give.
    with suppress(Exception), _quiet():
        if file.is_file():  # A FIFO would hang.
            with file.open("rb") as stream:
                facts = _facts(facts, stream)
    return facts


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what decoders say about damaged bytes off the screen."""
    loggers = [logging.getLogger(name) for name in ("tifffile", "nibabel.global", "pydicom")]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, was_disabled in zip(loggers, before, strict=True):
            logger.disabled = was_disabled


def _facts(facts: Facts, stream: BinaryIO) -> Facts:
    first = stream.read(DICOM_START + len(DICOM_MAGIC))
    stream.seek(0)
    if first[:4] in TIFF_MAGIC:
        return _tiff(facts, stream)
    if first.startswith(NIFTI_MAGIC):
        return _nifti(facts, stream)
    if first[DICOM_START:] == DICOM_MAGIC:
        return _dicom(facts, stream)
    return _other(facts, stream, first)


def _other(facts: Facts, stream: BinaryIO, first: bytes) -> Facts:
    with Image.open(stream, formats=PILLOW_FORMATS) as image:
        kind = image.format or ""
        mode = "L" if image.mode.startswith("I") else image.mode  # 16-bit grey
        bits = first[PNG_BIT_DEPTH] if kind == "PNG" else 1 if mode == "1" else 8
        return facts._replace(
            format=kind, mode=mode, bits=bits, width=image.width, height=image.height
        )


def _tiff(facts: Facts, stream: BinaryIO) -> Facts:
    import tifffile

    with tifffile.TiffFile(stream, name="") as tiff:
        page = tiff.pages.first
        alpha = "A" if page.extrasamples else ""
        kind = TIFF_KINDS.get(int(page.sampleformat), "")
        return facts._replace(
            format="TIFF",
            mode=TIFF_MODES.get(int(page.photometric), "other") + alpha + kind,
            bits=int(page.bitspersample),
            width=int(page.imagewidth),
            height=int(page.imagelength),
        )


def _nifti(facts: Facts, stream: BinaryIO) -> Facts:
    import nibabel

    is_packed = stream.read(2) == NIFTI_MAGIC[-1]
    stream.seek(0)
    first = (gzip.GzipFile(fileobj=stream) if is_packed else stream).read(NIFTI_HEADER)
    is_second = NIFTI_HEADER in (int.from_bytes(first[:4], order) for order in ("little", "big"))
    kind = cast(Any, nibabel.Nifti2Header if is_second else nibabel.Nifti1Header)
    dtype = kind(first[: kind.sizeof_hdr]).get_data_dtype()
    mode = "L" + NIFTI_KINDS.get(dtype.kind, "")
    return facts._replace(format="NIfTI", mode=mode, bits=8 * dtype.itemsize)


def _dicom(facts: Facts, stream: BinaryIO) -> Facts:
    import pydicom

    facts = facts._replace(format="DICOM")
    if pydicom.filereader.read_file_meta_info(stream.name).TransferSyntaxUID.is_deflated:
        return facts  # A bomb would take all memory.
    dataset = pydicom.dcmread(stream, stop_before_pixels=True)
    signed = " signed" if dataset.PixelRepresentation else ""
    return facts._replace(
        mode=("L" if dataset.SamplesPerPixel == 1 else "RGB") + signed,
        bits=int(dataset.BitsStored),
        width=int(dataset.Columns),
        height=int(dataset.Rows),
    )
