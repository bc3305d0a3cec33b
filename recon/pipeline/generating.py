"""New images from a network that can make them, and images between two."""

import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor

from recon.data.loaders import to_unit_range
from recon.evaluation.figures import to_picture
from recon.evaluation.grids import compose_grid
from recon.evaluation.pictures import write_png
from recon.pipeline.images import FolderDataset
from recon.pipeline.measuring import Task
from recon.training.runtime import unwrap

__all__ = ["write_generated"]

logger = logging.getLogger("recon")


@torch.no_grad()
def write_generated(task: Task) -> None:
    """Write `samples.png` and `interpolation.png` below the pictures.

    The first shows images drawn from the prior, the second steps between the first two test
    images that can be read. A network that cannot sample writes neither.
    """
    model, count = task.model, task.settings.samples
    network = cast(Any, unwrap(model.model))
    if not (count and hasattr(network, "sample") and model.runtime.ranks.first):
        return
    generator = torch.Generator().manual_seed(task.settings.seed)
    ends = list(islice(_readable(task.dataset), 2))
    with model.runtime.autocast():
        pictures = {"samples": network.sample(count, generator)}
        if len(ends) == 2:
            images = torch.stack([to_unit_range(image) for image in ends])
            first, second = model.preparation.normalize(images.to(model.runtime.device))
            pictures["interpolation"] = network.interpolate(first, second, count)
    for name, images in pictures.items():
        path = task.pictures / f"{name}.png"
        write_png(path, compose_grid(to_picture(images)))
        logger.info("%s: %s", name.capitalize(), path)


def _readable(dataset: FolderDataset) -> Iterator[Tensor]:
    for index in range(len(dataset)):
        try:
            yield dataset[index]
        except (ValueError, OSError):  # Reported by the evaluation.
            continue
