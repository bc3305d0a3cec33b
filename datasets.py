"""Find the images below a folder and read each one right, whatever its format and depth.

Arrays and tensors are (C, H, W) with C = 3 (RGB) or 1 (grey): uint8 in 0..255 for files of at most
8 bits per sample, float32 in [0, 1] for deeper ones. Transparency lies on white, the orientation
tag is applied, colour profiles are not, and of several frames or pages the first is read. TIFF
needs the packages tifffile and imagecodecs, 16-bit PNG needs imagecodecs; the rest is Pillow's.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

EXTENSIONS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp")
MAX_PIXELS = 178_956_970  # where Pillow, too, refuses; a larger image is to be cut into tiles first
ORIENTATION = 274  # the tag's number, in EXIF and TIFF alike
FLIPPED_AXES = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}  # EXIF 2.32, 4.6.4A

PILLOW_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")  # no other decoder, above all not EPS, runs
PILLOW_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBX", "RGBA", "CMYK", "YCbCr")
PNG_CHUNKS = (b"IHDR", b"tRNS", b"IDAT", b"IEND")  # what the samples of a 16-bit PNG depend on

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, SEPARATED, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # colour channels of each photometric kind
TIFF_JPEG = (6, 7, 34892, 33007)  # compressions whose decoder turns YCbCr into RGB itself
TIFF_PICTURES = (*TIFF_JPEG, 33003, 33004, 33005, 34712, 34927, 50001)  # sizes of their own
UNSPECIFIED, PREMULTIPLIED, STRAIGHT = 0, 1, 2  # TIFF 6.0, extra samples

logger = logging.getLogger("recon")


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


def find_images(folder: str | os.PathLike[str]) -> ImagePaths:
    """List every image file below a folder, however deep, in sorted order.

    Hidden files and folders are passed over. Links to folders are followed, each folder is entered
    once. Broken links are listed, and fail when they are read.

    Raises:
        FileNotFoundError: the folder is missing or holds no image.
        NotADirectoryError: the path is no folder.
    """
    root, name = Path(folder), _printable(os.fspath(folder))
    if not root.exists():
        raise FileNotFoundError(f"{name}: no such folder; looked for {' '.join(EXTENSIONS)}")
    if not root.is_dir():
        raise NotADirectoryError(f"{name}: not a folder; give the folder that holds the images")
    paths = ImagePaths(os.fspath(folder), _walk(root))
    if not paths:
        raise FileNotFoundError(f"{name}: no images; looked for {' '.join(EXTENSIONS)}")
    return paths


def _walk(root: Path) -> Iterator[str]:
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
            yield path
            continue
        try:
            identity = _identity(root / path)
            if identity not in visited:
                visited.add(identity)
                waiting.append((path, _entries(root / path)))
        except OSError as error:
            logger.warning("%s: folder left out, %s", _printable(root / path), error.strerror)


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
        if entry.is_dir():
            return entry.name + "/"
        # Opening a FIFO or a device would hang, a broken link is to be reported.
        is_openable = entry.is_file() or (entry.is_symlink() and not Path(entry).exists())
    except OSError:  # a link to itself
        return image
    return image if is_openable else ""


def read_image(
    path: str | os.PathLike[str],
    *,
    channels: int = 3,
    intensity_range: tuple[float, float] | None = None,
) -> NDArray[Any]:
    """Read the first frame of an image file; its content, not its name, says what format it is.

    Args:
        path: the file.
        channels: 3 for RGB (grey is repeated), 1 for grey (luma of ITU-R BT.601).
        intensity_range: the values (low, high) that become 0 and 1, clipped, in every file that is
            not 8-bit; without it unsigned integers of up to 16 bits are divided by their maximum,
            floats in [0, 1] stay as they are, and all else is refused.

    Returns:
        Array (channels, H, W): uint8 if the file has at most 8 bits, else float32 in [0, 1].

    Raises:
        UnreadableImageError: the file is missing, damaged, cut short, ambiguous or not supported.
        ModuleNotFoundError: the file needs a package that is not installed.
        ValueError: channels or intensity_range break their rule.
    """
    _check_options(channels, intensity_range)
    try:
        with _quiet():
            raw = _decode(Path(path))
            return _arranged(_pixels(raw, intensity_range), raw.orientation, channels)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # decoders raise anything on damaged bytes
        line = _printable(f"{os.fspath(path)}: {_reason(error)}")
        raise UnreadableImageError(line) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnreadableImageError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return f"damaged, or none of {', '.join(PILLOW_FORMATS)} and TIFF"
    return f"cannot be decoded, {type(error).__name__} {error}".strip()


def _check_options(channels: int, intensity_range: tuple[float, float] | None) -> None:
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    if intensity_range is None:
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
    tifffile_logger = logging.getLogger("tifffile")
    before, tifffile_logger.disabled = tifffile_logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tifffile_logger.disabled = before


class _Raw(NamedTuple):
    """What a decoder found: samples (H, W, S), colours first, then perhaps an alpha channel."""

    samples: NDArray[Any]
    bits: int
    photometric: int
    orientation: int
    alpha: int = STRAIGHT
    colormap: NDArray[np.uint16] | None = None  # (3, 2**bits)


def _decode(path: Path) -> _Raw:
    if not path.exists():
        raise UnreadableImageError("no such file, or a broken link")
    if not path.is_file():
        raise UnreadableImageError("not a regular file")
    with path.open("rb") as stream:
        magic = stream.read(4)
        stream.seek(0)
        if not magic:
            raise UnreadableImageError("empty file")
        return _decode_tiff(stream) if magic in TIFF_MAGIC else _decode_other(stream.read())


def _decode_other(data: bytes) -> _Raw:
    with Image.open(BytesIO(data), formats=PILLOW_FORMATS) as image:
        if image.format == "PNG":
            _verify_png(data)
        image.load()
        orientation = image.getexif().get(ORIENTATION, 1)
        is_deep = image.format == "PNG" and data[24] == 16  # Pillow would drop the lower 8 bits
        samples = _decode_deep_png(data) if is_deep else _eight_bit(image)
    is_grey = samples.shape[-1] < 3
    return _Raw(samples, 16 if is_deep else 8, MIN_IS_BLACK if is_grey else RGB, orientation)


def _verify_png(data: bytes) -> None:
    """Check the checksums: Pillow's decoder passes over those of the pixels, libpng prints."""
    with Image.open(BytesIO(data), formats=("PNG",)) as image:
        image.verify()


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
    if colours is None or page.imagedepth != 1:
        raise UnreadableImageError(f"TIFF of kind {page.photometric!r} is not supported")
    extra = page.samplesperpixel - colours
    if extra not in (0, 1) or (extra and colours == 1 and page.extrasamples[:1] == (UNSPECIFIED,)):
        raise UnreadableImageError(
            f"{page.samplesperpixel} channels; give grey or RGB, with or without alpha"
        )
    area, tile_area = math.prod(sizes[:2]), math.prod(sizes[2:])
    if not 0 < area <= MAX_PIXELS or tile_area > MAX_PIXELS:
        raise UnreadableImageError(
            f"{sizes[0]} x {sizes[1]} pixels, at most {MAX_PIXELS} are read; cut it into tiles"
        )
    places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    is_whole = all(offset and 0 < count <= file_size - offset for offset, count in places)
    if not is_whole or len(places) < (1 if page.is_contiguous else math.prod(page.chunked)):
        raise UnreadableImageError("cut short, pixel data is missing")
    for offset, count in places if page.compression in TIFF_PICTURES else ():
        stream.seek(offset)
        data = BytesIO(stream.read(count))
        with Image.open(data, formats=("JPEG", "JPEG2000", "WEBP")) as picture:
            if picture.width * picture.height > max(area, tile_area):
                raise UnreadableImageError("damaged, a part claims to be larger than the whole")


def _pixels(raw: _Raw, window: tuple[float, float] | None) -> NDArray[Any]:
    """Return grey (H, W, 1) or RGB (H, W, 3) on white, uint8 or float32 in [0, 1]."""
    colour = _colour(raw, window)
    alpha_samples = raw.samples[..., COLOURS[raw.photometric] :]
    if not alpha_samples.size or raw.alpha == UNSPECIFIED:
        return colour
    alpha = _intensities(alpha_samples, raw.bits, None)
    if raw.alpha == PREMULTIPLIED:
        on_white: NDArray[Any] = np.minimum(colour, alpha) + _inverted(alpha)
        return on_white
    return _inverted(_product(_inverted(colour), alpha))


def _colour(raw: _Raw, window: tuple[float, float] | None) -> NDArray[Any]:
    """Return the colour channels as grey (H, W, 1) or RGB (H, W, 3)."""
    samples = raw.samples[..., : COLOURS[raw.photometric]]
    if raw.photometric == PALETTE:
        if raw.colormap is None or raw.bits > 8:
            raise UnreadableImageError(f"a palette of {raw.bits} bits is not supported")
        colours: NDArray[np.uint8] = (raw.colormap >> 8).astype(np.uint8).T  # (2**bits, 3)
        looked_up: NDArray[np.uint8] = colours[samples[..., 0].astype(np.uint8)]
        return looked_up
    colour = _intensities(samples, raw.bits, window)
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
    samples: NDArray[Any], bits: int, window: tuple[float, float] | None
) -> NDArray[Any]:
    """Return integers of at most 8 bits as uint8, all else as float32 in [0, 1]."""
    kind = samples.dtype.kind
    if kind in "bu" and bits <= 8:
        peak = 2**bits - 1
        scaled = samples if peak == 255 else (samples.astype(np.uint16) * 255 + peak // 2) // peak
        return scaled.astype(np.uint8, copy=False)
    if kind not in "iuf":
        raise UnreadableImageError(f"samples of type {samples.dtype} are not supported")
    if kind == "f" and not np.isfinite(samples).all():
        raise UnreadableImageError("NaN or infinite intensities")
    low, high = window or _own_range(samples, bits)
    scaled = samples.astype(np.promote_types(samples.dtype, np.float32))  # exact
    scaled -= low
    scaled /= high - low
    return scaled.clip(0, 1, out=scaled).astype(np.float32, copy=False)


def _own_range(samples: NDArray[Any], bits: int) -> tuple[float, float]:
    """Return the values that stand for black and white, where the file itself settles them."""
    if samples.dtype.kind == "u" and bits <= 16:
        return 0, 2**bits - 1
    least, most = samples.min(), samples.max()
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
        intensity_range: see `read_image`.
        paths: the images to serve instead of all below the folder, such as one part of a split.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        tile_size: int | tuple[int, int] = 256,
        *,
        channels: int = 3,
        intensity_range: tuple[float, float] | None = None,
        paths: ImagePaths | None = None,
    ) -> None:
        _check_options(channels, intensity_range)
        sides = (tile_size, tile_size) if isinstance(tile_size, int) else tuple(tile_size)
        if len(sides) != 2 or min(sides) < 1:
            raise ValueError(f"tile_size must be one or two numbers of pixels, got {tile_size}")
        self.paths = find_images(folder) if paths is None else paths
        self.tile_size = sides
        self.channels = channels
        self.intensity_range = intensity_range

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Return the tile (C, tile_h, tile_w), uint8 or float32 in [0, 1] as the file is deep.

        Raises:
            UnreadableImageError: the image cannot be read right.
        """
        pixels = read_image(
            self.paths[index], channels=self.channels, intensity_range=self.intensity_range
        )
        image = torch.from_numpy(pixels)
        if image.shape[1:] == self.tile_size:
            return image
        tiles = interpolate(image[None], self.tile_size, mode="bilinear", antialias=True)
        return tiles[0] if tiles.dtype == torch.uint8 else tiles[0].clamp_(0, 1)
