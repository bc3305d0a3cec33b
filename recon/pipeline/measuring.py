"""Every image of a folder, reconstructed and measured, by all processes of a run."""

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from recon.data.loaders import Batches, Failure, make_loader
from recon.errors import UserError
from recon.evaluation.evaluator import Corrupt, evaluate
from recon.evaluation.pictures import Comparison
from recon.evaluation.records import Record, visible
from recon.pipeline.images import FolderDataset, demand_same_number
from recon.pipeline.models import LoadedModel
from recon.pipeline.progress import progress_bar
from recon.settings import Settings

__all__ = ["NOT_FINITE", "Measured", "Task", "measure"]


NOT_FINITE = (
    "{model} makes of {image} numbers that are not finite; set precision = 'float32', or, where "
    "it is set, take another model"
)


class Task(NamedTuple):
    """What is evaluated, and where the results go."""

    settings: Settings
    model: LoadedModel
    dataset: FolderDataset
    sigma: float  # deviation of the noise that the network is fed; 0: none
    path: Path  # of the model
    book: Path
    pictures: Path


class Measured(NamedTuple):
    """One batch."""

    comparisons: list[Comparison]  # of this process
    records: list[Record]  # of all processes, in the order of the dataset, and so the failures
    failures: list[Failure]


def measure(
    task: Task,
    reconstruct: Callable[[Tensor], Tensor],
    *,
    corrupt: Corrupt | None,
    draw: bool,
    title: str = "Evaluating",
) -> Iterator[Measured]:
    """Reconstruct and measure every image, batch by batch.

    Args:
        task: The model and the images.
        reconstruct: From images in [0, 1] to reconstructions, (N, C, H, W) both.
        corrupt: Spoils what the network is fed.
        draw: Whether pictures are wanted.
        title: Of the bar.

    Raises:
        UserError: At the first image that cannot be read, where the settings say so; or whose
            reconstruction is not finite.
    """
    settings, dataset, runtime = task.settings, task.dataset, task.model.runtime
    demand_same_number(dataset, runtime.ranks)
    loader = make_loader(
        dataset,
        Batches(len(dataset), settings.batch_size_test, share=runtime.ranks.share),
        num_workers=settings.num_workers,
        pin_memory=runtime.device.type == "cuda",
    )
    name_of, device = dataset.paths.__getitem__, runtime.device
    parts = evaluate(
        reconstruct,
        loader,
        name_of,
        device,
        corrupt=corrupt,
        draw=draw,
        threads=task.model.threads,
    )
    with loader, progress_bar(runtime.ranks, title, len(dataset)) as bar, closing(parts):
        for part in parts:
            here = list(zip(part.indices, part.records, strict=True))
            everywhere = runtime.ranks.gather((here, part.failures))
            ordered = sorted(pair for pairs, _ in everywhere for pair in pairs)
            failures = sorted(failure for _, found in everywhere for failure in found)
            if failures and settings.unreadable_images == "stop":
                raise UserError(f"unreadable image: {failures[0].reason}")
            _check_finite(task.path, [record for _, record in ordered])
            bar.update(len(ordered) + len(failures))
            yield Measured(part.comparisons, [record for _, record in ordered], failures)


def _check_finite(path: Path, records: list[Record]) -> None:
    """Refuse figures of nothing; on every rank, as all have all records."""
    spoilt = next((record.path for record in records if not math.isfinite(record.mse)), None)
    if spoilt is not None:
        raise UserError(NOT_FINITE.format(model=path, image=visible(spoilt)))
