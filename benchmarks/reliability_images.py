"""Damaged image files of every format: read or refused, never a crash or a false score."""

import csv
import faulthandler
import gzip
import io
import json
import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from openpyxl import load_workbook
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
)

from benchmarks.reliability_runs import (
    FINAL,
    Result,
    TwoLayers,
    command,
    evaluate,
    flags_for,
    fork,
    wait,
)
from datasets import ImageFolderDataset, UnreadableImageError, find_images
from recon.training.checkpoint import save_torch

__all__ = ["images"]

EDGE = 24  # pixels
SLOW = 10  # seconds after which a file counts as hanging


def whole_files() -> dict[str, bytes]:
    """An undamaged file of every format and depth, by a name that begins with its extension."""
    draw = np.random.default_rng(5)
    coarse = draw.integers(0, 256, (6, 6, 4), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((EDGE, EDGE)))  # (H, W, 4)
    rgb, grey, deep = smooth[..., :3], smooth[..., 0], draw.integers(0, 65536, (EDGE, EDGE, 3))
    deep = deep.astype(np.uint16)
    files = {
        "png-grey": _saved(grey, "PNG"),
        "png-rgb": _saved(rgb, "PNG"),
        "png-rgba": _saved(smooth, "PNG"),
        "png-palette": _saved(Image.fromarray(rgb).quantize(64), "PNG"),
        "png-16-grey": imagecodecs.png_encode(deep[..., 0].copy()),
        "png-16-rgb": imagecodecs.png_encode(deep),
        "jpg-rgb": _saved(rgb, "JPEG"),
        "jpg-grey": _saved(grey, "JPEG"),
        "gif": _saved(Image.fromarray(rgb).quantize(64), "GIF"),
        "bmp-rgb": _saved(rgb, "BMP"),
        "bmp-grey": _saved(grey, "BMP"),
        "webp-lossy": _saved(rgb, "WEBP"),
        "webp-lossless": _saved(smooth, "WEBP", lossless=True),
        "tif-8": _tiff(rgb, photometric="rgb"),
        "tif-16": _tiff(deep, photometric="rgb"),
        "tif-float": _tiff(draw.random((EDGE, EDGE), dtype=np.float32)),
        "tif-16-lzw": _tiff(deep[..., 0], compression="lzw", predictor=True),
        "tif-8-deflate": _tiff(rgb, photometric="rgb", compression="zlib"),
        "tif-8-tiled": _tiff(rgb, photometric="rgb", tile=(16, 16)),
        "tif-16-tiled-lzw": _tiff(deep, photometric="rgb", tile=(16, 16), compression="lzw"),
        "tif-jpeg": _saved(rgb, "TIFF", compression="jpeg"),
        "nii-plane": _nifti(grey),
        "nii-volume": _nifti(rgb),
        "nii.gz-volume": gzip.compress(_nifti(deep), mtime=0),
        "dcm-8": _dicom(rgb),
        "dcm-16": _dicom(deep[..., 0].copy()),
        "dcm-jpeg": _dicom(rgb, jpeg=_saved(rgb, "JPEG", subsampling=0)),
    }
    return {name: bytes(data) for name, data in files.items()}


def _saved(image: Any, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(stream, form, **options)
    return stream.getvalue()


def _tiff(image: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, image, **options)
    return stream.getvalue()


def _nifti(image: NDArray[Any]) -> bytes:
    stored: bytes = nibabel.Nifti1Image(image, np.eye(4)).to_bytes()
    return stored


def _dicom(image: NDArray[Any], jpeg: bytes = b"") -> bytes:
    dataset, is_grey = Dataset(), image.ndim == 2
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns = image.shape[:2]
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = (1 if is_grey else 3), 0
    dataset.PhotometricInterpretation = "MONOCHROME2" if is_grey else "YBR_FULL" if jpeg else "RGB"
    dataset.BitsAllocated = dataset.BitsStored = 8 * image.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    dataset.PixelData = encapsulate([jpeg]) if jpeg else image.tobytes()
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _flip(data: bytearray, draw: np.random.Generator, _other: bytes) -> bytes:
    for place in draw.integers(0, len(data), draw.integers(1, 6)):
        data[place] ^= 1 << draw.integers(8)
    return bytes(data)


def _cut(data: bytearray, draw: np.random.Generator, _other: bytes) -> bytes:
    return bytes(data[: draw.integers(0, len(data))])


def _header(data: bytearray, draw: np.random.Generator, _other: bytes) -> bytes:
    for place in draw.integers(0, min(64, len(data)), draw.integers(1, 5)):
        data[place] = draw.integers(256)
    return bytes(data)


def _splice(data: bytearray, draw: np.random.Generator, other: bytes) -> bytes:
    return bytes(data[: draw.integers(1, len(data))]) + other[draw.integers(0, len(other)) :]


def _zeros(data: bytearray, draw: np.random.Generator, _other: bytes) -> bytes:
    start = draw.integers(0, len(data))
    end = start + draw.integers(1, max(2, len(data) // 4))
    data[start:end] = bytes(len(data[start:end]))
    return bytes(data)


def _lost(data: bytearray, draw: np.random.Generator, _other: bytes) -> bytes:
    start = draw.integers(0, len(data))
    del data[start : start + draw.integers(1, 32)]
    return bytes(data)


def _sizes(data: bytearray, draw: np.random.Generator, _other: bytes) -> bytes:
    """Claim another size; in a PNG with a checksum to match, so that the decoder believes it."""
    place = draw.integers(0, min(200, len(data) - 4))
    if data[:4] == b"\x89PNG":
        data[16:24] = struct.pack(">II", *(int(2 ** draw.uniform(0, 31)) for _ in range(2)))
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:
        data[place : place + 4] = draw.choice([b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", bytes(4)])
    return bytes(data)


DAMAGES: dict[str, Callable[[bytearray, np.random.Generator, bytes], bytes]] = {
    "flipped": _flip, "cut": _cut, "header": _header, "spliced": _splice, "zeros": _zeros,
    "lost": _lost, "sizes": _sizes,
}  # fmt: skip


def images(scratch: Path, count: int) -> Result:
    """Damage files, read each twice, and evaluate a model on all of them."""
    folder = scratch / "damaged"
    _write(folder, count)
    failures, outcomes = _read_all(folder, scratch)
    counts, wrong = _judge(folder, outcomes)
    failures += wrong + _evaluated(folder, outcomes, scratch)
    kinds = ("alike", "changed", "refused")
    by_form = ", ".join(
        f"{form} {'/'.join(str(tally[kind]) for kind in kinds)}"
        for form, tally in sorted(counts.items())
    )
    figure = (
        f"{len(outcomes)} images, {len(failures)} crashes, hangs, lost files or false pixels; "
        f"read as the original / read otherwise / refused: {by_form}"
    )
    return Result("damaged images", figure, failures)


def _write(folder: Path, count: int) -> None:
    """Files named `<format>/<number>-<damage>.<extension>`, one whole file of each format."""
    draw, files = np.random.default_rng(7), whole_files()
    names = list(files)
    for number in range(count + len(files)):
        form = names[number % len(files)]
        other = files[names[draw.integers(len(names))]]
        damage = "whole" if number < len(files) else list(DAMAGES)[draw.integers(len(DAMAGES))]
        path = folder / form / f"{number:05}-{damage}.{form.partition('-')[0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = bytearray(files[form])
        path.write_bytes(data if damage == "whole" else DAMAGES[damage](data, draw, other))


def _read_all(folder: Path, scratch: Path) -> tuple[list[str], dict[str, str]]:
    """Read every file in a process that may die; what failed, and the outcome by path."""
    failures: list[str] = []
    report, total = scratch / "report.jsonl", len(find_images(folder))
    report.touch()
    while True:
        done = [json.loads(line) for line in report.read_text().splitlines()]
        if len(done) == total:
            break
        code = wait(fork(scratch / "read.log", _read, folder, len(done), report), 600)
        done = [json.loads(line) for line in report.read_text().splitlines()]
        if code != 0:
            path = find_images(folder)[len(done)]
            failures.append(f"{path}: ended the process with {code}")
            with report.open("a") as file:
                file.write(json.dumps([path, "lost"]) + "\n")
    return failures, dict(done)


def _read(folder: Path, start: int, report: Path) -> int:
    """Read every file twice, appending its path and outcome to the report."""
    dataset = ImageFolderDataset(folder, EDGE)
    with report.open("a", buffering=1) as file:
        for index in range(start, len(dataset)):
            faulthandler.dump_traceback_later(SLOW, exit=True)
            file.write(json.dumps([dataset.paths[index], _outcome(dataset, index)]) + "\n")
    faulthandler.cancel_dump_traceback_later()
    return 0


def _outcome(dataset: ImageFolderDataset, index: int) -> str:
    try:
        one, two = dataset[index], dataset[index]
    except UnreadableImageError as error:
        return "refused" if "\n" not in str(error) else "a message of several lines"
    values = one.float() / (255 if one.dtype == torch.uint8 else 1)
    if not torch.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        return "values outside [0, 1]"
    return f"read {one.numpy().tobytes().hex()}" if torch.equal(one, two) else "two values"


def _judge(folder: Path, outcomes: dict[str, str]) -> tuple[dict[str, Counter[str]], list[str]]:
    """Counts by format, and what is wrong."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    wrong = []
    whole = {_form_and_slice(p): o for p, o in outcomes.items() if "-whole." in p}
    for path, outcome in outcomes.items():
        form = Path(path).parent.name
        original = whole.get(_form_and_slice(path), "no such slice")
        kind = "alike" if outcome == original else "changed"
        counts[form][kind if outcome.startswith("read") else "refused"] += 1
        if not outcome.startswith(("read", "refused", "lost")):
            wrong.append(f"{path}: {outcome}")
        elif outcome.startswith("read") and _is_covered(path) and outcome != original:
            wrong.append(f"{path}: pixels differ from the original's")
    wrong += [f"{form}: the whole file is refused" for form in whole if "read" not in whole[form]]
    return counts, wrong


def _form_and_slice(path: str) -> tuple[str, str]:
    """Which of the whole files a damaged one comes from, and which slice of a volume it is."""
    return Path(path).parent.name, path.partition("@")[2]


def _is_covered(path: str) -> bool:
    """Whether checksums cover the damage: those of false sizes were forged."""
    return "/nii.gz-" in path or ("/png-" in path and not path.endswith("-sizes.png"))


def _evaluated(folder: Path, outcomes: dict[str, str], scratch: Path) -> list[str]:
    """Evaluate on the folder: each file is in the rows or in the list of the unreadable."""
    out = scratch / "evaluation"
    out.mkdir()
    torch.manual_seed(0)
    save_torch(out / FINAL, TwoLayers().state_dict())
    flags = flags_for(folder, out, num_workers=2, save_images="none", batch_size_test=32)
    code = wait(fork(scratch / "evaluation.log", command, flags, evaluate), 600)
    if code != 0:
        return [f"evaluation: exit {code}, {(scratch / 'evaluation.err').read_text()[-500:]}"]
    with (out / "metrics.csv").open(newline="") as file:
        rows = {row["Image Path"] for row in csv.DictReader(file)}
    with closing(load_workbook(out / "metrics.xlsx", read_only=True)) as book:
        rows_of_run = book["Run"].iter_rows(values_only=True)
        run = {str(name): str(value) for name, value in rows_of_run}
    skipped = {v.partition(": ")[0] for k, v in run.items() if k.startswith("skipped.")}
    read = {path for path, outcome in outcomes.items() if outcome.startswith("read")}
    strange = (rows ^ read) | (skipped ^ (outcomes.keys() - read))
    return [f"{path}: in the wrong list of the evaluation" for path in sorted(strange)]
