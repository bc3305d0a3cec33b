"""One check of the images that a run would use, from the files to a report and an exit code."""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray
from tqdm import tqdm

from recon.analysis.findings import GLASS, UNREAD, Finding, ImageSet, Kind, find
from recon.data.inspection import Facts, inspect_image, lost_image
from recon.data.processes import map_isolated
from recon.evaluation.image_check import CheckedImage, write_image_check
from recon.evaluation.records import visible
from recon.files import check_target, exclusive
from recon.models.preparation import IntensityRange
from recon.pipeline.foresight import spare_sidecars
from recon.pipeline.images import LISTED, Datasets, open_folder, reading_of
from recon.pipeline.models import edges, preparation_of
from recon.provenance import describe_run, fingerprint
from recon.settings import Settings, recorded
from recon.training.meter import bar_hidden

__all__ = ["run_check"]

logger = logging.getLogger("recon")

UNFIT = 1  # the exit code
FOLDERS = {
    "training": "folder_path_train",
    "validation": "folder_path_validation",
    "test": "folder_path_test",
}
# With these, training goes wrong or a score flatters; the others are for the user to weigh.
FATAL = (Kind.AMBIGUOUS, Kind.TRAINING_FILE, Kind.TRAINING_COPY, Kind.TRAINING_NEAR)
COMMON = 5  # sizes that are listed

Findings = list[list[Finding]]  # of each image of a set


class Reader(Protocol):
    """`datasets.read_image`, or what stands in for it."""

    def __call__(
        self,
        path: str,
        /,
        *,
        channels: int,
        intensity_range: IntensityRange,
        slice_axis: int,
        refuse_constant: bool,
    ) -> NDArray[Any]: ...


def run_check(settings: Settings, datasets: Datasets, read_image: Reader) -> int:
    """Look at every image, report what was found, and write workbook and csv.

    Args:
        settings: Of the run.
        datasets: `datasets.ImageFolderDataset`.
        read_image: `datasets.read_image`.

    Returns:
        The exit code: 0, or 1 where training on these images would be wrong.

    Raises:
        UserError: For anything that the user can put right.
    """
    book = Path(settings.image_check_file)
    for path in (book, book.with_suffix(".csv"), book.with_suffix(".json")):
        check_target(path, "image_check_file")
    spare_sidecars(book.with_suffix(".json"), "image_check_file")
    with exclusive(book.with_suffix(".csv"), "image_check_file"):
        return _check(settings, datasets, read_image, book)


def _check(settings: Settings, datasets: Datasets, read_image: Reader, book: Path) -> int:
    started = time.perf_counter()
    sets = _inspect(settings, datasets, read_image)
    findings = find(sets, edges(settings.tile_size))
    for images in sets:
        _describe(images)
    counts = [Counter(f.kind for of_image in found for f in of_image) for found in findings]
    table = _table(sets, counts)
    _list(sets, findings)
    record = _record(settings, sets, time.perf_counter() - started)
    write_image_check(book, _rows(sets, findings), table, record)
    logger.info("Workbook: %s\nCsv: %s", book, book.with_suffix(".csv"))
    return _judge(sets, counts, stop=settings.unreadable_images == "stop")


def _record(settings: Settings, sets: Sequence[ImageSet], seconds: float) -> dict[str, Any]:
    """Where the findings come from."""
    return {
        **describe_run(),
        "images": {images.name: _identify(images) for images in sets},
        "device": "CPU",
        "seconds": round(seconds, 1),
        "settings": recorded(settings),
    }


def _identify(images: ImageSet) -> dict[str, Any]:
    """The folder of a set, and what tells its files from others."""
    paths = map(images.relative_of, range(len(images.facts)))
    return {
        "folder": images.folder,
        "found": len(images.facts),
        "fingerprint": fingerprint(paths, images.folder),
    }


def _inspect(settings: Settings, datasets: Datasets, read_image: Reader) -> list[ImageSet]:
    """The facts of all images of all folders; finds the folders before it reads the images."""
    preparation = preparation_of(settings)
    opened = [
        (name, open_folder(datasets, setting, getattr(settings, setting), preparation).paths)
        for name, setting in FOLDERS.items()
        if getattr(settings, setting)
    ]
    read = partial(read_image, **reading_of(preparation))
    paths = (of_set[index] for _, of_set in opened for index in range(len(of_set)))
    facts = map_isolated(
        partial(inspect_image, read_image=read),
        paths,
        processes=settings.num_workers,
        lost=lost_image,
    )
    total = sum(len(of_set) for _, of_set in opened)
    hidden = bar_hidden(first=True)
    looked = list(tqdm(facts, "Checking", total, leave=False, disable=hidden, unit="image"))
    place, sets = 0, []
    for name, of_set in opened:
        end = place + len(of_set)
        names = of_set.__getitem__, of_set.relative
        sets.append(ImageSet(name, of_set.folder, *names, looked[place:end]))
        place = end
    return sets


def _describe(images: ImageSet) -> None:
    """Counts of what the files of one set are."""
    read = [facts for facts in images.facts if not facts.problem]
    logger.info(
        "%s images: %d below %s, %d of them readable",
        images.name.capitalize(), len(images.facts), visible(images.folder), len(read),
    )  # fmt: skip
    for title, values in (
        ("format", (facts.format or "unknown" for facts in images.facts)),
        ("mode", (facts.mode or "unknown" for facts in images.facts)),
        ("bit depth", (facts.bits or "unknown" for facts in images.facts)),
        ("width x height", (f"{facts.width} x {facts.height}" for facts in read)),
    ):
        counter = Counter(values)
        common = ", ".join(f"{value}: {count}" for value, count in counter.most_common(COMMON))
        more = f" and {len(counter) - COMMON} more" if len(counter) > COMMON else ""
        logger.info("  %-14s  %s%s", title, common, more)


def _table(sets: Sequence[ImageSet], counts: Sequence[Counter[Kind]]) -> list[list[str | int]]:
    """The number of findings of each kind in each set, on the console and for the workbook."""
    table: list[list[str | int]] = [["Findings", *(images.name for images in sets)]]
    for kind in Kind:
        table.append([_title(kind), *(of_set[kind] for of_set in counts)])
    for title, *numbers in table:
        logger.info("%-48s%s", title, "".join(f"{number!s:>12}" for number in numbers))
    return table


def _title(kind: Kind) -> str:
    return f"{kind.value} (grey deviation below {GLASS:g})" if kind is Kind.BLANK else kind.value


def _list(sets: Sequence[ImageSet], findings: Sequence[Findings]) -> None:
    """Name some images of each kind of finding."""
    listed: dict[Kind, list[str]] = {kind: [] for kind in Kind}
    counts: Counter[Kind] = Counter()
    for path, _, _, found in _each(sets, findings):
        for finding in found:
            counts[finding.kind] += 1
            if len(listed[finding.kind]) < LISTED:
                listed[finding.kind].append(f"  {visible(path)}{_explained(finding)}")
    for kind, lines in listed.items():
        if lines:
            more = counts[kind] - len(lines)
            rest = [f"  and {more} more"] if more else []
            logger.info("%s:\n%s", _title(kind).capitalize(), "\n".join(lines + rest))


def _explained(finding: Finding) -> str:
    told = visible(finding.detail or finding.other)
    return f": {told}" if told else ""


def _each(
    sets: Sequence[ImageSet], findings: Sequence[Findings]
) -> Iterator[tuple[str, str, Facts, list[Finding]]]:
    """Path, set, facts and findings of every image."""
    for images, of_set in zip(sets, findings, strict=True):
        for index, (facts, found) in enumerate(zip(images.facts, of_set, strict=True)):
            yield images.path_of(index), images.name, facts, found


def _rows(sets: Sequence[ImageSet], findings: Sequence[Findings]) -> Iterator[CheckedImage]:
    for path, name, facts, found in _each(sets, findings):
        told = (f.kind.value + (f": {f.detail}" if f.detail else "") for f in found)
        yield CheckedImage(
            path,
            name,
            facts.format or None,
            facts.mode or None,
            facts.bits or None,
            facts.width or None,
            facts.height or None,
            None if math.isnan(facts.deviation) else facts.deviation,
            "; ".join(told) or None,
            next((f.other for f in found if f.other), None),
        )


def _judge(sets: Sequence[ImageSet], counts: Sequence[Counter[Kind]], *, stop: bool) -> int:
    """Say whether training on these images would be wrong."""
    fatal = [kind for kind in Kind if kind in FATAL or (stop and kind in UNREAD)]
    total = sum(counts, Counter[Kind]())
    against = [f"{total[kind]} {kind.value}" for kind in fatal if total[kind]]
    against += [
        f"no readable {images.name} image"
        for images in sets
        if all(facts.problem for facts in images.facts)
    ]
    if against:
        logger.warning("Not fit for training: %s", "; ".join(against))
        return UNFIT
    logger.info("Nothing here stands against training")
    return 0
