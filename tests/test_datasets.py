"""datasets.py: finding images, reading each one right, serving tiles."""

from __future__ import annotations

import math
import os
import pickle
import socket
import struct
import sys
import tracemalloc
import zlib
from fractions import Fraction
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, TiffTags
from torch.utils.data import DataLoader

import datasets
from datasets import (
    EXTENSIONS,
    ImageFolderDataset,
    ImagePaths,
    UnreadableImageError,
    find_images,
    read_image,
)
from recon.errors import InterruptedRunError

Array = NDArray[Any]
RNG = np.random.default_rng(7)
GREY = RNG.integers(0, 256, (8, 10), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (8, 10, 3), dtype=np.uint8)
RGBA = RNG.integers(0, 256, (8, 10, 4), dtype=np.uint8)
GREY_16 = RNG.integers(0, 65536, (8, 10), dtype=np.uint16)
COLOUR_16 = RNG.integers(0, 65536, (8, 10, 3), dtype=np.uint16)
RGBA_16 = RNG.integers(0, 65536, (8, 10, 4), dtype=np.uint16)
LUMA = np.array([0.299, 0.587, 0.114])


def planes(image: Array) -> Array:
    """(H, W) or (H, W, 3) as (3, H, W)."""
    return np.stack([image] * 3) if image.ndim == 2 else np.moveaxis(image, -1, 0)


def on_white(colour: Array, alpha: Array, peak: int) -> Array:
    """Float composite in [0, 1] of colour (H, W[, 3]) with alpha (H, W)."""
    opacity = alpha / peak
    if colour.ndim == 3:
        opacity = opacity[..., None]
    return colour / peak * opacity + 1 - opacity


def with_chunk(png: bytes | bytearray, kind: bytes, payload: bytes) -> bytes:
    """Insert a chunk after the header of a PNG."""
    png = bytes(png)
    checksum = struct.pack(">I", zlib.crc32(kind + payload))
    return png[:33] + struct.pack(">I", len(payload)) + kind + payload + checksum + png[33:]


def saved(image: Array | Image.Image, form: str, **options: Any) -> bytes:
    stream = BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(stream, form, **options)
    return stream.getvalue()


def tiff(image: Array, **options: Any) -> bytes:
    stream = BytesIO()
    tifffile.imwrite(stream, image, **{"photometric": "minisblack", **options})
    return stream.getvalue()


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Write bytes to a file and read it as an image."""

    def write_and_read(content: bytes, name: str = "image.png", **options: Any) -> Array:
        path = tmp_path / name
        path.write_bytes(content)
        return read_image(path, **options)

    return write_and_read


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def relatives(paths: ImagePaths) -> list[str]:
    return [paths.relative(index) for index in range(len(paths))]


# Finding


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_extension_is_found_in_any_letter_case(tmp_path: Path, extension: str) -> None:
    names = [f"a{extension}", f"b{extension.upper()}", f"c{extension.title()}"]
    touch(tmp_path, *names)
    assert relatives(find_images(tmp_path)) == names


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a.csv", "png", "b.png.part", "c.eps", "d.svs")
    assert relatives(find_images(tmp_path)) == ["a.png"]


def test_paths_are_the_folder_joined_with_the_relative_path(tmp_path: Path) -> None:
    touch(tmp_path, "a/b/c.png")
    paths = find_images(tmp_path)
    assert paths.folder == str(tmp_path)
    assert (paths[0], paths.relative(0)) == (str(tmp_path / "a" / "b" / "c.png"), "a/b/c.png")


def test_order_is_sorted_by_the_relative_path(tmp_path: Path) -> None:
    names = ["a.png", "a/b.png", "a-b/1.png", "a0.png", "B.png", "é.png", "a/10.png", "a/9.png"]
    touch(tmp_path, *names)
    assert relatives(find_images(tmp_path)) == sorted(names)


def test_order_does_not_depend_on_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, *[f"{folder}/{index}.png" for folder in "cab" for index in range(5)])
    expected = relatives(find_images(tmp_path))
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: Path) -> None:
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> Any:
            return iter(self.entries)

        def __exit__(self, *_: object) -> None:
            return None

    monkeypatch.setattr(os, "scandir", Backwards)
    assert relatives(find_images(tmp_path)) == expected


def test_folders_deeper_than_the_recursion_limit_are_walked(tmp_path: Path) -> None:
    depth = 300
    touch(tmp_path, "d/" * depth + "deep.png")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200)
    try:
        found = relatives(find_images(tmp_path))
    finally:
        sys.setrecursionlimit(limit)
    assert found == ["d/" * depth + "deep.png"]


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", ".b.png", "._a.png", ".thumbnails/c.png", "d/.e/f.png")
    assert relatives(find_images(tmp_path)) == ["a.png"]


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.png", "images/b.png")
    (tmp_path / "images" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "c.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    assert relatives(find_images(tmp_path / "images")) == ["b.png", "c.png", "link/a.png"]


def test_loops_of_links_end(tmp_path: Path) -> None:
    touch(tmp_path, "a/b.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "here").symlink_to(tmp_path / "a")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert relatives(find_images(tmp_path)) == ["a/b.png"]


def test_broken_links_with_an_image_name_are_listed_and_unreadable(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    paths = find_images(tmp_path)
    assert relatives(paths) == ["gone.png", "self.png"]
    for path in paths:
        with pytest.raises(UnreadableImageError, match="no such file, or a broken link"):
            read_image(path)


def test_pipes_and_sockets_are_listed_and_fail_when_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.nii")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
        paths = find_images(tmp_path)
    assert relatives(paths) == ["a.png", "link.png", "pipe.nii", "pipe.png", "socket.png"]
    for path in paths[1:]:
        with pytest.raises(UnreadableImageError, match="not a regular file"):
            read_image(path)


def test_reading_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableImageError, match="not a regular file"):
        read_image(tmp_path / "pipe.png")


def test_a_folder_that_cannot_be_entered_is_listed_and_fails_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.png", "closed/b.png")
    scandir = os.scandir

    def guarded(path: Path) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    paths = find_images(tmp_path)
    assert relatives(paths) == ["a.png", "closed"]
    with pytest.raises(UnreadableImageError, match="a folder; if it holds images"):
        read_image(paths[1])


@pytest.mark.parametrize("name", ["a\nb.png", "=1+1.png", "a b'\".png", "é☃.png", "a\udcff.png"])
def test_odd_names_survive(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(saved(GREY, "PNG"))
    paths = find_images(tmp_path)
    assert relatives(paths) == [name]
    assert read_image(paths[0]).shape == (3, 8, 10)


def test_a_16_bit_tiff_with_an_odd_name_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a\n\udcff.tif"
    path.write_bytes(tiff(GREY_16))
    assert read_image(path).dtype == np.float32


@pytest.mark.parametrize(
    ("name", "error", "parts"),
    [
        ("missing", FileNotFoundError, ["no such folder", ".png .jpg"]),
        ("empty", FileNotFoundError, ["no images", ".tif .tiff .webp"]),
        ("image.png", NotADirectoryError, ["not a folder"]),
    ],
)
def test_a_wrong_folder_is_refused_in_one_line(
    tmp_path: Path, name: str, error: type[OSError], parts: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "image.png")
    with pytest.raises(error) as caught:
        find_images(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / name))
    assert "\n" not in message
    assert all(part in message for part in parts)


def test_paths_index_like_a_list() -> None:
    paths = ImagePaths("data", ["a.png", "b/c.png", "d.png"])
    assert list(paths) == ["data/a.png", "data/b/c.png", "data/d.png"]
    assert paths[-1] == "data/d.png"
    assert list(paths[1:]) == ["data/b/c.png", "data/d.png"]
    for index in (3, -4):
        with pytest.raises(IndexError):
            paths[index]


def test_a_selection_keeps_the_order_of_the_indices() -> None:
    paths = ImagePaths("data", ["a.png", "b.png", "c.png"])
    subset = paths.select(np.array([2, 0]))
    assert (subset.folder, relatives(subset)) == ("data", ["c.png", "a.png"])


def test_paths_hold_no_object_for_each_path() -> None:
    paths = ImagePaths("data", (f"{index}.png" for index in range(1000)))
    held = [value for value in vars(paths).values() if not isinstance(value, str)]
    assert sorted(type(value).__name__ for value in held) == ["bytes", "ndarray"]


# Reading: 8 bits


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "rgb"])
def test_lossless_8_bit_is_read_as_it_is(read: Any, form: str, image: Array) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    pixels = read(saved(image, form, **options))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, planes(image))


def test_grey_gif_is_read_as_it_is(read: Any) -> None:
    np.testing.assert_array_equal(read(saved(GREY, "GIF")), planes(GREY))


@pytest.mark.parametrize("colour", [(200, 30, 90), (0, 0, 0), (255, 255, 255)])
def test_jpeg_keeps_a_plain_colour(read: Any, colour: tuple[int, int, int]) -> None:
    pixels = read(saved(Image.new("RGB", (16, 16), colour), "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - np.reshape(colour, (3, 1, 1))).max() <= 2


def test_grey_jpeg_is_repeated(read: Any) -> None:
    pixels = read(saved(Image.new("L", (16, 16), 77), "JPEG"))
    np.testing.assert_array_equal(pixels, np.full((3, 16, 16), 77))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "GIF"])
def test_one_bit_becomes_0_and_255(read: Any, form: str) -> None:
    image = Image.fromarray(GREY > 127)
    np.testing.assert_array_equal(read(saved(image, form)), planes((GREY > 127) * np.uint8(255)))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_reach_white_in_tiff(read: Any, bits: int) -> None:
    levels = np.arange(2**bits, dtype=np.uint8).repeat(8).reshape(2**bits, 8)
    data = tiff(levels.astype(bool) if bits == 1 else levels, bitspersample=bits)
    expected = levels * (255 // (2**bits - 1))
    np.testing.assert_array_equal(read(data), planes(expected))


def test_fax_compression_is_read(read: Any) -> None:
    pixels = read(saved(Image.fromarray(GREY > 127), "TIFF", compression="group4"))
    np.testing.assert_array_equal(pixels, planes((GREY > 127) * np.uint8(255)))


@pytest.mark.parametrize("form", ["PNG", "GIF", "TIFF", "BMP"])
def test_palettes_are_looked_up(read: Any, form: str) -> None:
    image = Image.fromarray(GREY % 16)
    image.putpalette([value for index in range(16) for value in (index * 16, 255 - index, index)])
    levels = (GREY % 16).astype(np.uint8)
    expected = np.stack([levels * 16, 255 - levels, levels])
    np.testing.assert_array_equal(read(saved(image, form)), expected)


def bmp(indices: Array, bits: int, greys: Array, packed: bytes = b"") -> bytes:
    """A BMP of 1, 4 or 8 bits with a palette of these greys; packed are its rows, by RLE."""
    height, width = indices.shape
    bools = np.unpackbits(indices[::-1, :, None], axis=2)[..., -bits:].reshape(height, -1)
    rows = np.packbits(bools, axis=1)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    content, palette = packed or rows.tobytes(), b"".join(bytes([*[g] * 3, 0]) for g in greys)
    start, method = 54 + len(palette), {8: 1, 4: 2}[bits] if packed else 0
    file = struct.pack("<2sIHHI", b"BM", start + len(content), 0, 0, start)
    sizes = struct.pack("<IiiHHII", 40, width, height, 1, bits, method, len(content))
    return file + sizes + struct.pack("<iiII", 0, 0, len(greys), 0) + palette + content


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("greys", [(0, 255), (255, 0), (9, 200), range(2), range(16), range(256)])
def test_the_pixels_of_a_bmp_are_as_deep_as_its_header_says(
    read: Any, bits: int, greys: Any
) -> None:
    greys = np.array(greys[: 2**bits], np.uint8)
    indices = (GREY[:, :9] % np.uint16(len(greys))).astype(np.uint8)
    pixels = read(bmp(indices, bits, greys), channels=1)
    np.testing.assert_array_equal(pixels[0], greys[indices])


@pytest.mark.parametrize(("bits", "run"), [(4, b"\x04\x01\x02\x11"), (8, b"\3\0\1\1\2\1")])
def test_a_packed_bmp_of_black_and_white_is_read(read: Any, bits: int, run: bytes) -> None:
    data = bmp(np.zeros((2, 6), np.uint8), bits, np.array([0, 255]), (run + b"\0\0") * 2 + b"\0\1")
    row = [0, 255, 0, 255, 255, 255] if bits == 4 else [0, 0, 0, 255, 255, 255]
    np.testing.assert_array_equal(read(data, channels=1)[0], [row, row])


def test_a_pixel_beyond_the_palette_of_black_and_white_is_refused(read: Any) -> None:
    with pytest.raises(UnreadableImageError, match="of no colour in the palette"):
        read(bmp(np.full((8, 10), 2, np.uint8), 8, np.array([0, 255])))


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_transparent_palette_entries_become_white(read: Any, form: str) -> None:
    image = Image.fromarray(GREY % 4)
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    pixels = read(saved(image, form, transparency=2))
    table = np.array([[10, 20, 30], [40, 50, 60], [255, 255, 255], [100, 110, 120]])
    np.testing.assert_array_equal(pixels, planes(table[GREY % 4]))


def test_partly_transparent_palette_entries_lie_on_white(read: Any) -> None:
    image = Image.fromarray(GREY % 2)
    image.putpalette([0, 100, 200, 9, 9, 9])
    pixels = read(saved(image, "PNG", transparency=bytes([51, 255])))
    table = np.array([[204, 224, 244], [9, 9, 9]])  # 51 is a fifth
    np.testing.assert_array_equal(pixels, planes(table[GREY % 2]))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_alpha_lies_on_white(read: Any, form: str) -> None:
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    expected = np.round(on_white(RGBA[..., :3], RGBA[..., 3], 255) * 255)
    np.testing.assert_array_equal(read(saved(RGBA, form, **options)), planes(expected))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_alpha_of_grey_lies_on_white(read: Any, form: str) -> None:
    image = Image.merge("LA", [Image.fromarray(RGBA[..., 0]), Image.fromarray(RGBA[..., 3])])
    expected = np.round(on_white(RGBA[..., 0], RGBA[..., 3], 255) * 255)
    np.testing.assert_array_equal(read(saved(image, form)), planes(expected))


@pytest.mark.parametrize(
    ("mode", "ink", "expected"),
    [("1", 1, [255] * 3), ("L", 30, [30] * 3), ("RGB", (1, 2, 3), [1, 2, 3])],
)
def test_the_transparent_colour_of_a_png_becomes_white(
    read: Any, mode: str, ink: Any, expected: list[int]
) -> None:
    image = Image.new(mode, (8, 8), 0)
    image.paste(ink, (0, 0, 8, 4))
    pixels = read(saved(image, "PNG", transparency=(0, 0, 0) if mode == "RGB" else 0))
    assert (pixels[:, 4:] == 255).all()
    np.testing.assert_array_equal(pixels[:, 0, 0], expected)


def test_premultiplied_alpha_lies_on_white(read: Any) -> None:
    colour = (RGBA[..., :3] * (RGBA[..., 3:] / 255)).astype(np.uint8)
    image = np.dstack([colour, RGBA[..., 3]])
    pixels = read(tiff(image, photometric="rgb", extrasamples=["assocalpha"]))
    np.testing.assert_array_equal(pixels, planes(colour + (255 - RGBA[..., 3:])))


def test_an_unspecified_fourth_channel_of_an_rgb_tiff_is_ignored(read: Any) -> None:
    pixels = read(tiff(RGBA, photometric="rgb", extrasamples=["unspecified"]))
    np.testing.assert_array_equal(pixels, planes(RGBA[..., :3]))


def test_cmyk_jpeg_becomes_rgb(read: Any) -> None:
    pixels = read(saved(Image.new("CMYK", (16, 16), (255, 0, 0, 51)), "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - np.reshape([0, 204, 204], (3, 1, 1))).max() <= 3


def test_cmyk_tiff_becomes_rgb(read: Any) -> None:
    pixels = read(saved(Image.frombytes("CMYK", (10, 8), RGBA.tobytes()), "TIFF"))
    expected = np.round((255 - RGBA[..., :3].astype(int)) * (255 - RGBA[..., 3:].astype(int)) / 255)
    np.testing.assert_array_equal(pixels, planes(expected))


def test_ycbcr_tiff_becomes_rgb(read: Any) -> None:
    image = Image.fromarray(COLOUR).convert("YCbCr")
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read(saved(image, "TIFF")), planes(expected))


def test_lab_tiff_becomes_rgb(read: Any) -> None:
    # L* = 50 is the middle grey 119 of sRGB; CIE 15, IEC 61966-2-1.
    pixels = read(saved(Image.new("LAB", (8, 8), (128, 128, 128)), "TIFF"))
    assert np.abs(pixels.astype(int) - 119).max() <= 2


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits", "raw"])
def test_compressed_8_bit_tiff_is_read_as_it_is(read: Any, compression: str) -> None:
    pixels = read(saved(COLOUR, "TIFF", compression=compression))
    np.testing.assert_array_equal(pixels, planes(COLOUR))


def test_jpeg_inside_tiff_becomes_rgb(read: Any) -> None:
    image = Image.new("RGB", (32, 32), (180, 60, 140))
    pixels = read(saved(image, "TIFF", compression="jpeg", quality=95))
    assert np.abs(pixels.astype(int) - np.reshape([180, 60, 140], (3, 1, 1))).max() <= 3


def test_min_is_white_is_inverted_in_8_bits(read: Any) -> None:
    pixels = read(tiff(GREY, photometric="miniswhite"))
    np.testing.assert_array_equal(pixels, planes(255 - GREY))


def test_min_is_white_is_inverted_in_1_bit(read: Any) -> None:
    pixels = read(tiff(GREY > 127, photometric="miniswhite"))
    np.testing.assert_array_equal(pixels, planes((GREY <= 127) * np.uint8(255)))


# Reading: more than 8 bits


def test_a_16_bit_ramp_keeps_its_65536_levels(read: Any) -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = read(imagecodecs.png_encode(ramp))
    np.testing.assert_array_equal(pixels[0], ramp.astype(np.float32) / np.float32(65535))
    assert pixels.mean(dtype=np.float64) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("encode", [imagecodecs.png_encode, tiff], ids=["png", "tiff"])
def test_16_bit_grey_is_exact(read: Any, encode: Any) -> None:
    pixels = read(encode(GREY_16))
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, planes(GREY_16).astype(np.float32) / np.float32(65535))


def test_16_bit_grey_written_by_pillow_is_exact(read: Any) -> None:
    pixels = read(saved(GREY_16, "PNG"))
    np.testing.assert_array_equal(pixels, planes(GREY_16).astype(np.float32) / np.float32(65535))


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_16_bit_rgb_is_exact(read: Any, form: str) -> None:
    encoded = {"png": imagecodecs.png_encode(COLOUR_16), "tiff": tiff(COLOUR_16, photometric="rgb")}
    pixels = read(encoded[form])
    np.testing.assert_array_equal(pixels, planes(COLOUR_16).astype(np.float32) / np.float32(65535))


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_16_bit_alpha_lies_on_white_at_full_precision(read: Any, form: str) -> None:
    encoded = {"png": imagecodecs.png_encode(RGBA_16), "tiff": tiff(RGBA_16, photometric="rgb")}
    expected = on_white(RGBA_16[..., :3], RGBA_16[..., 3], 65535)
    np.testing.assert_allclose(read(encoded[form]), planes(expected), atol=2e-7)


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_16_bit_alpha_of_grey_lies_on_white(read: Any, form: str) -> None:
    image = np.ascontiguousarray(RGBA_16[..., 2:])
    options = {"planarconfig": "contig", "extrasamples": ["unassalpha"]}
    encoded = {"png": imagecodecs.png_encode(image), "tiff": tiff(image, **options)}
    expected = on_white(image[..., 0], image[..., 1], 65535)
    np.testing.assert_allclose(read(encoded[form]), planes(expected), atol=2e-7)


def test_16_bit_premultiplied_alpha_lies_on_white(read: Any) -> None:
    alpha = RGBA_16[..., 3:]
    colour = (RGBA_16[..., :3] * (alpha / 65535)).astype(np.uint16)
    image = np.dstack([colour, alpha])
    pixels = read(tiff(image, photometric="rgb", extrasamples=["assocalpha"]))
    expected = (colour + (65535 - alpha.astype(int))) / 65535
    np.testing.assert_allclose(pixels, planes(expected), atol=2e-7)


def test_the_transparent_colour_of_a_16_bit_png_becomes_white(read: Any) -> None:
    payload = struct.pack(">HHH", *(int(value) for value in COLOUR_16[2, 3]))
    pixels = read(with_chunk(imagecodecs.png_encode(COLOUR_16), b"tRNS", payload))
    assert (pixels[:, 2, 3] == 1).all()
    np.testing.assert_allclose(pixels[:, 0, 0], COLOUR_16[0, 0] / 65535, rtol=1e-6)


def test_interlaced_16_bit_png_is_read(read: Any) -> None:
    # Adam7 of a 1 x 1 image is one pass of one pixel.
    pixel = zlib.compress(b"\0" + struct.pack(">H", 4660))
    png = b"\x89PNG\r\n\x1a\n"
    for kind, payload in (
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 0, 0, 0, 1)),
        (b"IDAT", pixel),
        (b"IEND", b""),
    ):
        checksum = struct.pack(">I", zlib.crc32(kind + payload))
        png += struct.pack(">I", len(payload)) + kind + payload + checksum
    assert read(png)[0, 0, 0] == np.float32(4660 / 65535)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits", "zstd", None])
@pytest.mark.parametrize("predictor", [False, True])
def test_compressed_16_bit_tiff_is_exact(
    read: Any, compression: str | None, predictor: bool
) -> None:
    options = {"compression": compression, "predictor": predictor and compression is not None}
    pixels = read(tiff(COLOUR_16, photometric="rgb", rowsperstrip=3, **options))
    np.testing.assert_array_equal(pixels, planes(COLOUR_16).astype(np.float32) / np.float32(65535))


@pytest.mark.parametrize("compression", [None, "lzw"])
@pytest.mark.parametrize("image", [COLOUR, COLOUR_16], ids=["8", "16"])
def test_planar_tiff_is_read(read: Any, image: Array, compression: str | None) -> None:
    first = np.ascontiguousarray(np.moveaxis(image, -1, 0))
    options = {"photometric": "rgb", "planarconfig": "separate", "compression": compression}
    pixels = read(tiff(first, **options))
    assert pixels.dtype == (np.uint8 if image is COLOUR else np.float32)
    peak = np.float32(65535)
    np.testing.assert_array_equal(pixels, first if image is COLOUR else first / peak)


def test_tiled_tiff_is_read(read: Any) -> None:
    image = RNG.integers(0, 65536, (40, 50), dtype=np.uint16)
    pixels = read(tiff(image, tile=(16, 16)))
    np.testing.assert_array_equal(pixels[0], image.astype(np.float32) / np.float32(65535))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_either_byte_order_and_big_tiff_are_read(read: Any, byteorder: str, bigtiff: bool) -> None:
    pixels = read(tiff(GREY_16, byteorder=byteorder, bigtiff=bigtiff))
    np.testing.assert_array_equal(pixels[0], GREY_16.astype(np.float32) / np.float32(65535))


def test_packed_12_bits_are_divided_by_4095(read: Any) -> None:
    image = GREY_16 >> 4
    pixels = read(tiff(image, bitspersample=12))
    np.testing.assert_array_equal(pixels[0], image.astype(np.float32) / np.float32(4095))


def test_min_is_white_is_inverted_in_16_bits(read: Any) -> None:
    pixels = read(tiff(GREY_16, photometric="miniswhite"))
    np.testing.assert_allclose(pixels[0], (65535 - GREY_16) / 65535, atol=1e-7)


def test_min_is_white_is_inverted_in_floats(read: Any) -> None:
    image = RNG.random((8, 10), dtype=np.float32)
    np.testing.assert_array_equal(read(tiff(image, photometric="miniswhite"))[0], 1 - image)


def test_16_bit_cmyk_becomes_rgb(read: Any) -> None:
    pixels = read(tiff(RGBA_16, photometric="separated"))
    unit = RGBA_16 / 65535
    expected = (1 - unit[..., :3]) * (1 - unit[..., 3:])
    np.testing.assert_allclose(pixels, planes(expected), atol=2e-7)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(8, 10), (8, 10, 3)], ids=["grey", "rgb"])
def test_floats_in_0_to_1_stay_as_they_are(read: Any, kind: Any, shape: tuple[int, ...]) -> None:
    image = RNG.random(shape).astype(kind)
    image.flat[:2] = (0, 1)
    pixels = read(tiff(image, photometric="rgb" if len(shape) == 3 else "minisblack"))
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, planes(image).astype(np.float32))


@pytest.mark.parametrize(
    "image",
    [
        np.linspace(0, 1.5, 80, dtype=np.float32).reshape(8, 10),
        np.linspace(-0.1, 1, 80, dtype=np.float64).reshape(8, 10),
        np.arange(80, dtype=np.int8).reshape(8, 10),
        np.arange(80, dtype=np.int16).reshape(8, 10),
        np.arange(80, dtype=np.uint32).reshape(8, 10),
        np.arange(80, dtype=np.int32).reshape(8, 10),
    ],
    ids=lambda image: str(image.dtype),
)
def test_ambiguous_intensities_are_refused_and_an_intensity_range_settles_them(
    read: Any, image: Array
) -> None:
    with pytest.raises(UnreadableImageError, match=r"ambiguous intensities.*set intensity_range"):
        read(tiff(image))
    low, high = float(image.min()), float(image.max())
    pixels = read(tiff(image), intensity_range=(low, high))
    assert pixels.dtype == np.float32
    expected = (image.astype(np.float64) - low) / (high - low)
    np.testing.assert_allclose(pixels[0], expected, atol=2e-7)


def test_signed_16_bit_written_by_pillow_is_ambiguous(read: Any) -> None:
    with pytest.raises(UnreadableImageError, match="ambiguous intensities, int32 0 to 65535"):
        read(saved(Image.fromarray(np.array([[0, 65535]], dtype=np.int32)), "TIFF"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("window", [None, (0.0, 1.0)])
def test_nan_and_infinity_are_refused(read: Any, bad: float, window: Any) -> None:
    image = np.zeros((8, 10), dtype=np.float32)
    image[3, 4] = bad
    with pytest.raises(UnreadableImageError, match="NaN or infinite"):
        read(tiff(image), intensity_range=window)


@pytest.mark.parametrize("encode", [imagecodecs.png_encode, tiff], ids=["png", "tiff"])
def test_an_intensity_range_maps_and_clips_16_bits(read: Any, encode: Any) -> None:
    image = np.array([[0, 1000, 2548, 4095, 65535]], dtype=np.uint16)
    pixels = read(encode(image), intensity_range=(1000, 4096))
    expected = np.clip((image.astype(np.float64) - 1000) / 3096, 0, 1)
    np.testing.assert_allclose(pixels[0], expected, atol=1e-7)


def test_an_intensity_range_leaves_8_bits_alone(read: Any) -> None:
    pixels = read(saved(COLOUR, "PNG"), intensity_range=(0, 4095))
    np.testing.assert_array_equal(pixels, planes(COLOUR))


def test_an_intensity_range_leaves_alpha_alone(read: Any) -> None:
    image = np.array([[[2000, 2000, 2000, 32768]]], dtype=np.uint16)
    pixels = read(tiff(image, photometric="rgb"), intensity_range=(0, 4000))
    np.testing.assert_allclose(pixels, 0.5 * 32768 / 65535 + 1 - 32768 / 65535, rtol=1e-6)


@pytest.mark.parametrize("window", [(1, 1), (2, 1), (0, math.inf), (math.nan, 1)])
def test_a_wrong_intensity_range_is_refused(tmp_path: Path, window: Any) -> None:
    with pytest.raises(ValueError, match="intensity_range must be finite and rising, got"):
        read_image(tmp_path / "a.png", intensity_range=window)


# Reading: channels, orientation, frames, content


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_a_wrong_number_of_channels_is_refused(tmp_path: Path, channels: int) -> None:
    with pytest.raises(ValueError, match=f"channels must be 1 or 3, got {channels}"):
        read_image(tmp_path / "a.png", channels=channels)


def test_one_channel_is_the_luma_in_8_bits(read: Any) -> None:
    pixels = read(saved(COLOUR, "PNG"), channels=1)
    assert (pixels.shape, pixels.dtype) == ((1, 8, 10), np.uint8)
    assert np.abs(pixels[0] - COLOUR @ LUMA).max() <= 0.51


def test_one_channel_is_the_luma_in_16_bits(read: Any) -> None:
    pixels = read(imagecodecs.png_encode(COLOUR_16), channels=1)
    assert (pixels.shape, pixels.dtype) == ((1, 8, 10), np.float32)
    np.testing.assert_allclose(pixels[0], COLOUR_16 / 65535 @ LUMA, atol=2e-7)


def test_white_stays_1_as_luma(read: Any) -> None:
    white = np.full((8, 10, 3), 65535, dtype=np.uint16)
    np.testing.assert_allclose(read(imagecodecs.png_encode(white), channels=1), 1, atol=1e-7)
    assert read(imagecodecs.png_encode(white), channels=1).max() <= 1


@pytest.mark.parametrize("data", [saved(GREY, "PNG"), tiff(GREY)], ids=["png", "tiff"])
def test_grey_as_one_channel_is_exact(read: Any, data: bytes) -> None:
    np.testing.assert_array_equal(read(data, channels=1), GREY[None])


TURNED = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["png", "png16", "webp", "tiff", "tiff16"])
def test_the_orientation_is_applied(read: Any, form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    tag = [(274, "H", 1, orientation, False)]
    rgb: dict[str, Any] = {"photometric": "rgb", "extratags": tag}
    encoded = {
        "png": lambda: saved(COLOUR, "PNG", exif=exif),
        "png16": lambda: with_chunk(
            imagecodecs.png_encode(COLOUR_16), b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")
        ),
        "webp": lambda: saved(COLOUR, "WEBP", lossless=True, exif=exif),
        "tiff": lambda: tiff(COLOUR, **rgb),
        "tiff16": lambda: tiff(COLOUR_16, **rgb),
    }
    image = COLOUR_16 / np.float32(65535) if form.endswith("16") else COLOUR
    pixels = read(encoded[form]())
    np.testing.assert_array_equal(pixels, planes(TURNED[orientation](image)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_jpeg_is_applied(read: Any, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    blocks = np.kron([[0, 80, 160], [40, 120, 240]], np.ones((16, 16))).astype(np.uint8)
    pixels = read(saved(blocks, "JPEG", exif=exif, quality=100))
    expected = TURNED[orientation](blocks).astype(int)
    assert np.abs(pixels[0] - expected).max() <= 2


def test_an_unknown_orientation_changes_nothing(read: Any) -> None:
    exif = Image.Exif()
    exif[274] = 9
    np.testing.assert_array_equal(read(saved(COLOUR, "PNG", exif=exif)), planes(COLOUR))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames_is_read(read: Any, form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if form == "WEBP" else {}
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(read(data)[:, 0, 0], [255, 0, 0])


def test_the_first_page_of_a_16_bit_tiff_is_read(read: Any) -> None:
    pages = np.stack([GREY_16, GREY_16 // 2])
    pixels = read(tiff(pages))
    np.testing.assert_array_equal(pixels[0], GREY_16.astype(np.float32) / np.float32(65535))


def test_a_jpeg_of_several_pictures_is_read(read: Any) -> None:
    frames = [Image.new("L", (8, 8), level) for level in (50, 100)]
    data = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert (read(data) == 50).all()


@pytest.mark.parametrize("name", ["image.jpg", "image.tif", "image.gif"])
def test_the_content_decides_and_not_the_extension(read: Any, name: str) -> None:
    np.testing.assert_array_equal(read(saved(COLOUR, "PNG"), name), planes(COLOUR))


@pytest.mark.parametrize("form", ["EPS", "PPM", "ICO", "PDF"])
def test_other_formats_are_never_opened(read: Any, form: str) -> None:
    with pytest.raises(UnreadableImageError, match="damaged, or none of PNG, JPEG"):
        read(saved(COLOUR, form))


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_channels_of_unknown_meaning_are_refused(read: Any, samples: int) -> None:
    image = np.zeros((8, 10, samples), dtype=np.uint16)
    with pytest.raises(UnreadableImageError, match=f"{samples} channels; give grey or RGB"):
        read(tiff(image, planarconfig="contig"))


def test_volumes_are_refused(read: Any) -> None:
    image = np.zeros((16, 16, 16), dtype=np.uint8)
    with pytest.raises(UnreadableImageError, match="not supported"):
        read(tiff(image, volumetric=True, tile=(16, 16, 16)))


def test_complex_samples_are_refused(read: Any) -> None:
    with pytest.raises(UnreadableImageError, match="complex64 are not supported"):
        read(tiff(np.zeros((8, 8), dtype=np.complex64)))


@pytest.mark.parametrize(
    "data", [saved(COLOUR, "PNG"), tiff(GREY), tiff(GREY_16), saved(GREY, "BMP")]
)
def test_the_array_is_writable_contiguous_and_its_own(read: Any, data: bytes) -> None:
    pixels = read(data)
    assert pixels.flags.owndata
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


# Damage

WHOLE = {
    "png": saved(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8), "PNG"),
    "png16": imagecodecs.png_encode(RNG.integers(0, 65536, (32, 32, 3), dtype=np.uint16)),
    "jpeg": saved(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8), "JPEG"),
    "gif": saved(RNG.integers(0, 256, (32, 32), dtype=np.uint8), "GIF"),
    "bmp": saved(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8), "BMP"),
    "webp": saved(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8), "WEBP"),
    "tiff": saved(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8), "TIFF"),
    "tiff-lzw": tiff(RNG.integers(0, 65536, (32, 32), dtype=np.uint16), compression="lzw"),
    "tiff-zlib": tiff(RNG.integers(0, 65536, (32, 32), dtype=np.uint16), compression="zlib"),
    "tiff-jpeg": saved(Image.new("RGB", (32, 32), (9, 99, 199)), "TIFF", compression="jpeg"),
    "tiff-float": tiff(RNG.random((32, 32)), rowsperstrip=4),
}


@pytest.mark.parametrize("form", WHOLE)
def test_the_whole_file_is_readable(read: Any, form: str) -> None:
    assert read(WHOLE[form]).shape == (3, 32, 32)


@pytest.mark.parametrize("form", WHOLE)
@pytest.mark.parametrize("part", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97])
def test_a_file_cut_short_is_unreadable(read: Any, form: str, part: float) -> None:
    data = WHOLE[form]
    with pytest.raises(UnreadableImageError):
        read(data[: max(1, int(len(data) * part))])


@pytest.mark.parametrize("form", WHOLE)
def test_flipped_bytes_give_an_array_or_the_one_error(
    read: Any, capfd: pytest.CaptureFixture[str], form: str
) -> None:
    draw = np.random.default_rng(11)
    for _ in range(60):
        data = bytearray(WHOLE[form])
        for place in draw.integers(0, len(data), draw.integers(1, 12)):
            data[place] = draw.integers(256)
        for place in draw.integers(0, min(64, len(data)), draw.integers(0, 3)):
            data[place] = draw.integers(256)
        try:
            pixels = read(bytes(data))
        except UnreadableImageError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert pixels.shape[0] == 3
            assert pixels.dtype in (np.uint8, np.float32)
            assert 0 <= pixels.min() <= pixels.max() <= (255 if pixels.dtype == np.uint8 else 1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("place", range(3, 200, 7))
def test_a_png_whose_pixels_were_changed_is_unreadable(read: Any, place: int) -> None:
    """Pillow's decoder stops at the last row, before the checksums that follow it."""
    data = bytearray(saved(COLOUR, "PNG", compress_level=0))
    data[data.index(b"IDAT") + 12 + place] ^= 1
    with pytest.raises(UnreadableImageError, match="SyntaxError"):
        read(bytes(data))


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(UnreadableImageError) as caught:
        read_image(tmp_path / "a.png")
    assert str(caught.value) == f"{tmp_path / 'a.png'}: empty file"


@pytest.mark.parametrize(
    ("bits", "row", "transparent", "expected"),
    [
        (1, 0b0101_0000, 1, [0, 255, 0, 255]),
        (2, 0b0001_0111, 1, [0, 255, 255, 255]),
        (4, 0x055F, 5, [0, 255, 255, 255]),
    ],
)
def test_a_transparent_grey_level_of_few_bits_becomes_white(
    read: Any, bits: int, row: int, transparent: int, expected: list[int]
) -> None:
    def chunk(kind: bytes, payload: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + payload))
        return struct.pack(">I", len(payload)) + kind + payload + checksum

    header = struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" + row.to_bytes(max(1, bits * 4 // 8), "big"))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    content += chunk(b"tRNS", struct.pack(">H", transparent))
    content += chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    assert read(content, channels=1).ravel().tolist() == expected


@pytest.mark.parametrize("scale", [1, 257])
def test_a_palette_of_8_bits_or_of_16_is_understood(read: Any, scale: int) -> None:
    colours = np.arange(256, dtype=np.uint16) * scale
    image = np.arange(80, dtype=np.uint8).reshape(8, 10)
    content = tiff(image, photometric="palette", colormap=np.stack([colours] * 3))
    np.testing.assert_array_equal(read(content, "image.tif")[0], image)


@pytest.mark.parametrize(("peak", "window"), [(255, (0, 255)), (1, (0, 1)), (1, (0, 255))])
def test_floats_with_alpha_are_read_whether_255_or_1_is_opaque(
    read: Any, peak: float, window: Any
) -> None:
    image = np.full((8, 10, 4), 0.4 * window[1], np.float32)
    image[..., 3] = peak
    image[0, 0, 3] = 0
    content = tiff(image, photometric="rgb", extrasamples=["unassalpha"])
    pixels = read(content, "image.tif", intensity_range=window)
    assert pixels[:, 0, 0].tolist() == [1, 1, 1]
    np.testing.assert_allclose(pixels[:, 1:], 0.4, atol=1e-6)


def test_a_signal_while_decoding_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: Any, **__: Any) -> None:
        raise InterruptedRunError(15)

    (tmp_path / "a.png").write_bytes(saved(GREY, "PNG"))
    monkeypatch.setattr(Image, "open", end)
    with pytest.raises(InterruptedRunError):
        read_image(tmp_path / "a.png")


def test_a_folder_and_a_missing_file_are_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="a folder; if it holds images"):
        read_image(tmp_path)
    with pytest.raises(UnreadableImageError, match="no such file"):
        read_image(tmp_path / "gone.png")


def test_the_message_is_one_printable_line(tmp_path: Path) -> None:
    path = tmp_path / "a\n\udcff\x1b.png"
    path.write_bytes(b"not an image")
    with pytest.raises(UnreadableImageError) as caught:
        read_image(path)
    assert str(caught.value).startswith(rf"{tmp_path}/a\n\udcff\x1b.png: damaged, or none of PNG")
    assert str(caught.value).isprintable()


def test_any_exception_of_a_decoder_becomes_the_one_error(
    read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(datasets, "_eight_bit", fail)
    with pytest.raises(UnreadableImageError, match=r"cannot be decoded, MemoryError$"):
        read(saved(GREY, "PNG"))


def test_a_missing_package_is_not_mistaken_for_a_bad_image(
    read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ModuleNotFoundError, match="tifffile"):
        read(tiff(GREY))


@pytest.mark.parametrize("width", [2**15, 2**31 - 1])
def test_an_absurd_size_in_a_tiff_is_refused_before_memory_is_taken(read: Any, width: int) -> None:
    data = bytearray(tiff(GREY_16))
    for tag in (256, 257):
        entry = data.index(struct.pack("<HHI", tag, 4, 1))
        data[entry + 8 : entry + 12] = struct.pack("<I", width)
    with pytest.raises(UnreadableImageError, match=f"{width} x {width} pixels, at most"):
        read(bytes(data))


def test_a_tiff_that_does_not_say_whether_0_is_white_is_refused(read: Any) -> None:
    data = bytearray(tiff(GREY))
    entry = data.index(struct.pack("<HHI", 262, 3, 1))
    struct.pack_into("<H", data, entry, 263)  # Threshholding, which changes nothing
    with pytest.raises(UnreadableImageError, match="not say whether 0 is black or white"):
        read(bytes(data))


def ycbcr_tiff(tag: int, values: tuple[int, ...]) -> bytes:
    """YCbCr with rational numbers in one of the tags that say of which kind it is."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info.tagtype[tag] = TiffTags.RATIONAL
    info[tag] = tuple(Fraction(value, 1000) for value in values)
    return saved(Image.fromarray(COLOUR).convert("YCbCr"), "TIFF", tiffinfo=info)


@pytest.mark.parametrize(
    ("tag", "values", "reason"),
    [
        (529, (299, 587, 114), ""),
        (529, (213, 715, 72), "YCbCrCoefficients is 0.213 0.715 0.072; convert it to RGB"),
        (532, (0, 255_000, 128_000, 255_000, 128_000, 255_000), ""),
        (532, (16_000, 235_000, 128_000, 240_000, 128_000, 240_000), "BlackWhite is 16 235 128"),
    ],
)
def test_ycbcr_of_another_kind_is_refused(
    read: Any, tag: int, values: tuple[int, ...], reason: str
) -> None:
    data = ycbcr_tiff(tag, values)
    if not reason:
        expected = np.asarray(Image.fromarray(COLOUR).convert("YCbCr").convert("RGB"))
        np.testing.assert_array_equal(read(data), planes(expected))
        return
    with pytest.raises(UnreadableImageError, match=reason):
        read(data)


def test_a_size_of_many_numbers_in_a_tiff_is_refused(read: Any) -> None:
    data = bytearray(tiff(GREY_16, compression="lzw"))
    entry = data.index(struct.pack("<HHI", 256, 4, 1))
    data[entry + 4 : entry + 12] = struct.pack("<II", 20, 8)  # 20 widths, from byte 8 on
    with pytest.raises(UnreadableImageError, match="a size in the header is no number"):
        read(bytes(data))


def place_of(data: bytes, tag: int) -> int:
    """Where in a TIFF the value of a tag of its first page lies."""
    with tifffile.TiffFile(BytesIO(data)) as file:
        return int(file.pages.first.tags[tag].valueoffset)


def jpeg_tiff(image: Array, compression: int = 7, padding: bytes = b"", **options: Any) -> bytes:
    """A TIFF that ends with its last JPEG."""
    kind = "rgb" if image.ndim == 3 else "minisblack"
    data = bytearray(tiff(image, compression="jpeg", photometric=kind, **options))
    struct.pack_into("<H", data, place_of(data, 259), compression)
    with tifffile.TiffFile(BytesIO(data)) as file:
        count = file.pages.first.databytecounts[-1]
    if padding:
        struct.pack_into("<I", data, place_of(data, 279), count + len(padding))
    return bytes(data) + padding


@pytest.mark.parametrize("padding", [b"", b"\0", b"\0" * 5])
@pytest.mark.parametrize("compression", [6, 7, 33007, 34892])
def test_a_jpeg_inside_a_tiff_may_be_padded(read: Any, compression: int, padding: bytes) -> None:
    pixels = read(jpeg_tiff(np.full((32, 32), 77, np.uint8), compression, padding))
    np.testing.assert_array_equal(pixels, np.full((3, 32, 32), 77))


@pytest.mark.parametrize("compression", [6, 7, 33007, 34892])
@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}, {"rowsperstrip": 16}], ids=str)
def test_a_jpeg_inside_a_tiff_without_its_end_is_refused(
    read: Any, compression: int, options: dict[str, Any]
) -> None:
    data = jpeg_tiff(GREY.repeat(4, 0).repeat(4, 1), compression, **options)
    assert read(data).shape == (3, 32, 40)
    for cut in (2, 30):
        with pytest.raises(UnreadableImageError, match="cut short, a JPEG within it has no end"):
            read(data[:-cut] + bytes(cut))


RAMP = np.add.outer(np.arange(50), np.arange(70)).astype(np.uint8)
PICTURES = ["jpeg", "jpeg2000", "webp", "png", "lerc", "jpegxl", "jpegxr"]


@pytest.mark.parametrize(
    ("compression", "kind"),
    [pair for pair in product(PICTURES, ["minisblack", "rgb"]) if pair != ("webp", "minisblack")],
)
@pytest.mark.parametrize("options", [{}, {"rowsperstrip": 16}, {"tile": (32, 32)}], ids=str)
def test_strips_and_tiles_that_are_pictures_are_read(
    read: Any, compression: str, kind: str, options: dict[str, Any]
) -> None:
    image = np.dstack([RAMP] * 3) if kind == "rgb" else RAMP
    pixels = read(tiff(image, photometric=kind, compression=compression, **options))
    assert np.abs(pixels - planes(image).astype(int)).max() <= 4


@pytest.mark.parametrize("compression", sorted({*PICTURES} - {"webp"}))
def test_planes_that_are_pictures_are_read(read: Any, compression: str) -> None:
    image, options = np.stack([RAMP] * 3), {"photometric": "rgb", "planarconfig": "separate"}
    pixels = read(tiff(image, compression=compression, **options))
    assert np.abs(pixels - image.astype(int)).max() <= 4


def encoded(compression: str, image: Array) -> bytes:
    codec = {"jpeg2000": "jpeg2k"}.get(compression, compression)
    return bytes(getattr(imagecodecs, f"{codec}_encode")(image))


@pytest.mark.parametrize("rows", [18, 24, 32])
def test_the_last_strip_may_be_as_high_as_the_others(read: Any, rows: int) -> None:
    whole = np.pad(RAMP, ((0, 14), (0, 0)))
    coded = [encoded("png", part) for part in (whole[:32], whole[32 : 32 + rows])]
    options = {"shape": RAMP.shape, "dtype": np.uint8, "rowsperstrip": 32, "compression": "png"}
    np.testing.assert_array_equal(read(tiff(iter(coded), **options)), planes(RAMP))


def test_tiles_of_the_edge_may_end_with_the_image(read: Any) -> None:
    whole = np.pad(RAMP, ((0, 14), (0, 26)), mode="edge")  # (64, 96)
    parts = [whole[y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32, 64)]
    parts[2], parts[5] = parts[2][:, :6], parts[5][:18, :6]
    coded = [encoded("png", np.ascontiguousarray(part)) for part in parts]
    options = {"shape": RAMP.shape, "dtype": np.uint8, "tile": (32, 32), "compression": "png"}
    np.testing.assert_array_equal(read(tiff(iter(coded), **options)), planes(RAMP))


@pytest.mark.parametrize("compression", PICTURES)
@pytest.mark.parametrize("shape", [(25, 140), (35, 100), (51, 70), (100, 100)], ids=str)
@pytest.mark.parametrize("layout", ["strip", "tile"])
def test_a_picture_inside_a_tiff_has_the_size_of_its_place(
    read: Any, compression: str, shape: tuple[int, int], layout: str
) -> None:
    coded = encoded(compression, np.zeros((*shape, 3), np.uint8))
    page = (50, 70, 3) if layout == "strip" else (64, 64, 3)
    options = {"rowsperstrip": 50} if layout == "strip" else {"tile": (64, 64)}
    options |= {"shape": page, "dtype": np.uint8, "photometric": "rgb", "compression": compression}
    with pytest.raises(UnreadableImageError, match="does not fit its place in the page"):
        read(tiff(iter([coded]), **options))


@pytest.mark.parametrize("compression", PICTURES)
def test_a_picture_inside_a_tiff_has_the_channels_of_the_page(read: Any, compression: str) -> None:
    coded = encoded(compression, np.zeros((16, 48, 3), np.uint8))
    options = {"shape": (16, 48), "dtype": np.uint8, "rowsperstrip": 16}
    with pytest.raises(UnreadableImageError, match="a part of 3 channels in a page of 1"):
        read(tiff(iter([coded]), compression=compression, **options))


@pytest.mark.parametrize("options", [{"transparency": 7}, {}], ids=["transparency", "palette"])
def test_a_png_inside_a_tiff_has_no_colours_of_its_own(read: Any, options: dict[str, int]) -> None:
    image = Image.fromarray(RAMP)
    if not options:
        image.putpalette([9] * 768)
    coded = saved(image, "PNG", **options)
    page = {"shape": RAMP.shape, "dtype": np.uint8, "rowsperstrip": 50, "compression": "png"}
    with pytest.raises(UnreadableImageError, match="a palette or transparency of its own"):
        read(tiff(iter([coded]), **page))


def test_a_jpeg_inside_a_tiff_cannot_claim_to_be_larger_than_the_tiff(read: Any) -> None:
    data = WHOLE["tiff-jpeg"]
    start = data.index(b"\xff\xc0") + 5  # the height and width of the frame
    with pytest.raises(UnreadableImageError, match="a part of 64 x 64 pixels does not fit"):
        read(data[:start] + struct.pack(">HH", 64, 64) + data[start + 4 :])


def test_an_absurd_size_in_a_png_is_refused_before_memory_is_taken(read: Any) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 2**20, 2**20, 8, 2, 0, 0, 0)
    data = saved(COLOUR, "PNG")
    data = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    with pytest.raises(UnreadableImageError, match="DecompressionBombError"):
        read(data)


@pytest.mark.parametrize("magic", [b"\x89PNG\r\n\x1a\n", b"BM", bytes(128) + b"DICM"])
def test_a_file_larger_than_any_image_is_refused_unread(tmp_path: Path, magic: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(magic)
    os.truncate(path, datasets.MAX_BYTES + 1)  # sparse: it takes no room
    with pytest.raises(UnreadableImageError, match="a file of 1789569701 bytes, at most"):
        read_image(path)


def test_a_large_file_that_is_no_image_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    os.truncate(tmp_path / "a.png", 2**26)
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableImageError, match="damaged, or none of PNG, JPEG"):
            read_image(tmp_path / "a.png")
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_a_section_of_92_megapixels_is_read_without_a_warning(read: Any) -> None:
    with_palette = Image.new("1", (9600, 9600), 1)
    assert read(saved(with_palette, "PNG"), channels=1).shape == (1, 9600, 9600)


# Tiles


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(saved(COLOUR, "PNG"))
    (tmp_path / "b.tif").write_bytes(tiff(GREY_16))
    (tmp_path / "c.jpg").write_bytes(b"broken")
    return tmp_path


def test_the_dataset_serves_tiles_in_the_order_of_its_paths(folder: Path) -> None:
    dataset = ImageFolderDataset(folder, (8, 10))
    assert len(dataset) == 3
    assert relatives(dataset.paths) == ["a.png", "b.tif", "c.jpg"]
    assert dataset[0].dtype == torch.uint8
    np.testing.assert_array_equal(dataset[0].numpy(), planes(COLOUR))
    np.testing.assert_array_equal(dataset[1].numpy()[0], GREY_16 / np.float32(65535))


def test_an_unreadable_tile_raises(folder: Path) -> None:
    with pytest.raises(UnreadableImageError, match=r"c\.jpg: damaged"):
        ImageFolderDataset(folder)[2]


def test_given_paths_replace_the_search(folder: Path) -> None:
    paths = find_images(folder).select([1])
    dataset = ImageFolderDataset(folder, 16, channels=1, paths=paths)
    assert dataset.paths is paths
    assert dataset[0].shape == (1, 16, 16)


def test_the_intensity_range_reaches_the_reader(folder: Path) -> None:
    dataset = ImageFolderDataset(folder, (8, 10), intensity_range=(0, 100))
    np.testing.assert_array_equal(dataset[1].numpy()[0], np.clip(GREY_16 / 100, 0, 1))


@pytest.mark.parametrize("tile", [4, 16, (5, 31), (20, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resized_8_bits_equal_the_resized_floats_within_a_level(
    tmp_path: Path, tile: Any, channels: int
) -> None:
    image = np.random.default_rng(3).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(saved(image, "PNG"))
    resized = ImageFolderDataset(tmp_path, tile, channels=channels)[0]
    size = (tile, tile) if isinstance(tile, int) else tile
    assert (resized.dtype, resized.shape) == (torch.uint8, (channels, *size))
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(read_image(tmp_path / "a.png", channels=channels))[None].double(),
        size,
        mode="bilinear",
        antialias=True,
    )[0]
    assert (resized.double() - exact).abs().max() <= 1
    assert abs((resized.double() - exact).mean()) < 0.1


def test_resized_floats_stay_in_range(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(np.ones((33, 29), dtype=np.float32)))
    tile = ImageFolderDataset(tmp_path, (16, 37))[0]
    assert tile.dtype == torch.float32
    assert tile.max() <= 1
    torch.testing.assert_close(tile, torch.ones(3, 16, 37))


@pytest.mark.parametrize("tile", [(8, 10), 16])
@pytest.mark.parametrize("index", [0, 1])
def test_a_tile_is_contiguous_and_holds_nothing_else(folder: Path, tile: Any, index: int) -> None:
    image = ImageFolderDataset(folder, tile)[index]
    assert image.is_contiguous()
    assert image.untyped_storage().nbytes() == image.numel() * image.element_size()
    image += 0  # a read-only array would crash here


@pytest.mark.parametrize("tile", [0, -1, (8, 0), (8,), (8, 8, 8)])
def test_a_wrong_tile_size_is_refused(folder: Path, tile: Any) -> None:
    with pytest.raises(ValueError, match="tile_size must be"):
        ImageFolderDataset(folder, tile)


def test_a_pickled_dataset_serves_the_same_tiles(folder: Path) -> None:
    dataset = ImageFolderDataset(folder, 16, channels=1)
    copy = pickle.loads(pickle.dumps(dataset))
    assert list(copy.paths) == list(dataset.paths)
    assert torch.equal(copy[0], dataset[0])


def test_two_workers_serve_every_tile_once_and_in_order(tmp_path: Path) -> None:
    for index in range(6):
        image = Image.new("L", (8, 8), index * 10)
        (tmp_path / f"{index}.png").write_bytes(saved(image, "PNG"))
    loader = DataLoader(ImageFolderDataset(tmp_path, 8), batch_size=2, num_workers=2)
    batches = list(loader)
    assert [batch.shape for batch in batches] == [(2, 3, 8, 8)] * 3
    assert torch.cat(batches)[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]


def test_the_error_of_an_unreadable_image_survives_the_way_from_a_worker(folder: Path) -> None:
    with pytest.raises(UnreadableImageError) as caught:
        ImageFolderDataset(folder)[2]
    copy = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(copy, UnreadableImageError)
    assert str(copy) == str(caught.value)
