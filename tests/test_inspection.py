import os
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from scipy.fft import dctn

from datasets import read_image
from recon.data.inspection import (
    AMBIGUOUS,
    EMPTY,
    UNREADABLE,
    VANISHED,
    Facts,
    grey_levels,
    inspect_image,
    look_of,
    lost_image,
)

READ = partial(read_image, channels=3, intensity_range=None)


def picture(seed: int = 0, edge: int = 48) -> NDArray[np.uint8]:
    """A smooth random picture (edge, edge, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((edge, edge), Image.Resampling.BICUBIC))


def saved(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def inspected(path: Path, read: Callable[[str], NDArray[Any]] = READ) -> Facts:
    return inspect_image(str(path), read)


def raising(error: Exception) -> Callable[[str], NDArray[Any]]:
    def read(_path: str) -> NDArray[Any]:
        raise error

    return read


def bits_between(one: int, other: int) -> int:
    return (one ^ other).bit_count()


# What a file is


@pytest.mark.parametrize(
    ("name", "mode", "expected"),
    [
        ("a.png", "RGB", ("PNG", "RGB", 8)),
        ("a.png", "1", ("PNG", "1", 1)),
        ("a.png", "P", ("PNG", "P", 8)),
        ("a.png", "I;16", ("PNG", "L", 16)),
        ("a.png", "RGBA", ("PNG", "RGBA", 8)),
        ("a.jpg", "L", ("JPEG", "L", 8)),
        ("a.jpg", "CMYK", ("JPEG", "CMYK", 8)),
        ("a.gif", "P", ("GIF", "P", 8)),
        ("a.bmp", "RGB", ("BMP", "RGB", 8)),
        ("a.webp", "RGB", ("WEBP", "RGB", 8)),
        ("a.tif", "RGB", ("TIFF", "RGB", 8)),
        ("a.tif", "RGBA", ("TIFF", "RGBA", 8)),
    ],
)
def test_format_mode_and_bit_depth_are_those_of_the_file(
    tmp_path: Path, name: str, mode: str, expected: tuple[str, str, int]
) -> None:
    if mode == "I;16":
        image = Image.fromarray(picture()[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(picture()).convert(mode)
    image.save(tmp_path / name)
    facts = inspected(tmp_path / name)
    assert (facts.format, facts.mode, facts.bits) == expected
    assert facts.problem == ""


def test_a_float_tiff_says_so(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture()[..., 0] / np.float32(255))
    facts = inspected(tmp_path / "a.tif")
    assert (facts.format, facts.mode, facts.bits) == ("TIFF", "L float", 32)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("version", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(
    ("kind", "mode", "bits"),
    [(np.uint8, "L", 8), (np.int16, "L signed", 16), (np.float32, "L float", 32)],
)
def test_a_slice_of_a_volume_says_what_it_is(
    tmp_path: Path, name: str, version: Any, kind: Any, mode: str, bits: int
) -> None:
    voxels = (np.arange(5 * 7 * 3) % 2).reshape(5, 7, 3).astype(kind)
    version(voxels, np.eye(4)).to_filename(tmp_path / name)
    read = partial(READ, intensity_range="image")
    facts = [inspected(tmp_path / f"{name}@{index:03}", read) for index in range(3)]
    assert {fact[1:6] for fact in facts} == {("NIfTI", mode, bits, 7, 5)}
    assert len({fact.place for fact in facts}) == 3
    assert [fact.problem for fact in facts] == [""] * 3


def test_slices_have_one_place_by_whatever_link_their_volume_is_reached(tmp_path: Path) -> None:
    nibabel.Nifti1Image(np.zeros((5, 7, 3), np.uint8), np.eye(4)).to_filename(tmp_path / "a.nii")
    (tmp_path / "link.nii").symlink_to(tmp_path / "a.nii")
    assert inspected(tmp_path / "a.nii@001").place == inspected(tmp_path / "link.nii@001").place


@pytest.mark.parametrize("damage", ["vanished", "empty"])
def test_a_slice_whose_volume_is_gone_or_empty_is_named_so(tmp_path: Path, damage: str) -> None:
    if damage == "empty":
        (tmp_path / "a.nii").touch()
    problem = {"vanished": VANISHED, "empty": EMPTY}[damage]
    assert inspected(tmp_path / "a.nii@001").problem == problem


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_a_dicom_file_says_what_it_is_unless_its_header_is_packed(
    tmp_path: Path, syntax: str
) -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 5, 7, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelData = bytes(5 * 7 * 2)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    facts = inspected(tmp_path / "a.dcm")
    known = ("DICOM", "L", 12, 7, 5) if syntax == ExplicitVRLittleEndian else ("DICOM", "", 0, 0, 0)
    assert facts[1:6] == known


def test_the_content_says_what_the_format_is(tmp_path: Path) -> None:
    saved(tmp_path / "a.jpg", picture(), format="PNG")
    assert inspected(tmp_path / "a.jpg").format == "PNG"


def test_width_and_height_are_upright(tmp_path: Path) -> None:
    image = Image.fromarray(picture()[:30])
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    facts = inspected(tmp_path / "a.jpg")
    assert (facts.width, facts.height) == (30, 48)


# Grey levels


def test_the_deviation_is_in_grey_levels_of_255(tmp_path: Path) -> None:
    halves = np.zeros((16, 16), np.uint8)
    halves[8:] = 255
    assert inspected(saved(tmp_path / "a.png", halves)).deviation == pytest.approx(127.5)


def test_the_deviation_of_a_float_image_is_in_grey_levels_too(tmp_path: Path) -> None:
    halves = np.zeros((16, 16), np.float32)
    halves[8:] = 1
    tifffile.imwrite(tmp_path / "a.tif", halves)
    assert inspected(tmp_path / "a.tif").deviation == pytest.approx(127.5)


def test_grey_levels_are_the_luma() -> None:
    pixels = np.full((3, 2, 2), 0, np.uint8)
    pixels[1] = 100
    assert grey_levels(pixels) == pytest.approx(58.7)


def test_grey_levels_of_one_channel_are_its_values() -> None:
    grey = grey_levels(np.full((1, 2, 2), 100, np.uint8))
    assert grey.dtype == np.float32
    assert (grey == 100).all()


# Digests


def test_the_same_pixels_share_a_digest_whatever_the_format(tmp_path: Path) -> None:
    names = ("a.png", "b.bmp", "c.tif")
    found = {inspected(saved(tmp_path / name, picture())).pixels for name in names}
    assert len(found) == 1


def test_a_grey_file_and_its_rgb_copy_share_a_digest(tmp_path: Path) -> None:
    grey = picture()[..., 0]
    one = inspected(saved(tmp_path / "a.png", grey))
    other = inspected(saved(tmp_path / "b.png", np.stack([grey] * 3, axis=-1)))
    assert one.pixels == other.pixels


def test_one_changed_level_changes_the_digest(tmp_path: Path) -> None:
    changed = picture().copy()
    changed[7, 7, 0] ^= 1
    one, other = saved(tmp_path / "a.png", picture()), saved(tmp_path / "b.png", changed)
    assert inspected(one).pixels != inspected(other).pixels


def test_another_shape_changes_the_digest(tmp_path: Path) -> None:
    one = saved(tmp_path / "a.png", np.full((4, 16, 3), 9, np.uint8))
    other = saved(tmp_path / "b.png", np.full((16, 4, 3), 9, np.uint8))
    assert inspected(one).pixels != inspected(other).pixels


def test_a_link_and_its_target_share_their_place(tmp_path: Path) -> None:
    target = saved(tmp_path / "a.png", picture())
    link, other = tmp_path / "b.png", saved(tmp_path / "c.png", picture())
    link.symlink_to(target)
    assert inspected(link).place == inspected(target).place != inspected(other).place


# Perceptual hash


def test_the_hash_agrees_with_an_independent_cosine_transform() -> None:
    grey = grey_levels(picture().transpose(2, 0, 1))
    small = np.asarray(Image.fromarray(grey).resize((32, 32), Image.Resampling.BOX))
    waves = dctn(small.astype(np.float64))[:8, :8]
    # The transforms differ in scale by a factor that is the same for all coefficients.
    expected = "".join("01"[int(bit)] for bit in (waves > np.median(waves)).ravel())
    assert f"{look_of(grey):064b}" == expected


@pytest.mark.parametrize("change", ["jpeg", "half", "darker"])
def test_a_changed_copy_differs_in_few_bits(change: str) -> None:
    image = Image.fromarray(picture(edge=64))
    copy = image
    if change == "jpeg":
        file = BytesIO()
        image.save(file, "JPEG", quality=50)
        copy = Image.open(file)
    elif change == "half":
        copy = image.resize((32, 32))
    else:
        copy = image.point(lambda level: level * 0.8)
    one, other = (look_of(np.asarray(i.convert("F"))) for i in (image, copy))
    assert bits_between(one, other) <= 4


def test_different_pictures_differ_in_many_bits() -> None:
    looks = [look_of(picture(seed)[..., 0].astype(np.float32)) for seed in range(20)]
    pairs = [(a, b) for n, a in enumerate(looks) for b in looks[:n]]
    assert min(bits_between(a, b) for a, b in pairs) > 10


# Files that cannot be read


def test_a_truncated_file_is_unreadable_and_keeps_its_header(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", picture())
    path.write_bytes(path.read_bytes()[:-200])
    facts = inspected(path)
    assert facts.problem == UNREADABLE
    assert facts.reason.startswith("cannot be decoded")
    assert (facts.format, facts.width, facts.height) == ("PNG", 48, 48)
    assert np.isnan(facts.deviation)


def test_an_empty_file_has_a_name_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    facts = inspected(tmp_path / "a.png")
    assert (facts.problem, facts.reason) == (EMPTY, "empty file")


@pytest.mark.parametrize("is_link", [False, True])
def test_a_file_that_is_gone_has_vanished(tmp_path: Path, is_link: bool) -> None:
    if is_link:
        (tmp_path / "a.png").symlink_to(tmp_path / "nowhere.png")
    facts = inspected(tmp_path / "a.png")
    assert (facts.problem, facts.reason) == (VANISHED, "no such file, or a broken link")


def test_a_range_that_the_file_does_not_settle_is_ambiguous(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture()[..., 0].astype(np.float32))
    facts = inspected(tmp_path / "a.tif")
    assert facts.problem == AMBIGUOUS
    assert facts.reason.endswith("set intensity_range")
    assert (facts.mode, facts.bits) == ("L float", 32)


def test_intensities_that_are_not_finite_are_unreadable(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((16, 16), np.nan, np.float32))
    facts = inspected(tmp_path / "a.tif")
    assert (facts.problem, facts.reason) == (UNREADABLE, "NaN or infinite intensities")


def test_the_words_of_a_path_name_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "ambiguous intensities: .png"
    path.write_bytes(b"no image")
    assert inspected(path).problem == UNREADABLE


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    facts = inspected(tmp_path / "a.png")
    assert (facts.problem, facts.reason) == (UNREADABLE, "not a regular file")


def test_a_name_that_is_no_text_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", picture())
    odd = path.rename(tmp_path / os.fsdecode(b"\xff\n=1.png"))
    assert inspected(odd).problem == ""


@pytest.mark.parametrize("name", ["a.png", "a\nb.png", "a\udcff.png", "a\x1b: b.png", "é.png"])
def test_the_reason_does_not_repeat_the_path(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no image")
    assert inspected(tmp_path / name).reason.startswith("damaged, or none of")


def test_a_bomb_is_unreadable(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.bmp", picture())
    data = bytearray(path.read_bytes())
    data[18:26] = (60_000).to_bytes(4, "little") * 2
    path.write_bytes(data)
    assert inspected(path).problem == UNREADABLE


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), MemoryError()])
def test_a_failure_of_the_machine_is_a_finding(tmp_path: Path, error: Exception) -> None:
    facts = inspected(saved(tmp_path / "a.png", picture()), raising(error))
    assert facts.problem == UNREADABLE
    assert facts.reason


def test_a_file_that_ended_its_process_keeps_its_place(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", picture())
    lost = lost_image(str(path))
    assert (lost.problem, lost.place) == (UNREADABLE, inspected(path).place)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.gif"])
def test_no_cut_through_a_file_raises(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, picture(edge=12))
    data = path.read_bytes()
    for length in range(1, min(len(data), 300), 7):
        path.write_bytes(data[:length])
        assert inspected(path).format in ("", "PNG", "TIFF", "GIF")
