"""One evaluation, from a model file to workbook, csv and pictures."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from recon.errors import UserError
from recon.evaluation.pictures import PictureWriter, Selection, count_others, picture_names
from recon.evaluation.records import COLUMNS, NOISY, visible
from recon.evaluation.summary import Summary, Tally
from recon.evaluation.workbook import RecordWriter
from recon.files import check_target, check_writable, exclusive, spell_json
from recon.models.registry import Builder
from recon.pipeline.compression import CodeCount
from recon.pipeline.denoising import check_noise, corruption, noise_files, noise_of, sweep_noise
from recon.pipeline.explaining import explained
from recon.pipeline.foresight import spare_sidecars
from recon.pipeline.generating import write_generated
from recon.pipeline.images import Datasets, FolderDataset, open_folder, report_unreadable
from recon.pipeline.measuring import Measured, Task, measure
from recon.pipeline.models import LoadedModel, load_model
from recon.pipeline.paths import Relatives, every
from recon.provenance import (
    INITIAL,
    among,
    describe_run,
    fingerprint,
    flatten,
    joined_members,
    without_members,
)
from recon.ranks import join_ranks
from recon.settings import Settings, recorded
from recon.training.runtime import start_runtime

__all__ = ["run_evaluation"]

logger = logging.getLogger("recon")

PICTURE_THREADS = 4
# What would become of pictures that lie among the images of a run.
INPUTS = {
    "folder_path_test": "evaluated",
    "folder_path_train": "trained on",
    "folder_path_validation": "validated on",
}


def run_evaluation(
    settings: Settings,
    objective: str,
    auto_encoder: Builder,
    datasets: Datasets,
    *,
    asked: frozenset[str] = frozenset(),
) -> Summary:
    """Evaluate a model on the test folder, and write workbook, csv and pictures.

    Args:
        settings: Of the run.
        objective: "mse", "ssim", "vae" or "vqvae": chooses the settings' names.
        auto_encoder: `Auto_encoder.AutoEncoder`.
        datasets: `datasets.ImageFolderDataset`.
        asked: Names of the settings given on the command line.

    Returns:
        The figures over all images.

    Raises:
        UserError: For anything that the user can put right.
    """
    path = Path(settings.of("model_path", objective))
    book = Path(settings.of("reconstruction_metrics", objective))
    pictures = Path(settings.of("recon_output", objective))
    _check_model(path, objective)
    _check_outputs(settings, objective, book, pictures)
    runtime = start_runtime(
        settings.GPUs, settings.precision, seed=settings.seed, deterministic=settings.deterministic
    )
    with ExitStack() as stack:
        if runtime.ranks.first:
            # The csv stands for all three files: it is what a training would lock, too.
            name = f"reconstruction_metrics_{objective}"
            stack.enter_context(exclusive(book.with_suffix(".csv"), name))
        join_ranks(runtime.ranks, runtime.device)
        stack.enter_context(explained(settings, "batch_size_test"))
        model = load_model(
            path, settings, auto_encoder, runtime, asked=asked, objective=objective, folded=True
        )
        check_noise(settings, model, asked)
        summary = _evaluate(settings, model, datasets, path, book, pictures)
    logger.info("Workbook: %s\nCsv: %s\nPictures: %s", book, book.with_suffix(".csv"), pictures)
    return summary


def _evaluate(
    settings: Settings,
    model: LoadedModel,
    datasets: Datasets,
    path: Path,
    book: Path,
    pictures: Path,
) -> Summary:
    """Measure the test images, write everything, and tell what came out."""
    dataset = open_folder(
        datasets, "folder_path_test", settings.folder_path_test, model.preparation
    )
    logger.info(
        "Model: %s (%s)\nImages: %d below %s",
        *(path, model.kind, len(dataset), settings.folder_path_test),
    )
    sigma = noise_of(settings, model)
    task = Task(settings, model, dataset, sigma, path, book, pictures)
    if sigma > 0:
        logger.info("Noise: standard deviation %g on what the network is fed", sigma)
    summary, unreadable, record = _write_results(task)
    report_unreadable(unreadable)
    _report(summary)
    sweep_noise(task, record)
    write_generated(task)
    return summary


def _check_model(path: Path, objective: str) -> None:
    if not path.is_file():
        raise UserError(
            f"model_path_{objective} must be a model file, got {str(path)!r}, which is missing; "
            f"train one with Training_{objective.upper()}.py, or point elsewhere with "
            f"--model_path_{objective} FILE"
        )


def _check_outputs(settings: Settings, objective: str, book: Path, pictures: Path) -> None:
    for setting, fate in INPUTS.items():
        if not (folder := getattr(settings, setting)):
            continue
        images = Path(folder).resolve()
        if pictures.resolve().is_relative_to(images):
            raise UserError(
                f"recon_output_{objective} must not lie in {setting}, got {str(pictures)!r}: the "
                f"pictures would be {fate} the next time; choose another folder"
            )
        if settings.noise_sweep and book.resolve().is_relative_to(images):
            raise UserError(
                f"reconstruction_metrics_{objective} must not lie in {setting}, got "
                f"{str(book)!r}: the curves of noise_sweep would be {fate} the next time; choose "
                f"another folder"
            )
    name = f"reconstruction_metrics_{objective}"
    targets = [book.with_suffix(suffix) for suffix in (book.suffix, ".csv", ".json")]
    targets += noise_files(book) if settings.noise_sweep else []
    for target in targets:
        check_target(target, name)
        if target.suffix == ".json":
            spare_sidecars(target, name)
    check_writable(pictures, f"recon_output_{objective}")


def _write_results(task: Task) -> tuple[Summary, list[str], dict[str, Any]]:
    """Evaluate every image and write all files.

    Returns:
        The figures, what was unreadable, and, on the first rank, where the figures come from.
    """
    record: dict[str, Any] = {}
    tally, codes, started = Tally(), CodeCount(task.model), time.perf_counter()
    unreadable: list[str] = []
    columns = COLUMNS + NOISY if task.sigma > 0 else COLUMNS
    with ExitStack() as stack:
        writer = None
        if task.model.runtime.ranks.first:
            table = RecordWriter(task.book.with_suffix(".csv"), task.book, columns)
            writer = stack.enter_context(table)
        for part in _evaluated(task, codes):
            tally.add(part.records)
            unreadable += [failure.reason for failure in part.failures]
            if writer is not None:
                writer.write(part.records)
        count = len(task.dataset)
        if len(unreadable) == count:
            raise UserError(f"none of the {count} test images can be read: {unreadable[0]}")
        summary = tally.summary()._replace(facts=codes.facts())
        codes.draw(task.pictures / "codes.png")
        if writer is not None:
            record = _run_record(task, summary, unreadable)
            record["seconds"] = round(time.perf_counter() - started, 1)
            beside = task.book.with_suffix(".json"), spell_json(record)
            writer.finish(summary, flatten(record), beside)
    return summary, unreadable, record


def _evaluated(task: Task, codes: CodeCount) -> Iterator[Measured]:
    """Every batch, measured; pictures are written on the way."""
    wanted, count = task.settings.save_images, len(task.dataset)
    corrupt = corruption(task.sigma, task.settings.seed) if task.sigma > 0 else None
    names = picture_names(task.dataset.paths.relative, count)
    with PictureWriter(task.pictures, names, PICTURE_THREADS) as writer:
        selection = None if wanted in ("all", "none") else Selection(int(wanted), count)
        for part in measure(task, codes.reconstruct, corrupt=corrupt, draw=wanted != "none"):
            if wanted == "all":
                writer.write(part.comparisons)
            elif selection is not None:
                selection.add(part.comparisons)
            yield part
        if selection is not None:
            writer.write(selection.chosen(task.model.runtime.ranks.gather))
    everywhere = task.model.runtime.ranks.gather(writer.written)
    others = count_others(task.pictures, everywhere) if task.model.runtime.ranks.first else 0
    if others:
        logger.warning("%d pictures below %s are of other evaluations", others, task.pictures)


def _run_record(task: Task, summary: Summary, unreadable: list[str]) -> dict[str, Any]:
    """Where the figures come from, for the workbook's last sheet."""
    model, dataset, folder = task.model, task.dataset, task.settings.folder_path_test
    noise = {"noise": {"standard deviation": task.sigma}} if task.sigma > 0 else {}
    compression = {"compression": dict(summary.facts)} if summary.facts else {}
    return {
        **describe_run(),
        "model": str(task.path),
        "weights_sha256": model.weights_sha256,
        "preparation": model.preparation._asdict(),
        **noise,
        **compression,
        "test images": {
            "folder": folder,
            "found": len(dataset),
            "unreadable": len(unreadable),
            "trained on": _trained_on(model, dataset),
            "fingerprint": fingerprint(Relatives(dataset.paths), folder),
        },
        "skipped": {str(i): visible(reason) for i, reason in enumerate(unreadable, 1)},
        "device": model.runtime.name,
        "precision": model.runtime.precision,
        "settings": recorded(task.settings),
        "training": without_members(model.provenance) or "not recorded",
    }


def _trained_on(model: LoadedModel, dataset: FolderDataset) -> int | str:
    """How many of the images are like one that the model was trained on, where its record tells."""
    data = model.provenance.get("data", {})
    known = joined_members(data.get(part, {}).get("members") for part in ("train", INITIAL))
    if known is None:
        return "not recorded"
    count = among(every(dataset.paths), known)
    if count:
        logger.warning(
            "%d of the %d test images are like images that the model was trained on, in size and "
            "samples of their bytes: where they are the same, its scores flatter",
            count,
            len(dataset),
        )
    return count


def _report(summary: Summary) -> None:
    width = max(4, *(len(entry.metric) for entry in summary.statistics))
    for entry in summary.statistics:
        logger.info(
            "%-*s  mean %.5f, standard deviation %.5f, median %.5f, from %.5f to %.5f",
            *(width, entry.metric, entry.mean, entry.deviation, entry.median),
            *(entry.minimum, entry.maximum),
        )
    for name, value in summary.facts:
        logger.info("%s: %.6g", name, value)
    if summary.identical:
        logger.info("%d reconstructions are identical: no PSNR", summary.identical)
    for title, records in (("Worst", summary.worst), ("Best", summary.best)):
        for record in records:
            logger.info(
                "%s: %s  MSE %.5f, PSNR %.2f dB, SSIM %.4f", title, visible(record.path),
                record.mse, record.psnr, record.ssim,
            )  # fmt: skip
