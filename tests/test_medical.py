"""Medical images in datasets.py: NIfTI and DICOM, each image's own range, constant images."""

from __future__ import annotations

import gzip
import math
import struct
import sys
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_voi_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

import datasets
from datasets import ImageFolderDataset, ImagePaths, UnreadableImageError, find_images, read_image
from recon.errors import UserError
from recon.pipeline import run_evaluation, run_training

Array = NDArray[Any]
RNG = np.random.default_rng(5)
GREY = RNG.integers(10, 200, (8, 10), dtype=np.uint8)
COLOUR = RNG.integers(10, 200, (8, 10, 3), dtype=np.uint8)
PLANE = RNG.random((8, 10)).astype(np.float32)
VOLUME = RNG.random((4, 5, 12)).astype(np.float32)
COUNTS = RNG.integers(0, 4096, (8, 10), dtype=np.uint16)


def nifti(
    path: Path,
    voxels: Array,
    *,
    scaling: tuple[float, float] = (1, 0),
    version: int = 1,
    order: str = "<",
) -> Path:
    """Write raw voxels with a header of that version and byte order."""
    header = (nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header)(endianness=order)
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_slope_inter(*scaling)
    start = header.single_vox_offset
    header["vox_offset"], header["magic"] = start, header.single_magic
    data = voxels.astype(header.get_data_dtype()).tobytes(order="F")
    content = header.binaryblock.ljust(start, b"\0") + data
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def patched(path: Path, place: int, value: bytes) -> Path:
    """Overwrite bytes of a file, those before compression."""
    is_packed = path.name.endswith(".gz")
    content = bytearray(gzip.decompress(path.read_bytes()) if is_packed else path.read_bytes())
    content[place : place + len(value)] = value
    path.write_bytes(gzip.compress(bytes(content)) if is_packed else content)
    return path


def dicom(path: Path, pixels: Array, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = 1 if pixels.ndim == 2 else 3, 0
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    bits = dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = tags.get("BitsStored", bits)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def relatives(paths: ImagePaths) -> list[str]:
    return [paths.relative(index) for index in range(len(paths))]


def grey(path: Path | str, **options: Any) -> Array:
    """The only channel of an image."""
    return read_image(path, channels=1, **options)[0]


# NIfTI: images


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.NII.GZ", "packed-by-mistake.nii"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_plane_is_read_with_its_first_axis_down_the_rows(
    tmp_path: Path, name: str, version: int, order: str
) -> None:
    path = nifti(tmp_path / name, PLANE, version=version, order=order)
    if name.startswith("packed"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert relatives(find_images(tmp_path)) == [name]
    pixels = grey(path)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, PLANE)


def test_what_nibabel_writes_is_read_as_nibabel_reads_it(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(PLANE.astype(np.float64), np.diag([-1, -1, 2, 1]))
    image.set_data_dtype(np.int16)  # so that it finds a scaling of its own
    image.to_filename(tmp_path / "a.nii.gz")
    expected = nibabel.load(tmp_path / "a.nii.gz").get_fdata()
    read = grey(tmp_path / "a.nii.gz", intensity_range=(-1, 2))
    np.testing.assert_allclose(read, (expected + 1) / 3, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 10, 1), (8, 10, 1, 1), (8, 10, 1, 1, 1)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_trailing_axes_of_length_1_are_dropped(
    tmp_path: Path, shape: tuple[int, ...], axis: int
) -> None:
    nifti(tmp_path / "a.nii", PLANE.reshape(shape))
    paths = find_images(tmp_path, axis)
    assert relatives(paths) == ["a.nii"]
    np.testing.assert_array_equal(grey(paths[0], slice_axis=axis), PLANE)


def test_grey_is_repeated_for_three_channels(tmp_path: Path) -> None:
    pixels = read_image(nifti(tmp_path / "a.nii", PLANE))
    np.testing.assert_array_equal(pixels, np.stack([PLANE] * 3))
    assert pixels.flags.owndata
    assert pixels.flags.writeable


# NIfTI: intensities


def test_unsigned_integers_are_taken_by_their_depth(tmp_path: Path) -> None:
    eight = grey(nifti(tmp_path / "a.nii", GREY))
    assert eight.dtype == np.uint8
    np.testing.assert_array_equal(eight, GREY)
    sixteen = grey(nifti(tmp_path / "b.nii", COUNTS))
    np.testing.assert_array_equal(sixteen, COUNTS / np.float32(65535))


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.uint32, np.int64])
def test_other_integers_are_ambiguous_until_a_range_is_set(tmp_path: Path, kind: Any) -> None:
    voxels = np.arange(-20, 60).clip(0 if kind is np.uint32 else -20).reshape(8, 10).astype(kind)
    path = nifti(tmp_path / "a.nii", voxels)
    with pytest.raises(UnreadableImageError, match=r"ambiguous intensities.*set intensity_range"):
        read_image(path)
    np.testing.assert_allclose(
        grey(path, intensity_range=(-20, 60)), (voxels + 20.0) / 80, atol=1e-6
    )


def test_the_scaling_of_the_header_is_applied(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", COUNTS, scaling=(2, -100))
    expected = np.clip((COUNTS * 2.0 - 100 - 50) / 1950, 0, 1)
    np.testing.assert_allclose(grey(path, intensity_range=(50, 2000)), expected, atol=1e-6)


@pytest.mark.parametrize("peak", [255, 4095, 65535])
def test_a_scaling_to_0_and_1_needs_no_range(tmp_path: Path, peak: int) -> None:
    """The slope is rounded to 32 bits, and may lead beyond 1."""
    voxels = np.linspace(0, peak, 80).reshape(8, 10).astype(np.uint16)
    pixels = grey(nifti(tmp_path / "a.nii", voxels, scaling=(1 / peak, 0)))
    np.testing.assert_allclose(pixels, voxels / peak, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("window", [None, "image", (0, 1)])
def test_nan_and_infinity_are_refused(tmp_path: Path, bad: float, window: Any) -> None:
    voxels = PLANE.copy()
    voxels[3, 4] = bad
    with pytest.raises(UnreadableImageError, match="NaN or infinite intensities"):
        read_image(nifti(tmp_path / "a.nii", voxels), intensity_range=window)


# NIfTI: volumes


@pytest.mark.parametrize("name", ["case.nii", "case.nii.gz"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_is_listed_and_read_slice_by_slice(tmp_path: Path, name: str, axis: int) -> None:
    nifti(tmp_path / name, VOLUME)
    dataset = ImageFolderDataset(tmp_path, (4, 5), channels=1, slice_axis=axis)
    count = VOLUME.shape[axis]
    assert relatives(dataset.paths) == [f"{name}@{index:03}" for index in range(count)]
    for index, path in enumerate(dataset.paths):
        expected = VOLUME.take(index, axis)
        np.testing.assert_array_equal(grey(path, slice_axis=axis), expected)
        if axis == 2:
            np.testing.assert_array_equal(dataset[index][0].numpy(), expected)


def test_slices_lie_at_the_place_of_their_file(tmp_path: Path) -> None:
    nifti(tmp_path / "b.nii", VOLUME[..., :2])
    for name in ("a.png", "c.png"):
        Image.fromarray(GREY).save(tmp_path / name)
    names = ["a.png", "b.nii@000", "b.nii@001", "c.png"]
    assert relatives(find_images(tmp_path)) == names


def test_many_slices_are_padded_so_that_their_names_sort(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii", np.zeros((1, 2, 1001), np.uint8))
    names = relatives(find_images(tmp_path))
    assert (names[0], names[-1], len(names)) == ("a.nii@0000", "a.nii@1000", 1001)
    assert names == sorted(names)


def test_a_single_slice_along_the_axis_keeps_the_name_of_the_file(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii", VOLUME[:1])
    paths = find_images(tmp_path, 0)
    assert relatives(paths) == ["a.nii"]
    np.testing.assert_array_equal(grey(paths[0], slice_axis=0), VOLUME[0])


@pytest.mark.parametrize("name", ["a.nii", "a.nii@012", "a.nii@999"])
def test_a_volume_is_never_read_as_a_whole_nor_past_its_end(tmp_path: Path, name: str) -> None:
    nifti(tmp_path / "a.nii", VOLUME)
    with pytest.raises(UnreadableImageError, match="12 slices along axis 2; name one"):
        read_image(tmp_path / name)


def test_a_name_that_only_resembles_a_slice_is_a_file(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.nii@1.png")
    Image.fromarray(GREY).save(tmp_path / "b@007", format="PNG")
    assert relatives(find_images(tmp_path)) == ["a.nii@1.png"]
    np.testing.assert_array_equal(grey(tmp_path / "b@007"), GREY)


def test_no_more_of_an_unpacked_volume_is_read_than_the_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = nifti(tmp_path / "a.nii", np.zeros((64, 64, 200), np.uint16))
    handed = 0
    plain_open = Path.open

    def counting(self: Path, *args: Any) -> Any:
        stream = plain_open(self, *args, buffering=0)
        read, readinto = stream.read, stream.readinto

        class Counting:
            def __getattr__(self, name: str) -> Any:
                return getattr(stream, name)

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                stream.close()

            def read(self, *args: int) -> bytes:
                nonlocal handed
                content = read(*args)
                handed += len(content)
                return content

            def readinto(self, buffer: Any) -> int:
                nonlocal handed
                count = readinto(buffer)
                handed += count
                return count

        return Counting()

    monkeypatch.setattr(Path, "open", counting)
    assert grey(f"{path}@150").shape == (64, 64)
    assert 64 * 64 * 2 <= handed < 3 * 64 * 64 * 2


def test_only_the_headers_of_nifti_files_are_opened_for_the_list(
    tmp_path: Path, record_opened: Callable[[], list[str]]
) -> None:
    nifti(tmp_path / "a.nii.gz", VOLUME)
    for name in ("b.png", "c.dcm", "d.tif"):
        (tmp_path / name).touch()
    opened = record_opened()
    assert len(find_images(tmp_path)) == 12 + 3
    assert opened == ["a.nii.gz"]


# NIfTI: what cannot be read


@pytest.mark.parametrize(
    ("voxels", "reason"),
    [
        (np.zeros((4, 4, 2, 3), np.uint8), r"axes of \(4, 4, 2, 3\); give an image or a volume"),
        (np.zeros((4, 4, 1, 3), np.uint8), r"axes of \(4, 4, 1, 3\); give"),
        (np.zeros((4,), np.uint8), r"axes of \(4,\); give"),
        (np.zeros((4, 0), np.uint8), r"axes of \(4, 0\); give"),
        (np.zeros((4, 4), np.complex64), "samples of type complex64 are not supported"),
        (np.zeros((4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "samples of type .* not supp"),
    ],
    ids=["4-D", "vectors", "1-D", "empty", "complex", "rgb"],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_what_is_no_image_is_listed_once_and_refused_in_one_line(
    tmp_path: Path, name: str, voxels: Array, reason: str
) -> None:
    path = nifti(tmp_path / name, voxels)
    assert relatives(find_images(tmp_path)) == [name]
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (344, b"ni1\0", "its pixels lie in another file"),
        (344, b"none", "HeaderDataError"),
        (108, struct.pack("<f", 0), "pixels within the header"),
        (108, struct.pack("<f", math.nan), "cannot be decoded"),
        (108, struct.pack("<f", 100_000_008), "pixels from byte 100000008 on, at most 100000000"),
        (42, struct.pack("<h", -5), "axes of"),
        (42, struct.pack("<hh", 32767, 32767), r"slices of|cut short"),
        (40, struct.pack("<hhh", 2, 9, 10), "cut short|cannot be decoded"),
        (70, struct.pack("<h", 9999), "cannot be decoded"),
    ],
    ids=["pair", "magic", "offset", "nan", "far", "negative", "absurd", "longer", "type"],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_damaged_header_is_listed_once_and_refused(
    tmp_path: Path, name: str, place: int, value: bytes, reason: str
) -> None:
    path = patched(nifti(tmp_path / name, PLANE), place, value)
    assert relatives(find_images(tmp_path)) == [name]
    with pytest.raises(UnreadableImageError, match=reason):
        read_image(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("shape", [(2, 2, 2**40), (2**31, 2**31, 2), (2, 2, 60_000)])
def test_lengths_that_the_file_cannot_hold_take_neither_memory_nor_names(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    path = nifti(tmp_path / name, np.zeros((2, 2, 2), np.uint8), version=2)
    patched(path, 24, struct.pack("<3q", *shape))
    tracemalloc.start()
    try:
        assert relatives(find_images(tmp_path)) == [name]
        with pytest.raises(UnreadableImageError, match=r"slices of|cut short"):
            read_image(path)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("part", [0.001, 0.01, 0.1, 0.3, 0.6, 0.9, 0.99])
def test_a_file_cut_short_is_unreadable(tmp_path: Path, name: str, part: float) -> None:
    path = nifti(tmp_path / name, PLANE)
    data = path.read_bytes()
    path.write_bytes(data[: max(1, int(len(data) * part))])
    assert relatives(find_images(tmp_path)) == [name]
    with pytest.raises(UnreadableImageError):
        read_image(path)


def test_a_packed_plane_whose_checksum_is_wrong_is_unreadable(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz", PLANE)
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    with pytest.raises(UnreadableImageError, match="CRC"):
        read_image(path)


@pytest.mark.parametrize("damage", ["checksum", "length", "pixels", "cut short"])
def test_every_slice_of_a_damaged_packed_volume_is_unreadable(tmp_path: Path, damage: str) -> None:
    path = nifti(tmp_path / "a.nii.gz", VOLUME)
    data = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), 0))  # stored, not packed
    place = {"checksum": -8, "length": -4, "pixels": -500, "cut short": 0}[damage]
    data[place] ^= damage != "cut short"
    path.write_bytes(data[: -9 if damage == "cut short" else None])
    for name in find_images(tmp_path):
        with pytest.raises(UnreadableImageError, match="damaged or cut short, "):
            read_image(name)


def test_a_packed_volume_is_checked_once_and_again_after_it_was_changed(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz", VOLUME)
    datasets._gzip_fault.cache_clear()
    for name in find_images(tmp_path):
        read_image(name)
    assert datasets._gzip_fault.cache_info().misses == 1
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(UnreadableImageError, match="cut short"):
        read_image(f"{path}@000")
    path.write_bytes(data)
    assert read_image(f"{path}@000").shape == (3, 4, 5)


def test_a_packed_file_that_is_no_nifti_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"once upon a time" * 50))
    with pytest.raises(UnreadableImageError, match="packed and no NIfTI"):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("form", ["nii", "nii.gz", "dcm"])
def test_flipped_bytes_give_an_array_or_the_one_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], form: str
) -> None:
    path = tmp_path / f"a.{form}"
    write = dicom if form == "dcm" else nifti
    whole = write(path, GREY.copy() if form == "dcm" else PLANE).read_bytes()
    draw = np.random.default_rng(11)
    for _ in range(60):
        data = bytearray(whole)
        for place in draw.integers(0, min(400, len(data)), draw.integers(1, 6)):
            data[place] = draw.integers(256)
        path.write_bytes(data)
        assert len(find_images(tmp_path)) <= 32_767
        try:
            pixels = read_image(path, intensity_range="image")
        except UnreadableImageError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert 0 <= pixels.min() <= pixels.max() <= 1
    assert capfd.readouterr() == ("", "")


def test_a_missing_package_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = nifti(tmp_path / "a.nii", VOLUME)
    slide = dicom(tmp_path / "b.dcm", GREY)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    line = "a.nii: needs the package nibabel: pip install nibabel$"
    with pytest.raises(ModuleNotFoundError, match=line):
        read_image(volume)
    with pytest.raises(ModuleNotFoundError, match=line):
        find_images(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"needs the package pydicom: pip install pydic"):
        read_image(slide)


@pytest.mark.parametrize("axis", [-1, 3, None])
def test_a_wrong_slice_axis_is_refused(tmp_path: Path, axis: Any) -> None:
    nifti(tmp_path / "a.nii", VOLUME)
    with pytest.raises(ValueError, match="slice_axis must be 0, 1 or 2, got"):
        ImageFolderDataset(tmp_path, slice_axis=axis)


# DICOM


def test_8_bits_are_read_as_they_are(tmp_path: Path) -> None:
    pixels = grey(dicom(tmp_path / "a.dcm", GREY))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, GREY)
    colour = read_image(dicom(tmp_path / "b.dcm", COLOUR))
    np.testing.assert_array_equal(colour, COLOUR.transpose(2, 0, 1))


def test_ybr_becomes_rgb(tmp_path: Path) -> None:
    ybr = np.array(Image.fromarray(COLOUR).convert("YCbCr"))
    path = dicom(tmp_path / "a.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    difference = read_image(path).astype(int) - COLOUR.transpose(2, 0, 1)
    assert abs(difference).max() <= 4  # rounded on the way there, and cut off on the way back


def test_unsigned_data_is_taken_by_the_bits_that_are_stored(tmp_path: Path) -> None:
    pixels = grey(dicom(tmp_path / "a.dcm", COUNTS, BitsStored=12))
    np.testing.assert_array_equal(pixels, COUNTS / np.float32(4095))


@pytest.mark.parametrize("stored", [8, 16])
@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT"])
def test_the_first_window_of_the_file_is_its_range(
    tmp_path: Path, stored: int, function: str | None
) -> None:
    values = GREY.copy() if stored == 8 else COUNTS.astype(np.int16)
    tags = {"WindowCenter": [90, 9], "WindowWidth": [100.0, 9.0]}
    tags |= {"VOILUTFunction": function} if function else {}
    slope = {"RescaleSlope": 0.5, "RescaleIntercept": -20}
    pixels = grey(dicom(tmp_path / "a.dcm", values, **tags, **slope))
    asked = Dataset()
    asked.BitsStored, asked.PixelRepresentation = 16, 1
    asked.PhotometricInterpretation = "MONOCHROME2"
    for name, value in (tags | slope).items():
        setattr(asked, name, value)
    shown = apply_voi_lut(values * 0.5 - 20, asked)  # from one end of its output range to the other
    ends = apply_voi_lut(np.array([-1e6, 1e6]), asked)
    np.testing.assert_allclose(pixels, (shown - ends[0]) / (ends[1] - ends[0]), atol=1e-6)


def test_an_intensity_range_overrules_the_window(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", COUNTS, WindowCenter=50, WindowWidth=10, RescaleIntercept=-24)
    expected = np.clip((COUNTS - 24.0) / 2000, 0, 1)
    np.testing.assert_allclose(grey(path, intensity_range=(0, 2000)), expected, atol=1e-6)


@pytest.mark.parametrize(
    "tags", [{"VOILUTFunction": "SIGMOID", "WindowWidth": 50}, {"WindowWidth": 1}], ids=str
)
def test_a_window_without_two_ends_is_passed_over(tmp_path: Path, tags: dict[str, Any]) -> None:
    path = dicom(tmp_path / "a.dcm", COUNTS, BitsStored=12, WindowCenter=90, **tags)
    np.testing.assert_array_equal(grey(path), COUNTS / np.float32(4095))


def test_rescaled_data_without_a_window_is_ambiguous(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", COUNTS, RescaleSlope=1, RescaleIntercept=-1024)
    with pytest.raises(UnreadableImageError, match=r"ambiguous intensities.*set intensity_range"):
        read_image(path)


def test_signed_data_without_a_window_is_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match=r"ambiguous intensities.*set intensity_range"):
        read_image(dicom(tmp_path / "a.dcm", COUNTS.astype(np.int16)))


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 100, "WindowWidth": 101}], ids=["", "own"])
def test_monochrome1_is_inverted(tmp_path: Path, window: dict[str, int]) -> None:
    plain = grey(dicom(tmp_path / "a.dcm", GREY, **window))
    tags = {**window, "PhotometricInterpretation": "MONOCHROME1"}
    inverted = grey(dicom(tmp_path / "b.dcm", GREY, **tags))
    white = 1 if window else 255
    np.testing.assert_allclose(inverted, white - plain, atol=1e-6)


@pytest.mark.parametrize("group", ["SharedFunctional", "PerFrameFunctional"])
def test_the_rescaling_and_window_of_an_enhanced_image_are_those_of_its_frame(
    tmp_path: Path, group: str
) -> None:
    rescaling, window, frame = Dataset(), Dataset(), Dataset()
    rescaling.RescaleSlope, rescaling.RescaleIntercept, rescaling.RescaleType = 2, -100, "US"
    window.WindowCenter, window.WindowWidth = 1000, 501
    frame.PixelValueTransformationSequence, frame.FrameVOILUTSequence = [rescaling], [window]
    enhanced = {f"{group}GroupsSequence": [frame], "NumberOfFrames": 1}
    tags = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 1000, "WindowWidth": 501}
    plain = grey(dicom(tmp_path / "a.dcm", COUNTS, **tags))
    assert 0 == plain.min() < plain.max() == 1
    tags = {**enhanced, "WindowCenter": 9, "WindowWidth": 9}
    np.testing.assert_array_equal(grey(dicom(tmp_path / "b.dcm", COUNTS, **tags)), plain)


@pytest.mark.parametrize("group", ["SharedFunctional", "PerFrameFunctional"])
def test_an_enhanced_image_without_values_of_its_frame_is_read_as_others(
    tmp_path: Path, group: str
) -> None:
    for index, frames in enumerate(([Dataset()], [])):
        path = dicom(tmp_path / f"{index}.dcm", GREY, **{f"{group}GroupsSequence": frames})
        np.testing.assert_array_equal(grey(path), GREY)


@pytest.mark.parametrize(
    ("kind", "shape"), [("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY")]
)
def test_a_shape_of_presentation_that_contradicts_the_kind_is_refused(
    tmp_path: Path, kind: str, shape: str
) -> None:
    tags = {"PhotometricInterpretation": kind}
    plain = grey(dicom(tmp_path / "a.dcm", GREY, **tags))
    shaped = grey(dicom(tmp_path / "b.dcm", GREY, PresentationLUTShape=shape, **tags))
    np.testing.assert_array_equal(shaped, plain)
    other = "IDENTITY" if shape == "INVERSE" else "INVERSE"
    with pytest.raises(UnreadableImageError, match=f"{kind} shown as {other} contradicts"):
        read_image(dicom(tmp_path / "c.dcm", GREY, PresentationLUTShape=other, **tags))


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"NumberOfFrames": 5}, "5 frames; give single ones"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "DICOM of kind PALETTE COLOR"),
        ({"Rows": 65535, "Columns": 65535}, "65535 x 65535 pixels, at most"),
        ({"Rows": 0}, "10 x 0 pixels"),
        ({"Rows": 4000}, "cannot be decoded"),
        ({"HighBit": 15}, "samples that end at bit 15 are not supported"),
        ({"ModalityLUTSequence": [Dataset()]}, "lookup table"),
        ({"PixelData": GREY.tobytes()[:30]}, "cannot be decoded"),
    ],
    ids=str,
)
def test_other_dicom_is_refused_in_one_line(
    tmp_path: Path, tags: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        read_image(dicom(tmp_path / "a.dcm", GREY, **tags))
    assert str(caught.value).isprintable()


def test_a_deflated_data_set_is_refused_unopened(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", GREY, syntax=DeflatedExplicitVRLittleEndian)
    with pytest.raises(UnreadableImageError, match="deflated, to nobody knows what size"):
        read_image(path)


def test_dicom_is_found_by_its_ending_and_known_by_its_content(tmp_path: Path) -> None:
    data = dicom(tmp_path / "a.dcm", GREY).read_bytes()
    (tmp_path / "b.png").write_bytes(data)
    (tmp_path / "no_ending").write_bytes(data)
    paths = find_images(tmp_path)
    assert relatives(paths) == ["a.dcm", "b.png"]
    np.testing.assert_array_equal(grey(paths[1]), GREY)


@pytest.mark.parametrize("part", [0.01, 0.3, 0.6, 0.95])
def test_dicom_cut_short_is_unreadable(tmp_path: Path, part: float) -> None:
    path = dicom(tmp_path / "a.dcm", GREY)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(UnreadableImageError):
        read_image(path)


# Each image's own range


def encoded(image: Array, form: str) -> bytes:
    stream = BytesIO()
    if form == "TIFF":
        tifffile.imwrite(stream, image, photometric="rgb" if image.ndim == 3 else "minisblack")
    else:
        Image.fromarray(image).save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("image", "form"),
    [
        (GREY, "PNG"),
        (COLOUR, "PNG"),
        (COUNTS, "PNG"),
        (COUNTS, "TIFF"),
        (COUNTS.astype(np.int32) - 2000, "TIFF"),
        (PLANE * 1e30 - 5e29, "TIFF"),
        (PLANE.astype(np.float64) * 1e-30, "TIFF"),
        (np.dstack([COUNTS, COUNTS // 2, COUNTS // 3]), "TIFF"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype} {value.ndim}",
)
def test_the_lowest_and_highest_value_of_any_image_become_0_and_1(
    tmp_path: Path, image: Array, form: str
) -> None:
    (tmp_path / "a").write_bytes(encoded(image, form))
    pixels = read_image(tmp_path / "a", intensity_range="image")
    exact = image.astype(np.float64)
    expected = (exact - exact.min()) / (exact.max() - exact.min())
    assert (pixels.dtype, pixels.min(), pixels.max()) == (np.float32, 0, 1)
    np.testing.assert_allclose(
        pixels[0], expected if image.ndim == 2 else expected[..., 0], atol=1e-5
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_the_own_range_is_that_of_the_image_as_it_is_served(tmp_path: Path, channels: int) -> None:
    alpha = np.dstack([COLOUR // 2, np.full((8, 10), 128, np.uint8)])
    (tmp_path / "a").write_bytes(encoded(alpha, "PNG"))
    plain = read_image(tmp_path / "a", channels=channels).astype(float)
    pixels = read_image(tmp_path / "a", channels=channels, intensity_range="image")
    np.testing.assert_allclose(
        pixels, (plain - plain.min()) / (plain.max() - plain.min()), atol=1e-6
    )


@pytest.mark.parametrize("value", [0, 7, 255])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float64])
def test_a_constant_becomes_0_in_its_own_range(tmp_path: Path, value: int, kind: Any) -> None:
    path = nifti(tmp_path / "a.nii", np.full((8, 10), value, kind))
    pixels = read_image(path, intensity_range="image")
    assert pixels.dtype == np.float32
    assert not pixels.any()


def test_values_too_far_apart_for_32_bits_are_refused(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", np.array([[-3e38, 3e38]], np.float32))
    with pytest.raises(UnreadableImageError, match="too far apart"):
        read_image(path, intensity_range="image")


def test_the_own_range_reaches_the_tiles(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    tile = ImageFolderDataset(tmp_path, (8, 10), intensity_range="image")[0]
    assert (tile.dtype, tile.min(), tile.max()) == (torch.float32, 0, 1)


# Constant images


@pytest.mark.parametrize("name", ["a.png", "a.nii", "a.dcm"])
def test_a_constant_image_is_unreadable_where_it_has_to_be_z_scored(
    tmp_path: Path, name: str
) -> None:
    constant = np.full((8, 10), 9, np.uint8)
    if name == "a.png":
        Image.fromarray(constant).save(tmp_path / name)
    else:
        (dicom if name == "a.dcm" else nifti)(tmp_path / name, constant)
    assert read_image(tmp_path / name).max() == 9
    with pytest.raises(UnreadableImageError, match="constant, so it has no z-score; leave it out"):
        ImageFolderDataset(tmp_path, 8, refuse_constant=True)[0]


@pytest.mark.parametrize("window", [None, "image", (0.0, 1.0)])
def test_other_images_may_be_z_scored(tmp_path: Path, window: Any) -> None:
    path = nifti(tmp_path / "a.nii", PLANE)
    expected = read_image(path, intensity_range=window)
    np.testing.assert_array_equal(
        read_image(path, intensity_range=window, refuse_constant=True), expected
    )


def test_a_plain_colour_is_not_constant(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 30, 90)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", refuse_constant=True).shape == (3, 8, 8)
    with pytest.raises(UnreadableImageError, match="constant"):
        read_image(tmp_path / "a.png", channels=1, refuse_constant=True)


# Through training and evaluation


def test_slices_are_trained_on_and_evaluated_and_constants_are_skipped_and_listed(
    tmp_path: Path, make_settings: Any, network: Any, caplog: pytest.LogCaptureFixture
) -> None:
    voxels = RNG.random((18, 21, 6)).astype(np.float32)
    voxels[..., 3] = 0.5
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        nifti(tmp_path / part / "case.nii.gz", voxels)
    settings = make_settings(
        tile_size=(18, 21), input_normalization="zscore", color_mode="grey", num_epochs=1
    )
    with caplog.at_level("WARNING", "recon"):
        run_training(settings, "mse", network, ImageFolderDataset)
    flat = tmp_path / "train/case.nii.gz@003"
    assert f"  {flat}: constant, so it has no z-score" in caplog.text
    run_evaluation(settings, "mse", network, ImageFolderDataset)
    rows = (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()[1:]
    read = [f"{tmp_path}/test/case.nii.gz@{index:03}" for index in (0, 1, 2, 4, 5)]
    assert [row.partition(",")[0] for row in rows] == read
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert pictures == [f"{Path(path).name}_comparison.png" for path in read]


def test_a_model_refuses_volumes_cut_along_another_axis(
    tmp_path: Path, make_settings: Any, network: Any
) -> None:
    (tmp_path / "train").mkdir()
    nifti(tmp_path / "train/case.nii", VOLUME)
    settings = make_settings(folder_path_test=str(tmp_path / "train"), slice_axis=0, num_epochs=1)
    run_training(settings, "mse", network, ImageFolderDataset)
    asked = frozenset({"slice_axis"})
    other = settings.model_copy(update={"slice_axis": 1})
    with pytest.raises(UserError, match="slice_axis = 1 contradicts"):
        run_evaluation(other, "mse", network, ImageFolderDataset, asked=asked)
    assert run_evaluation(other, "mse", network, ImageFolderDataset).statistics


@pytest.mark.parametrize(
    "change", [{"intensity_range": "image"}, {"input_normalization": "zscore"}]
)
def test_tiles_cached_by_another_reading_are_not_served(
    tmp_path: Path, make_settings: Any, network: Any, change: dict[str, Any]
) -> None:
    """On disk the cache outlives the run, and its 8-bit tiles show neither range nor refusal."""
    (tmp_path / "train").mkdir()
    for index in range(4):
        Image.fromarray(GREY // (index + 1)).save(tmp_path / f"train/{index}.png")
    Image.new("L", (8, 8), 9).save(tmp_path / "train/flat.png")

    def trained(cache: str, **changes: Any) -> torch.Tensor:
        settings = make_settings(
            cache=cache, cache_folder=str(tmp_path / "cache"), num_epochs=1, resume="", **changes
        )
        final = run_training(settings, "mse", network, ImageFolderDataset)
        return torch.load(final, weights_only=True)["encoder.0.weight"]

    plain = trained("disk")
    assert any((tmp_path / "cache").iterdir())
    changed = trained("disk", **change)
    assert torch.equal(changed, trained("none", **change))
    assert not torch.equal(changed, plain)
