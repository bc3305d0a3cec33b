"""Find the images that the settings name, and load them as they say."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from recon.data.cache import HEADER, CachedDataset, open_store
from recon.data.loaders import Batches, ImageDataset, make_loader, workers_fork
from recon.data.sampling import draw_epoch
from recon.data.splits import by_group
from recon.errors import UserError
from recon.models.preparation import IntensityRange, Preparation
from recon.pipeline.models import preparation_of
from recon.pipeline.paths import Paths, Relatives, every
from recon.pipeline.splitting import split_off, write_split
from recon.provenance import Sampled, copied, fingerprint, members, sample_files
from recon.ranks import Ranks
from recon.settings import Settings
from recon.training.runtime import Runtime
from recon.training.trainer import Split

__all__ = [
    "Datasets",
    "FolderDataset",
    "TrainingData",
    "demand_same_number",
    "open_folder",
    "reading_of",
    "report_unreadable",
    "training_data",
]

logger = logging.getLogger("recon")

LISTED = 20  # unreadable images named at the end of a run


class FolderDataset(ImageDataset, Protocol):
    """Images below a folder."""

    @property
    def paths(self) -> Paths:
        """Path of each image."""


class Reading(TypedDict):
    """What decides the values of an image file, as `datasets` names it."""

    channels: int
    intensity_range: IntensityRange
    slice_axis: int
    refuse_constant: bool


def reading_of(preparation: Preparation) -> Reading:
    """How a preparation wants files read."""
    return {
        "channels": preparation.channels,
        "intensity_range": preparation.intensity_range,
        "slice_axis": preparation.slice_axis,
        "refuse_constant": preparation.refuses_constants,
    }


class Datasets(Protocol):
    """`datasets.ImageFolderDataset`, or what stands in for it."""

    def __call__(  # noqa: D102 - the class says it
        self,
        folder: str,
        tile_size: tuple[int, int],
        /,
        *,
        channels: int,
        intensity_range: IntensityRange,
        slice_axis: int,
        refuse_constant: bool,
        paths: Any | None = None,
    ) -> FolderDataset: ...


def open_folder(
    datasets: Datasets,
    setting: str,
    folder: str,
    preparation: Preparation,
    *,
    paths: Paths | None = None,
) -> FolderDataset:
    """The images below a folder, read as the preparation says.

    Raises:
        UserError: If it is missing, no folder, or holds no image.
    """
    try:
        return datasets(
            folder,
            preparation.tile_size,
            paths=paths,
            **reading_of(preparation),
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{setting} must be a folder of images: {error}") from None


def demand_same_number(dataset: FolderDataset, ranks: Ranks) -> None:
    """Refuse machines that see different images, which counting tells for little.

    Raises:
        UserError: On every rank.
    """
    ranks.demand_same(
        len(dataset),
        "the processes of torchrun must see the same images, and they see different numbers of "
        "them; give every machine the same folder",
    )


class TrainingData(NamedTuple):
    """What a run learns from."""

    train: Split
    validation: Split | None
    record: dict[str, Any]  # of both, for the provenance
    write_split: Callable[[], None]  # once the run has begun, so that resuming finds it


def training_data(
    settings: Settings,
    preparation: Preparation,
    datasets: Datasets,
    runtime: Runtime,
    checkpoints: Path,
    *,
    resumed: bool,
) -> TrainingData:
    """Training images, and validation images if there are any.

    Args:
        settings: Of the run.
        preparation: Of its images.
        datasets: `datasets.ImageFolderDataset`.
        runtime: Of the run.
        checkpoints: Folder where a resumed run finds its split.
        resumed: Whether this is one.

    Raises:
        UserError: If images are missing or cannot be split as asked.
    """
    folder = settings.folder_path_train
    whole = open_folder(datasets, "folder_path_train", folder, preparation)
    samples = _sample(whole.paths)
    held_out: FolderDataset | None = None
    keep: Callable[[], None] = lambda: None  # noqa: E731
    if settings.folder_path_validation:
        train, of_train = whole, samples
        held_out = _validation_folder(settings, datasets, preparation)
        of_held_out = _sample(held_out.paths)
    else:
        sides = split_off(whole.paths, samples, settings, checkpoints, resumed=resumed)
        keep = partial(write_split, whole.paths, settings, sides, checkpoints)
        part = partial(open_folder, datasets, "folder_path_train", folder, preparation)
        train = part(paths=whole.paths.select(sides.kept))
        of_train, of_held_out = (
            None if samples is None else samples[side] for side in (sides.kept, sides.aside)
        )
        held_out = part(paths=whole.paths.select(sides.aside)) if len(sides.aside) else None
    count = 0 if held_out is None else len(held_out)
    logger.info("Images: %d to train on, %d for validation", len(train), count)
    record = {"train": _describe(train.paths, of_train), "validation": {"images": 0}}
    validation = None
    if held_out is not None:
        record["validation"] = _describe(held_out.paths, of_held_out)
        _comment_on_copies((held_out.paths, of_held_out), (train.paths, of_train))
        validation = _load(held_out, settings, runtime, count / (len(train) + count))
    split = _load(train, settings, runtime, len(train) / (len(train) + count), shuffled=True)
    return TrainingData(split, validation, record, keep)


def _validation_folder(
    settings: Settings, datasets: Datasets, preparation: Preparation
) -> FolderDataset:
    train = Path(settings.folder_path_train).resolve()
    validation = Path(settings.folder_path_validation).resolve()
    if validation.is_relative_to(train) or train.is_relative_to(validation):
        raise UserError(
            f"folder_path_validation must lie outside folder_path_train, got "
            f"{settings.folder_path_validation!r}: its images would be trained on"
        )
    return open_folder(
        datasets, "folder_path_validation", settings.folder_path_validation, preparation
    )


def _comment_on_copies(
    validation: tuple[Paths, NDArray[np.uint64] | None],
    train: tuple[Paths, NDArray[np.uint64] | None],
) -> None:
    """Say how many validation images are also trained on, under whatever name."""
    (held_out, samples), (kept, of_kept) = validation, train
    if samples is None or of_kept is None:
        return
    copies = copied(Sampled(held_out.__getitem__, samples), Sampled(kept.__getitem__, of_kept))
    if copies.any():
        logger.warning(
            "%d of the %d validation images are byte for byte among those to train on: validation "
            "flatters; Check_images.py lists them",
            copies.sum(),
            len(held_out),
        )


def _sample(paths: Paths) -> NDArray[np.uint64] | None:
    return sample_files(every(paths), len(paths))


def _describe(paths: Paths, samples: NDArray[np.uint64] | None) -> dict[str, Any]:
    return {
        "folder": paths.folder,
        "images": len(paths),
        "fingerprint": fingerprint(Relatives(paths), paths.folder),
        "members": members(samples),
    }


def _load(
    dataset: FolderDataset,
    settings: Settings,
    runtime: Runtime,
    share: float,
    *,
    shuffled: bool = False,
) -> Split:
    """A part of the images, which may take this share of the cache."""
    if settings.cache == "memory":  # Each process has its own; on disk they share one.
        share /= runtime.ranks.here
    order = _order(dataset.paths, settings) if shuffled else None
    batches = Batches(len(dataset), settings.batch_size_train, order, runtime.ranks.share)
    loader = make_loader(
        _cached(dataset, settings, "train" if shuffled else "validation", share),
        batches,
        num_workers=settings.num_workers,
        pin_memory=runtime.device.type == "cuda",
    )
    return Split(loader, batches, dataset.paths.__getitem__)


def _order(paths: Paths, settings: Settings) -> Callable[[int], NDArray[np.int64]]:
    """The indices of an epoch, by its number."""
    count = len(paths)
    groups = [np.arange(count)]
    if settings.balance_folders:
        groups = by_group(Relatives(paths), "folder")
    images = settings.images_per_epoch or count
    return lambda epoch: draw_epoch(groups, images, seed=settings.seed, epoch=epoch)


def _cached(dataset: FolderDataset, settings: Settings, part: str, share: float) -> ImageDataset:
    """The dataset with a cache of decoded tiles, where one is wanted and can be had."""
    if settings.num_workers > 0 and not workers_fork():
        return dataset  # They would not share it.
    preparation = preparation_of(settings)
    height, width = preparation.tile_size
    shape = (preparation.channels, height, width)
    slot = HEADER + shape[0] * height * width
    slots = min(len(dataset), int(share * settings.cache_limit_gb * 1e9) // slot)
    if settings.cache == "none" or slots == 0:
        return dataset
    options = f"{shape} {reading_of(preparation)}"
    name = f"{Path(dataset.paths.folder).resolve()} {part} {options}"
    store = open_store(settings.cache, Path(settings.cache_folder), name, slots * slot)
    if store is None:
        return dataset
    if slots < len(dataset):
        logger.info("The cache (cache_limit_gb) holds %d of %d tiles", slots, len(dataset))
    return CachedDataset(dataset, store, shape=shape, options=options, slots=slots)


def report_unreadable(reasons: Sequence[str]) -> None:
    """Count and list the images that were skipped."""
    if not reasons:
        return
    logger.warning("Skipped %d unreadable images:", len(reasons))
    for reason in reasons[:LISTED]:
        logger.warning("  %s", reason)
    if len(reasons) > LISTED:
        logger.warning("  and %d more", len(reasons) - LISTED)
