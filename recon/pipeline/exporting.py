"""One export of latents, from a model file to a table with one row for each image."""

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recon.analysis.latent_files import LatentStore, Part, Table, check_format, write_table
from recon.analysis.latents import Encoder
from recon.data.loaders import Batch, Batches, make_loader, to_unit_range
from recon.errors import UserError
from recon.evaluation.records import visible
from recon.evaluation.spreading import spreading
from recon.files import check_target, check_writable, exclusive, replacing_all, spell_json
from recon.models.registry import Builder
from recon.pipeline.explaining import explained
from recon.pipeline.foresight import spare_sidecars
from recon.pipeline.images import (
    Datasets,
    FolderDataset,
    demand_same_number,
    open_folder,
    report_unreadable,
)
from recon.pipeline.measuring import NOT_FINITE
from recon.pipeline.models import LoadedModel, load_model
from recon.pipeline.paths import Relatives
from recon.pipeline.progress import progress_bar
from recon.provenance import describe_run, fingerprint
from recon.ranks import join_ranks
from recon.settings import Settings, recorded
from recon.training.runtime import Runtime, start_runtime, unwrap

__all__ = ["run_export"]

logger = logging.getLogger("recon")


def run_export(
    settings: Settings,
    auto_encoder: Builder,
    datasets: Datasets,
    *,
    asked: frozenset[str] = frozenset(),
) -> Path:
    """Encode every image of a folder, and write a table and what it belongs to.

    An export that ends early is gone on with by the next one of the same model, images and
    settings. Both give the same bits as one that ran through; on a GPU, with `deterministic`.

    Args:
        settings: Of the run.
        auto_encoder: `Auto_encoder.AutoEncoder`.
        datasets: `datasets.ImageFolderDataset`.
        asked: Names of the settings given on the command line.

    Returns:
        The path of the table.

    Raises:
        UserError: For anything that the user can put right.
    """
    target = Path(settings.latents_file)
    check_format(target)
    check_target(target, "latents_file")
    spare_sidecars(target.with_suffix(".json"), "latents_file")
    runtime = start_runtime(
        settings.GPUs, settings.precision, seed=settings.seed, deterministic=settings.deterministic
    )
    join_ranks(runtime.ranks, runtime.device)
    with explained(settings, "batch_size_test"):
        _export(settings, auto_encoder, datasets, runtime, target, asked)
    return target


def _export(
    settings: Settings,
    auto_encoder: Builder,
    datasets: Datasets,
    runtime: Runtime,
    target: Path,
    asked: frozenset[str],
) -> None:
    path = Path(settings.model_path_latents)
    model = _encoder_of(load_model(path, settings, auto_encoder, runtime, asked=asked), settings)
    folder = settings.folder_path_latents
    dataset = open_folder(datasets, "folder_path_latents", folder, model.preparation)
    logger.info("Model: %s (%s)\nImages: %d below %s", path, model.kind, len(dataset), folder)
    demand_same_number(dataset, runtime.ranks)
    if runtime.ranks.first:
        _write(model, dataset, settings, target)
    else:
        for _ in _encoded(model, dataset, settings, _agree(model, 0)):
            pass


def _encoder_of(model: LoadedModel, settings: Settings) -> LoadedModel:
    """The encoder in the place of the network."""
    encoder = Encoder(unwrap(model.model), settings.latents_pooling).eval()
    spread = model.runtime.spread(encoder, compile_model=settings.compile_model, learns=False)
    return model._replace(model=spread)


def _agree(model: LoadedModel, start: int) -> int:
    """The image that the first rank starts with."""
    return model.runtime.ranks.gather(start)[0]


def _write(model: LoadedModel, dataset: FolderDataset, settings: Settings, target: Path) -> None:
    """Compute the rows that are missing, and publish the table."""
    started, belongs = time.perf_counter(), _describe(model, dataset, settings)
    unfinished = target.with_name(f"{target.name}.unfinished")
    check_writable(unfinished, "latents_file")
    with ExitStack() as stack:
        stack.enter_context(exclusive(unfinished, "latents_file"))
        store = stack.enter_context(LatentStore(unfinished, belongs))
        start = _agree(model, store.progress.images)
        _check_unreadable(store.progress.unreadable, settings)
        for part, done in _encoded(model, dataset, settings, start):
            _check_unreadable(part.unreadable, settings)
            store.add(part, done)
        unreadable = store.progress.unreadable
        if len(unreadable) == len(dataset):
            raise UserError(f"none of the {len(dataset)} images can be read: {unreadable[0]}")
        table = store.table(lambda image: visible(dataset.paths[image]))
        record = _record(belongs, table, unreadable, model, settings)
        record["seconds"] = round(time.perf_counter() - started, 1)
        _publish(target, table, record)
    rows, numbers = len(table.images), table.numbers
    del table  # Its rows are mapped: their file could not go everywhere while they are.
    shutil.rmtree(unfinished, ignore_errors=True)
    report_unreadable(unreadable)
    logger.info("Latents: %s, %d rows of %d numbers", target, rows, numbers)


def _check_unreadable(reasons: Sequence[str], settings: Settings) -> None:
    if reasons and settings.unreadable_images == "stop":
        raise UserError(f"unreadable image: {reasons[0]}")


def _describe(model: LoadedModel, dataset: FolderDataset, settings: Settings) -> dict[str, Any]:
    """What decides the rows."""
    folder = settings.folder_path_latents
    return {
        "weights_sha256": model.weights_sha256,
        "preparation": model.preparation._asdict(),
        "pooling": settings.latents_pooling,
        "precision": model.runtime.precision,
        "images": {
            "folder": folder,
            "found": len(dataset),
            "fingerprint": fingerprint(Relatives(dataset.paths), folder),
            "state": fingerprint(Relatives(dataset.paths), folder, dated=True),
        },
    }


def _encoded(
    model: LoadedModel, dataset: FolderDataset, settings: Settings, start: int
) -> Iterator[tuple[Part, int]]:
    """Rows of every batch from an image on, from all ranks, and how many images are done."""
    ranks, count = model.runtime.ranks, len(dataset)
    loader = make_loader(
        dataset,
        Batches(
            count, settings.batch_size_test, lambda _epoch: np.arange(start, count), ranks.share
        ),
        num_workers=settings.num_workers,
        pin_memory=model.runtime.device.type == "cuda",
    )
    bars = progress_bar(ranks, "Encoding", count, start)
    with loader, bars as bar, spreading(model.threads) as pool:
        for batch in loader:
            part = _merged(ranks.gather(_encode(model, batch, pool)))
            _check_finite(part, dataset, settings)
            bar.update(len(part.images) + len(part.unreadable))
            start += len(part.images) + len(part.unreadable)
            yield part, start


def _check_finite(part: Part, dataset: FolderDataset, settings: Settings) -> None:
    """Refuse rows of nothing; on every rank, as all have all rows."""
    if part.latents is None:
        return
    finite = np.isfinite(part.latents).reshape(len(part.images), -1).all(axis=1)
    if not finite.all():
        image = visible(dataset.paths[part.images[int(finite.argmin())]])
        raise UserError(NOT_FINITE.format(model=settings.model_path_latents, image=image))


def _encode(model: LoadedModel, batch: Batch, pool: ThreadPoolExecutor) -> Part:
    """This rank's rows of a batch."""
    images = batch.indices.tolist()
    unreadable = [failure.reason for failure in batch.failures]
    if not images:
        return Part([], None, unreadable)
    shares = model.runtime.send(batch.images).chunk(model.threads)
    latents = torch.cat(list(pool.map(partial(_run, model), shares)))
    return Part(images, latents.cpu().numpy(), unreadable)


def _run(model: LoadedModel, images: Tensor) -> Tensor:
    """Rows of images as a loader gives them, (N, C, H, W)."""
    parts = model.parts(to_unit_range(images))
    with torch.no_grad(), model.runtime.autocast():
        return torch.cat([model.model(model.prepared(part)) for part in parts])


def _merged(parts: Sequence[Part]) -> Part:
    """One batch of the parts of all ranks, in the order of the images."""
    unreadable = [reason for part in parts for reason in part.unreadable]
    found = [part.latents for part in parts if part.latents is not None]
    if not found:
        return Part([], None, unreadable)
    images = np.concatenate([part.images for part in parts if part.images])
    order = np.argsort(images)
    return Part(images[order].tolist(), np.concatenate(found)[order], unreadable)


def _record(
    belongs: dict[str, Any],
    table: Table,
    unreadable: Sequence[str],
    model: LoadedModel,
    settings: Settings,
) -> dict[str, Any]:
    """Where the rows come from."""
    return {
        **describe_run(),
        "table": settings.latents_file,  # Tables of one name and several formats share a record.
        "model": settings.model_path_latents,
        **belongs,
        "architecture": model.provenance.get("architecture", settings.architecture),
        "rows": len(table.images),
        "row": {"type": table.latents.dtype.name, "shape": table.latents.shape[1:]},
        "unreadable": len(unreadable),
        "skipped": [visible(reason) for reason in unreadable],
        "device": model.runtime.name,
        "settings": recorded(settings),
    }


def _publish(target: Path, table: Table, record: dict[str, Any]) -> None:
    if target.exists():
        logger.info("Replacing the latents that %s held", target)
    with replacing_all(target, target.with_suffix(".json")) as (partial, beside):
        write_table(partial, target.suffix.lower(), table)
        beside.write_text(spell_json(record), encoding="utf-8")
