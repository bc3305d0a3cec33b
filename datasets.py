"""Find the images below a folder and read each one right, whatever its format and depth.

Arrays and tensors are (C, H, W) with C = 3 (RGB) or 1 (grey): uint8 in 0..255 for files of at most
8 bits per sample, float32 in [0, 1] for deeper ones. Transparency lies on white, the orientation
tag is applied, colour profiles are not, and of several frames or pages the first is read. A volume
(3-D NIfTI) is read slice by slice, under names such as `case.nii.gz@057`; its arrays stay as they
are stored, the first axis down the rows, whatever the affine matrix says of the patient. TIFF needs
the packages tifffile and imagecodecs, 16-bit PNG imagecodecs, NIfTI nibabel, DICOM pydicom; the
rest is Pillow's.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import re
import warnings
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

NIFTI_EXTENSIONS = (".nii", ".nii.gz")
PICTURE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp")
EXTENSIONS = (*PICTURE_EXTENSIONS, *NIFTI_EXTENSIONS, ".dcm")
MAX_PIXELS = 178_956_970  # where Pillow, too, refuses; a larger image is to be cut into tiles first
MAX_BYTES = 10 * MAX_PIXELS  # of a file in memory; 4 samples of 16 bits, and a margin
ORIENTATION = 274  # the tag's number, in EXIF and TIFF alike
FLIPPED_AXES = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}  # EXIF 2.32, 4.6.4A

PILLOW_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")  # no other decoder, above all not EPS, runs
PILLOW_MAGIC = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|BM|RIFF(?s:....)WEBP")
PILLOW_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBX", "RGBA", "CMYK", "YCbCr")
PNG_CHUNKS = (b"IHDR", b"tRNS", b"IDAT", b"IEND")  # what the samples of a 16-bit PNG depend on

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, SEPARATED, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # colour channels of each photometric kind
TIFF_JPEG = (6, 7, 34892, 33007)  # compressions whose decoder turns YCbCr into RGB itself
JPEG_END = b"\xff\xd9"
# Strips and tiles that have sizes of their own; of the second kind only a decoder knows them.
TIFF_PICTURES = (*TIFF_JPEG, 33003, 33004, 33005, 34712, 34927, 34933, 50001)
TIFF_CODED = (22610, 34887, 34934, 50002, 52546)  # JPEG XR, LERC, JPEG XL
TIFF_WEBP, CONTIGUOUS = 50001, 1  # a compression; samples of a pixel side by side
PHOTOMETRIC = 262
# YCbCrCoefficients and ReferenceBlackWhite of ITU-R BT.601 in full range, the only ones converted.
YCBCR_USUAL = {529: (0.299, 0.587, 0.114), 532: (0, 255, 128, 255, 128, 255)}
UNSPECIFIED, PREMULTIPLIED, STRAIGHT = 0, 1, 2  # TIFF 6.0, extra samples

NIFTI_SIZES = (348, 540)  # bytes of the header, its first number: version 1 and version 2
GZIP_MAGIC, GZIP_RATIO = b"\x1f\x8b", 1032  # DEFLATE cannot pack more bytes into one
GZIP_CHUNK, GZIP_KNOWN = 2**20, 4096  # bytes in memory at a time; files remembered as checked
MAX_NIFTI_START = 100_000_000  # bytes before the pixels, of extensions mostly
MAX_SLICES = 32_767  # the longest axis of NIfTI-1

DICOM_MAGIC, DICOM_START = b"DICM", 128  # bytes before it, PS3.10, 7.1
DICOM_KINDS = {"MONOCHROME1": MIN_IS_WHITE, "MONOCHROME2": MIN_IS_BLACK, "RGB": RGB}
DICOM_KINDS |= dict.fromkeys(("YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"), RGB)  # by pydicom
FRAME_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
FRAME_VALUES = ("PixelValueTransformationSequence", "FrameVOILUTSequence")  # PS3.3, C.7.6.16.2
PRESENTATIONS = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}  # PS3.3, C.7.6.1

Window = tuple[float, float]  # the values that become 0 and 1
IntensityRange = Window | Literal["image"] | None


class UnreadableImageError(ValueError):
    """An image that cannot be read right; one line, "<path>: <reason>[; what to do]"."""


class ImagePaths(Sequence[str]):
    """Paths below a folder, in one byte buffer and one int64 array of offsets.

    Worker processes copy a list of strings page by page, as they touch it; these they share.

    Args:
        folder: the folder that every path lies below.
        relatives: paths relative to the folder, with "/" between their parts.
    """

    def __init__(self, folder: str, relatives: Iterable[str]) -> None:
        self.folder = folder
        buffer, offsets = bytearray(), array("q", [0])
        for relative in relatives:
            buffer += os.fsencode(relative)
            offsets.append(len(buffer))
        self._buffer = bytes(buffer)
        self._offsets = np.array(offsets, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> ImagePaths: ...
    def __getitem__(self, index: int | slice) -> str | ImagePaths:
        """Return the full path at an index, or the subset of a slice."""
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        return str(Path(self.folder, self.relative(index)))

    def relative(self, index: int) -> str:
        """Return the path at an index relative to the folder, with "/" between its parts."""
        place = range(len(self))[index]
        return os.fsdecode(self._buffer[self._offsets[place] : self._offsets[place + 1]])

    def select(self, indices: Iterable[int]) -> ImagePaths:
        """Return the subset at these indices, in their order."""
        return ImagePaths(self.folder, (self.relative(index) for index in indices))


def find_images(folder: str | os.PathLike[str], slice_axis: int = 2) -> ImagePaths:
    """List every image below a folder, however deep, in the sorted order of the files.

    Hidden files and folders are passed over. Links to folders are followed, each folder is entered
    once. Broken links, and folders that cannot be entered, are listed and fail when they are read.
    Of NIfTI files, and no others, the headers are read: a volume is listed slice by slice.

    Args:
        folder: where to look.
        slice_axis: the axis along which volumes are cut, 0, 1 or 2.

    Raises:
        FileNotFoundError: the folder is missing or holds no image.
        NotADirectoryError: the path is no folder.
        ModuleNotFoundError: there is a NIfTI file, and nibabel is not installed.
    """
    root, name = Path(folder), _printable(os.fspath(folder))
    if not root.exists():
        raise FileNotFoundError(f"{name}: no such folder; looked for {' '.join(EXTENSIONS)}")
    if not root.is_dir():
        raise NotADirectoryError(f"{name}: not a folder; give the folder that holds the images")
    paths = ImagePaths(os.fspath(folder), _walk(root, slice_axis))
    if not paths:
        raise FileNotFoundError(f"{name}: no images; looked for {' '.join(EXTENSIONS)}")
    return paths


def _walk(root: Path, slice_axis: int) -> Iterator[str]:
    """Yield the relative paths of all images in sorted order, without recursion."""
    visited = {_identity(root)}
    waiting = [("", _entries(root))]
    while waiting:
        prefix, names = waiting[-1]
        if not names:
            waiting.pop()
            continue
        path = prefix + names.pop()
        if not path.endswith("/"):
            yield from _images_of(root, path, slice_axis)
            continue
        try:
            identity = _identity(root / path)
            if identity not in visited:
                visited.add(identity)
                waiting.append((path, _entries(root / path)))
        except OSError:
            yield path[:-1]  # Its images are missing: it is listed, and fails when it is read.


def _identity(folder: Path) -> tuple[int, int]:
    """Return what tells a folder from all others, by whatever links it was reached."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def _entries(folder: Path) -> list[str]:
    """Return the images and, with a final "/", the folders in one folder, last name first.

    The "/" takes part in the sorting, so that the walk yields sorted paths.
    """
    with os.scandir(folder) as entries:
        return sorted((name for entry in entries if (name := _listed(entry))), reverse=True)


def _listed(entry: os.DirEntry[str]) -> str:
    """Return the name under which an entry is listed: folders with "/", "" for what is not."""
    if entry.name.startswith("."):
        return ""
    image = entry.name if entry.name.lower().endswith(EXTENSIONS) else ""
    try:
        return entry.name + "/" if entry.is_dir() else image
    except OSError:  # a link to itself
        return image


def _images_of(root: Path, path: str, slice_axis: int) -> Iterable[str]:
    """Return the images in a file: itself, or the slices of a volume.

    A volume that cannot be opened stays one image, and fails when it is read.
    """
    if not path.lower().endswith(NIFTI_EXTENSIONS):
        return (path,)
    count = 1
    if not (root / path).is_file():  # Opening a FIFO or a device would hang.
        return (path,)
    with suppress(UnreadableImageError), _decoding(root / path), (root / path).open("rb") as stream:
        voxels, axis = _voxels(stream, slice_axis)
        count = voxels.shape[axis]
    width = max(3, len(str(count - 1)))
    return (f"{path}@{index:0{width}}" for index in range(count)) if count > 1 else (path,)


def _slice_of(path: str) -> tuple[str, int | None]:
    """Return the file of an image, and which of its slices the image is."""
    file, _, index = path.rpartition("@")
    is_slice = index.isdecimal() and file.lower().endswith(NIFTI_EXTENSIONS)
    return (file, int(index)) if is_slice else (path, None)


def read_image(
    path: str | os.PathLike[str],
    *,
    channels: int = 3,
    intensity_range: IntensityRange = None,
    slice_axis: int = 2,
    refuse_constant: bool = False,
) -> NDArray[Any]:
    """Read the first frame of an image file; its content, not its name, says what format it is.

    Args:
        path: the file, or a slice of a volume as `find_images` names it.
        channels: 3 for RGB (grey is repeated), 1 for grey (luma of ITU-R BT.601).
        intensity_range: the values (low, high) that become 0 and 1, clipped, in every file that is
            not 8-bit; without it DICOM is read through its own first window, unsigned integers of
            up to 16 bits are divided by their maximum, floats in [0, 1] stay as they are, and all
            else is refused. "image": the lowest and highest value of the image itself, whatever
            its depth; a constant becomes 0.
        slice_axis: the axis along which volumes are cut, 0, 1 or 2.
        refuse_constant: whether an image of a single value, which has no z-score, is unreadable.

    Returns:
        Array (channels, H, W): uint8 if the file has at most 8 bits, unless "image" or a window of
        DICOM stretches them, else float32 in [0, 1].

    Raises:
        UnreadableImageError: the file is missing, damaged, cut short, ambiguous or not supported.
        ModuleNotFoundError: the file needs a package that is not installed.
        ValueError: channels, intensity_range or slice_axis break their rule.
    """
    _check_options(channels, intensity_range, slice_axis)
    with _decoding(path):
        raw = _decode(os.fspath(path), slice_axis)
        pixels = _arranged(_pixels(raw, intensity_range), raw.orientation, channels)
        if refuse_constant and pixels.min() == pixels.max():
            raise UnreadableImageError(
                "constant, so it has no z-score; leave it out or change input_normalization"
            )
        if intensity_range == "image":  # also of 8 bits, on white and as luma
            pixels = _scaled(pixels, *_extremes(pixels))
    return pixels


@contextmanager
def _decoding(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn all that decoders raise on damaged bytes, which is anything, into the one error."""
    try:
        with _quiet():
            yield
    except ModuleNotFoundError as error:
        line = _printable(f"{os.fspath(path)}: needs the package {error.name}: ")
        raise ModuleNotFoundError(f"{line}pip install {error.name}", name=error.name) from error
    except Exception as error:
        line = _printable(f"{os.fspath(path)}: {_reason(error)}")
        raise UnreadableImageError(line) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnreadableImageError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return f"damaged, or none of {', '.join(PILLOW_FORMATS)}, TIFF, NIfTI and DICOM"
    return f"cannot be decoded, {type(error).__name__} {error}".strip()


def _check_options(channels: int, intensity_range: IntensityRange, slice_axis: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    if slice_axis not in (0, 1, 2):
        raise ValueError(f"slice_axis must be 0, 1 or 2, got {slice_axis}")
    if intensity_range is None or intensity_range == "image":
        return
    low, high = intensity_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"intensity_range must be finite and rising, got {intensity_range}")


def _printable(text: str | os.PathLike[str]) -> str:
    """Escape what would break the line or the screen."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in os.fspath(text)
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the decoders' warnings and logs off the screen: what matters becomes an error."""
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


class _Raw(NamedTuple):
    """What a decoder found: samples (H, W, S), colours first, then perhaps an alpha channel."""

    samples: NDArray[Any]
    bits: int
    photometric: int
    orientation: int
    alpha: int = STRAIGHT
    colormap: NDArray[np.uint16] | None = None  # (3, 2**bits)
    window: Window | None = None  # that the file itself asks for


def _decode(path: str, slice_axis: int) -> _Raw:
    name, index = _slice_of(path)
    file = Path(name)
    if not file.exists():
        raise UnreadableImageError("no such file, or a broken link")
    if not file.is_file():
        kind = (
            "a folder; if it holds images, let it be opened"
            if file.is_dir()
            else "not a regular file"
        )
        raise UnreadableImageError(kind)
    with file.open("rb") as stream:
        first = stream.read(DICOM_START + len(DICOM_MAGIC))
        stream.seek(0)
        if not first:
            raise UnreadableImageError("empty file")
        if first[:4] in TIFF_MAGIC:
            return _decode_tiff(stream)
        if first.startswith(GZIP_MAGIC) or _nifti_size(first):
            return _decode_nifti(stream, index, slice_axis)
        is_dicom = first[DICOM_START:] == DICOM_MAGIC
        if not is_dicom and not PILLOW_MAGIC.match(first):
            raise UnidentifiedImageError
        _check_bytes(os.fstat(stream.fileno()).st_size)
        return _decode_dicom(stream) if is_dicom else _decode_other(stream.read())


def _check_bytes(size: int) -> None:
    """Refuse what no image needs, before it is read into memory as a whole."""
    if size > MAX_BYTES:
        raise UnreadableImageError(
            f"a file of {size} bytes, at most {MAX_BYTES} are read; give single, smaller images"
        )


def _decode_other(data: bytes) -> _Raw:
    with Image.open(BytesIO(data), formats=PILLOW_FORMATS) as image:
        if image.format == "PNG":
            _verify_png(data)
        if image.format == "BMP" and image.mode in ("1", "L"):
            return _Raw(_decode_grey_bmp(data, image.mode), 8, MIN_IS_BLACK, 1)
        image.load()
        orientation = image.getexif().get(ORIENTATION, 1)
        bits = data[24] if image.format == "PNG" else 8
        if bits in (2, 4) and "transparency" in image.info and image.mode == "L":
            image.info["transparency"] *= 255 // (2**bits - 1)  # as Pillow does with the pixels
        is_deep = bits == 16  # Pillow would drop the lower 8 bits
        samples = _decode_deep_png(data) if is_deep else _eight_bit(image)
    is_grey = samples.shape[-1] < 3
    return _Raw(samples, 16 if is_deep else 8, MIN_IS_BLACK if is_grey else RGB, orientation)


def _verify_png(data: bytes) -> None:
    """Check the checksums: Pillow's decoder passes over those of the pixels, libpng prints."""
    with Image.open(BytesIO(data), formats=("PNG",)) as image:
        image.verify()


def _decode_grey_bmp(data: bytes, mode: str) -> NDArray[np.uint8]:
    """Return (H, W, 1) of a BMP whose palette holds grey, of black and white or of all levels.

    By such a palette Pillow takes the pixels to be of 1 or 8 bits, although they may be of 4 or 8.
    With another palette, whose first entry is no grey, it gives the indices as they are.
    """
    other = bytearray(data)
    other[14 + int.from_bytes(data[14:18], "little")] ^= 1  # behind the header: blue of entry 0
    with Image.open(BytesIO(other), formats=("BMP",)) as image:
        indices = np.asarray(image)[..., None]
    if image.mode != "P" or (mode == "1" and indices.max() > 1):
        raise UnreadableImageError("damaged, a pixel is of no colour in the palette")
    return indices * np.uint8(255) if mode == "1" else indices


def _eight_bit(image: Image.Image) -> NDArray[np.uint8]:
    """Return (H, W, S) with S = 1 (grey), 3 (RGB) or 4 (RGB and alpha)."""
    if image.mode not in PILLOW_MODES:
        raise UnreadableImageError(f"pixels of kind {image.mode} are not supported")
    if image.mode[-1] == "A" or "transparency" in image.info:
        return np.asarray(image.convert("RGBA"))
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[..., None]
    return np.asarray(image.convert("RGB"))


def _decode_deep_png(data: bytes) -> NDArray[np.uint16]:
    """Return (H, W, S) of a 16-bit PNG, transparency by colour turned into alpha."""
    import imagecodecs

    kept, place = [data[:8]], 8
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        kept += [data[place:end]] if data[place + 4 : place + 8] in PNG_CHUNKS else []
        place = end
    samples: NDArray[np.uint16] = imagecodecs.png_decode(b"".join(kept))
    return samples.reshape(*samples.shape[:2], -1)  # (H, W, S)


def _decode_tiff(stream: BinaryIO) -> _Raw:
    import tifffile

    with tifffile.TiffFile(stream, name="") as tiff:
        page = tiff.pages.first
        _check_tiff(page, stream, tiff.filehandle.size)
        shaped = page.asarray(squeeze=False, maxworkers=1)  # (planes, 1, H, W, samples)
        samples = np.moveaxis(shaped[:, 0], 0, -1).reshape(*shaped.shape[2:4], -1)
        is_rgb = page.photometric == YCBCR and page.compression in TIFF_JPEG
        return _Raw(
            samples,
            page.bitspersample,
            RGB if is_rgb else page.photometric,
            page.tags.valueof(ORIENTATION, 1),
            page.extrasamples[0] if page.extrasamples else STRAIGHT,
            page.colormap,
        )


def _check_tiff(page: Any, stream: BinaryIO, file_size: int) -> None:
    """Refuse, before memory is taken, what cannot be read right."""
    sizes = (page.imagewidth, page.imagelength, page.tilewidth, page.tilelength)
    if not all(isinstance(size, int) for size in (*sizes, page.samplesperpixel, page.rowsperstrip)):
        raise UnreadableImageError("damaged, a size in the header is no number")
    colours = COLOURS.get(page.photometric)
    if page.tags.valueof(PHOTOMETRIC) is None:
        raise UnreadableImageError("damaged, its header does not say whether 0 is black or white")
    if colours is None or page.imagedepth != 1:
        raise UnreadableImageError(f"TIFF of kind {page.photometric!r} is not supported")
    extra = page.samplesperpixel - colours
    if extra not in (0, 1) or (extra and colours == 1 and page.extrasamples[:1] == (UNSPECIFIED,)):
        raise UnreadableImageError(
            f"{page.samplesperpixel} channels; give grey or RGB, with or without alpha"
        )
    if page.photometric == YCBCR and page.compression not in TIFF_JPEG:
        _check_ycbcr(page)
    area, tile_area = math.prod(sizes[:2]), math.prod(sizes[2:])
    if not 0 < area <= MAX_PIXELS or tile_area > MAX_PIXELS:
        raise UnreadableImageError(
            f"{sizes[0]} x {sizes[1]} pixels, at most {MAX_PIXELS} are read; cut it into tiles"
        )
    places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    is_whole = all(offset and 0 < count <= file_size - offset for offset, count in places)
    if not is_whole or len(places) < (1 if page.is_contiguous else math.prod(page.chunked)):
        raise UnreadableImageError("cut short, pixel data is missing")
    has_sizes = page.compression in (*TIFF_PICTURES, *TIFF_CODED)
    for index, (offset, count) in enumerate(places if has_sizes else ()):
        stream.seek(offset)
        _check_part(page, index, stream.read(count))


def _check_ycbcr(page: Any) -> None:
    """Refuse YCbCr of which the header says that it is not the one that is turned into RGB."""
    for tag, usual in YCBCR_USUAL.items():
        ratios: tuple[int, ...] | None = page.tags.valueof(tag)
        if ratios is None:
            continue
        found = [over / under for over, under in zip(ratios[::2], ratios[1::2], strict=False)]
        if len(found) != len(usual) or not np.allclose(found, usual, rtol=0, atol=1e-3):
            values = " ".join(f"{value:g}" for value in found)
            raise UnreadableImageError(
                f"YCbCr of another kind, {page.tags[tag].name} is {values}; convert it to RGB"
            )


def _check_part(page: Any, index: int, data: bytes) -> None:
    """Refuse a strip or tile with less, or of another size or kind, than the page says.

    Its pixels would be poured into the shape of the page, or take more memory than that.
    """
    # What is missing of a JPEG would be decoded as grey. Zeros behind it are padding.
    if page.compression in TIFF_JPEG and not data.rstrip(b"\0").endswith(JPEG_END):
        raise UnreadableImageError("cut short, a JPEG within it has no end")
    width, height, bands = _size_of_part(page.compression, data)
    samples = page.samplesperpixel if page.planarconfig == CONTIGUOUS else 1
    # Opaque WebP leaves its alpha channel out, and tifffile fills it in.
    if bands != samples and (page.compression, bands, samples) != (TIFF_WEBP, 3, 4):
        raise UnreadableImageError(f"damaged, a part of {bands} channels in a page of {samples}")
    if (width, height) not in _sizes_of_parts(page, index):
        raise UnreadableImageError(
            f"damaged, a part of {width} x {height} pixels does not fit its place in the page"
        )


def _size_of_part(compression: int, data: bytes) -> tuple[int, int, int]:
    """Return width, height and number of channels of a compressed strip or tile."""
    if compression in TIFF_CODED:
        from tifffile import TIFF

        height, width, bands = (*TIFF.DECOMPRESSORS[compression](data).shape, 1)[:3]
        return width, height, bands
    with Image.open(BytesIO(data), formats=("JPEG", "JPEG2000", "WEBP", "PNG")) as picture:
        if picture.mode == "P" or "transparency" in picture.info:
            raise UnreadableImageError("damaged, a part has a palette or transparency of its own")
        return picture.width, picture.height, len(picture.getbands())


def _sizes_of_parts(page: Any, index: int) -> set[tuple[int, int]]:
    """Return the widths and heights that a strip or tile may have, as tifffile puts it in place.

    At the edge of the page it is whole or ends there, a strip also in between.
    """
    width = page.tilewidth if page.is_tiled else page.imagewidth
    height = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
    across, down = math.ceil(page.imagewidth / width), math.ceil(page.imagelength / height)
    right = min(width, page.imagewidth - index % across * width)
    bottom = min(height, page.imagelength - index // across % down * height)
    if page.is_tiled:
        return {(width, height), (width, bottom), (right, bottom)}
    return {(width, rows) for rows in range(bottom, height + 1)}


def _decode_nifti(stream: BinaryIO, index: int | None, slice_axis: int) -> _Raw:
    voxels, axis = _voxels(stream, slice_axis)
    count = voxels.shape[axis]
    if (index is None and count > 1) or (index or 0) >= count:
        raise UnreadableImageError(f"{count} slices along axis {axis}; name one of them")
    if isinstance(voxels.file_like, gzip.GzipFile):
        status = os.fstat(stream.fileno())
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if fault := _gzip_fault(stream.name, identity):
            raise UnreadableImageError(f"damaged or cut short, {fault}")
    # Of a volume that is not packed, no more than the slice is read.
    samples = np.asarray(voxels[(slice(None),) * axis + (index or 0,)])
    if (voxels.slope, voxels.inter) != (1, 0):
        samples = samples.astype(np.float32)
    return _Raw(samples[..., None], 8 * samples.dtype.itemsize, MIN_IS_BLACK, 1)


@lru_cache(GZIP_KNOWN)
def _gzip_fault(path: str, identity: tuple[int, ...]) -> str:
    """Return what is wrong with a packed file, "" if nothing; once, as long as it stays the same.

    The checksum comes last: a slice before it would be read without it.
    """
    try:
        with gzip.open(path) as data:
            while data.read(GZIP_CHUNK):
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return str(error)
    return ""


def _voxels(stream: BinaryIO, slice_axis: int) -> tuple[Any, int]:
    """Return the voxels of a NIfTI file, which indexing reads, and the axis to cut them along.

    They have three axes; the third is the one to cut where it is of length 1. What cannot be read
    right is refused here, before memory is taken.
    """
    from nibabel import Nifti1Header, Nifti2Header
    from nibabel.arrayproxy import ArrayProxy

    file_size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    is_packed = stream.read(2) == GZIP_MAGIC
    stream.seek(0)
    data: Any = gzip.GzipFile(fileobj=stream) if is_packed else stream
    first = data.read(max(NIFTI_SIZES))
    size, proxy = _nifti_size(first), cast(Any, ArrayProxy)
    if not size:
        raise UnreadableImageError("damaged, or packed and no NIfTI")
    header = cast(Any, Nifti1Header if size == NIFTI_SIZES[0] else Nifti2Header)(first[:size])
    shape, axis = _check_nifti(header, slice_axis)
    dtype, offset = header.get_data_dtype(), header.get_data_offset()
    if offset + math.prod(shape) * dtype.itemsize > file_size * (GZIP_RATIO if is_packed else 1):
        raise UnreadableImageError("cut short, pixel data is missing")
    slope, intercept = header.get_slope_inter()
    return proxy(data, (shape, dtype, offset, slope or 1, intercept or 0), mmap=False), axis


def _nifti_size(first: bytes) -> int:
    """Return the length of the NIfTI header that begins with these bytes, 0 if none does."""
    sizes = (int.from_bytes(first[:4], order) for order in ("little", "big"))
    return next((size for size in sizes if size in NIFTI_SIZES), 0)


def _check_nifti(header: Any, slice_axis: int) -> tuple[tuple[int, ...], int]:
    """Return the lengths of the three axes, and which of them to cut."""
    if header["magic"].item() != header.single_magic:
        raise UnreadableImageError("damaged, or its pixels lie in another file")
    if header.get_data_offset() < header.single_vox_offset:
        raise UnreadableImageError("damaged, pixels within the header")
    if (start := header.get_data_offset()) > MAX_NIFTI_START:
        raise UnreadableImageError(
            f"damaged, pixels from byte {start} on, at most {MAX_NIFTI_START} may lie before them"
        )
    if header.get_data_dtype().kind not in "iuf":
        raise UnreadableImageError(f"samples of type {header.get_data_dtype()} are not supported")
    lengths: tuple[int, ...] = header.get_data_shape()
    shape = (*lengths, 1)[:3]
    if len(shape) < 3 or min(lengths) < 1 or math.prod(shape) != math.prod(lengths):
        raise UnreadableImageError(f"axes of {lengths}; give an image or a volume")
    axis = 2 if shape[2] == 1 else slice_axis
    area = math.prod(shape) // shape[axis]
    if area > MAX_PIXELS or shape[axis] > MAX_SLICES:
        raise UnreadableImageError(
            f"{shape[axis]} slices of {area} pixels, at most {MAX_SLICES} of {MAX_PIXELS} are read"
        )
    return shape, axis


def _decode_dicom(stream: BinaryIO) -> _Raw:
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info

    if read_file_meta_info(stream.name).TransferSyntaxUID.is_deflated:
        raise UnreadableImageError("deflated, to nobody knows what size; store it inflated")
    # From memory, where a length that lies finds no more bytes than there are.
    dataset = dcmread(BytesIO(stream.read()))
    _check_dicom(dataset)
    _take_frame_values(dataset)
    photometric = DICOM_KINDS[dataset.PhotometricInterpretation]
    samples = dataset.pixel_array
    samples = samples.reshape(*samples.shape[:2], -1)  # (H, W, 1 or 3)
    if photometric == RGB:
        return _Raw(samples, dataset.BitsStored, RGB, 1)
    slope, intercept = dataset.get("RescaleSlope") or 1, dataset.get("RescaleIntercept") or 0
    if (slope, intercept) != (1, 0):
        samples = (samples * float(slope) + float(intercept)).astype(np.float32)
    return _Raw(samples, dataset.BitsStored, photometric, 1, window=_window(dataset))


def _check_dicom(dataset: Any) -> None:
    """Refuse, before memory is taken, what cannot be read right."""
    if dataset.PhotometricInterpretation not in DICOM_KINDS or "ModalityLUTSequence" in dataset:
        kind = f"{dataset.PhotometricInterpretation}, or with a lookup table,"
        raise UnreadableImageError(f"DICOM of kind {kind} is not supported")
    usual = PRESENTATIONS.get(dataset.PhotometricInterpretation)
    if usual and (shape := dataset.get("PresentationLUTShape") or usual) != usual:
        raise UnreadableImageError(
            f"{dataset.PhotometricInterpretation} shown as {shape} contradicts itself: programs "
            f"differ in what is white; set PresentationLUTShape to {usual}, or remove it"
        )
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise UnreadableImageError(f"{dataset.NumberOfFrames} frames; give single ones")
    if dataset.HighBit != dataset.BitsStored - 1:
        raise UnreadableImageError(f"samples that end at bit {dataset.HighBit} are not supported")
    if not 0 < dataset.Rows * dataset.Columns <= MAX_PIXELS:
        raise UnreadableImageError(
            f"{dataset.Columns} x {dataset.Rows} pixels, at most {MAX_PIXELS} are read"
        )


def _take_frame_values(dataset: Any) -> None:
    """Put the rescaling and the window of an enhanced image's only frame where others have them."""
    for group in (item for name in FRAME_GROUPS for item in (dataset.get(name) or ())[:1]):
        for values in (item for name in FRAME_VALUES for item in (group.get(name) or ())[:1]):
            dataset.update(values)


def _window(dataset: Any) -> Window | None:
    """Return the lowest and highest value of the first window, PS3.3, C.11.2.1.2.

    A sigmoid and a step have none, and are passed over.
    """
    center, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if center is None or width is None or function == "SIGMOID":
        return None
    center, width = (float(np.ravel(value)[0]) for value in (center, width))
    low, high = center - width / 2, center + width / 2 - (function == "LINEAR")
    return (low, high) if low < high else None


def _pixels(raw: _Raw, window: IntensityRange) -> NDArray[Any]:
    """Return grey (H, W, 1) or RGB (H, W, 3) on white, uint8 or float32 in [0, 1]."""
    colour = _colour(raw, window)
    alpha_samples = raw.samples[..., COLOURS[raw.photometric] :]
    if not alpha_samples.size or raw.alpha == UNSPECIFIED:
        return colour
    opaque = None  # In floats 1, or else what is white: programs differ.
    if alpha_samples.dtype.kind == "f" and window is not None and alpha_samples.max() > 1:
        opaque = (0.0, float(alpha_samples.max() if window == "image" else window[1]))
    alpha = _intensities(alpha_samples, raw.bits, opaque)
    if raw.alpha == PREMULTIPLIED:
        on_white: NDArray[Any] = np.minimum(colour, alpha) + _inverted(alpha)
        return on_white
    return _inverted(_product(_inverted(colour), alpha))


def _colour(raw: _Raw, window: IntensityRange) -> NDArray[Any]:
    """Return the colour channels as grey (H, W, 1) or RGB (H, W, 3)."""
    samples = raw.samples[..., : COLOURS[raw.photometric]]
    if raw.photometric == PALETTE:
        if raw.colormap is None or raw.bits > 8:
            raise UnreadableImageError(f"a palette of {raw.bits} bits is not supported")
        depth = 8 if raw.colormap.max() > 255 else 0  # Old programs wrote 8 bits for 16.
        colours: NDArray[np.uint8] = (raw.colormap >> depth).astype(np.uint8).T  # (2**bits, 3)
        looked_up: NDArray[np.uint8] = colours[samples[..., 0].astype(np.uint8)]
        return looked_up
    colour = _intensities(samples, raw.bits, window, raw.window)
    if raw.photometric == MIN_IS_WHITE:
        return _inverted(colour)
    if raw.photometric == SEPARATED:
        return _product(_inverted(colour[..., :3]), _inverted(colour[..., 3:]))
    if raw.photometric in (YCBCR, CIELAB):
        return _rgb_from_tristimulus(colour, "LAB" if raw.photometric == CIELAB else "YCbCr")
    return colour


def _rgb_from_tristimulus(colour: NDArray[Any], mode: str) -> NDArray[np.uint8]:
    if colour.dtype != np.uint8:
        raise UnreadableImageError(f"{mode} of more than 8 bits; convert it to RGB")
    image = Image.frombytes(mode, colour.shape[1::-1], colour.tobytes())
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return np.asarray(ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB"))
    return np.asarray(image.convert("RGB"))


def _intensities(
    samples: NDArray[Any],
    bits: int,
    window: IntensityRange,
    own: Window | None = None,
) -> NDArray[Any]:
    """Return integers of at most 8 bits as uint8, all else as float32 in [0, 1]."""
    kind = samples.dtype.kind
    if kind in "bu" and bits <= 8 and window != "image":
        window = None  # A range set by the user is that of deeper files.
    if kind in "bu" and bits <= 8 and own is None:
        peak = 2**bits - 1
        scaled = samples if peak == 255 else (samples.astype(np.uint16) * 255 + peak // 2) // peak
        return scaled.astype(np.uint8, copy=False)
    if kind not in "iuf":
        raise UnreadableImageError(f"samples of type {samples.dtype} are not supported")
    if kind == "f" and not np.isfinite(samples).all():
        raise UnreadableImageError("NaN or infinite intensities")
    if window == "image":
        return _scaled(samples, *_extremes(samples))
    return _scaled(samples, *(window or own or _own_range(samples, bits)))


def _extremes(samples: NDArray[Any]) -> Window:
    return float(samples.min()), float(samples.max())


def _scaled(samples: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """Map low to 0 and high to 1, clipped, as float32; a constant's own range to 0."""
    if high - low > np.finfo(np.float32).max:
        raise UnreadableImageError(f"intensities {low:g} to {high:g} are too far apart")
    scaled = samples.astype(np.promote_types(samples.dtype, np.float32))  # exact
    scaled -= low
    scaled /= high - low or 1
    clipped: NDArray[Any] = scaled.clip(0, 1, out=scaled).astype(np.float32, copy=False)
    return clipped


def _own_range(samples: NDArray[Any], bits: int) -> Window:
    """Return the values that stand for black and white, where the file itself settles them."""
    if samples.dtype.kind == "u" and bits <= 16:
        return 0, 2**bits - 1
    least, most = _extremes(samples)
    if samples.dtype.kind == "f" and least >= 0 and most <= 1:
        return 0, 1
    raise UnreadableImageError(
        f"ambiguous intensities, {samples.dtype} {least:g} to {most:g}; set intensity_range"
    )


def _inverted(values: NDArray[Any]) -> NDArray[Any]:
    """Turn white, which is 255 or 1, into black and the other way round."""
    white = 255 if values.dtype == np.uint8 else 1
    inverted: NDArray[Any] = values.dtype.type(white) - values
    return inverted


def _product(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Multiply, white being 1; uint8 is rounded to the nearest."""
    product: NDArray[Any] = one.astype(np.uint16) * other if one.dtype == np.uint8 else one * other
    if one.dtype == np.uint8:
        product = ((product + 127) // 255).astype(np.uint8)
    return product


def _arranged(pixels: NDArray[Any], orientation: int, channels: int) -> NDArray[Any]:
    """Return (H, W, 1 or 3) upright, as (channels, H, W), contiguous and in memory of its own."""
    if pixels.shape[-1] > channels:
        pixels = _luma(pixels)
    upright = pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels
    upright = np.flip(upright, FLIPPED_AXES.get(orientation, ()))
    planes = upright.transpose(2, 0, 1)
    return np.array(np.broadcast_to(planes, (channels, *planes.shape[1:])), order="C")


def _luma(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the luma (H, W, 1) of RGB (H, W, 3), by ITU-R BT.601."""
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    weights = np.array([[0.299], [0.587], [0.114]], dtype=np.float32)
    luma: NDArray[Any] = (pixels @ weights).clip(0, 1)
    return luma


class ImageFolderDataset(Dataset[Tensor]):
    """The images below a folder as tiles of one size.

    Args:
        folder: where `find_images` looks.
        tile_size: height and width in pixels, or one number for both.
        channels: 3 for RGB, 1 for grey.
        intensity_range: see `read_image`, as for the next two.
        slice_axis: along which volumes are cut.
        refuse_constant: whether an image of a single value is unreadable.
        paths: the images to serve instead of all below the folder, such as one part of a split.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        tile_size: int | tuple[int, int] = 256,
        *,
        channels: int = 3,
        intensity_range: IntensityRange = None,
        slice_axis: int = 2,
        refuse_constant: bool = False,
        paths: ImagePaths | None = None,
    ) -> None:
        _check_options(channels, intensity_range, slice_axis)
        sides = (tile_size, tile_size) if isinstance(tile_size, int) else tuple(tile_size)
        if len(sides) != 2 or min(sides) < 1:
            raise ValueError(f"tile_size must be one or two numbers of pixels, got {tile_size}")
        self.paths = find_images(folder, slice_axis) if paths is None else paths
        self.tile_size = sides
        self.channels = channels
        self.intensity_range = intensity_range
        self.slice_axis = slice_axis
        self.refuse_constant = refuse_constant

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Return the tile (C, tile_h, tile_w), uint8 or float32 in [0, 1] as the file is deep.

        Raises:
            UnreadableImageError: the image cannot be read right.
        """
        pixels = read_image(
            self.paths[index],
            channels=self.channels,
            intensity_range=self.intensity_range,
            slice_axis=self.slice_axis,
            refuse_constant=self.refuse_constant,
        )
        image = torch.from_numpy(pixels)
        if image.shape[1:] == self.tile_size:
            return image
        tiles = interpolate(image[None], self.tile_size, mode="bilinear", antialias=True)
        return tiles[0] if tiles.dtype == torch.uint8 else tiles[0].clamp_(0, 1)
