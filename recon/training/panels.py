"""The panel of a training: some images, noise on them if there is any, and the reconstructions.

Images are (N, C, H, W) float tensors in [0, 1] with one channel or three; pictures are (H, W, 3)
uint8 arrays.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recon.data.loaders import to_unit_range
from recon.data.noise import noise_seeds
from recon.models.output import reconstruct
from recon.training.plan import Split
from recon.training.runtime import unwrap
from recon.training.trainer import Trainer

__all__ = ["Panel", "compose_panel", "fixed_images", "panel_of", "reconstructions"]

GAP = 2  # pixels between images

# Originals, what the network is fed where that is another, and reconstructions, (N, C, H, W) each.
Panel = Callable[[], tuple[Tensor, ...]]


def compose_panel(*rows: Tensor) -> NDArray[np.uint8]:
    """Images below each other, such as originals over their reconstructions, with white gaps.

    Args:
        rows: (N, C, H, W) each, one channel or three; values outside of [0, 1] are clipped.

    Returns:
        (R (H + GAP) + GAP, N (W + GAP) + GAP, 3) of R rows.

    Raises:
        ValueError: If the shapes differ.
    """
    # Imported here: it takes a second, and most runs draw no panel.
    from torchvision.utils import make_grid  # type: ignore[import-untyped, unused-ignore]

    for row in rows:
        if row.shape != rows[0].shape:
            raise ValueError(
                f"rows must have the shape of the first, {tuple(rows[0].shape)}, got "
                f"{tuple(row.shape)}"
            )
    images = torch.cat([row.float().cpu() for row in rows]).clamp(0, 1)
    grid = make_grid(images, nrow=len(rows[0]), padding=GAP, pad_value=1.0)
    picture: NDArray[np.uint8] = (grid * 255).round().byte().permute(1, 2, 0).numpy()  # (H, W, 3)
    return picture


def fixed_images(trainer: Trainer, count: int) -> Tensor:
    """The first validation images that can be read, or training images where there are none.

    Read past the loader, whose epochs this leaves alone, and without augmentation.

    Args:
        trainer: Of the run.
        count: Images at most.

    Returns:
        (N, C, H, W) in [0, 1], on the CPU; empty if no image can be read.
    """
    images = list(islice(_readable(trainer.validation or trainer.train), count))
    return torch.cat(images) if images else torch.empty(0, 1, 0, 0)


def _readable(split: Split) -> Iterator[Tensor]:
    for index in split.batches.order(0).tolist():
        batch = split.loader.collate_fn([split.loader.dataset[index]])
        if len(batch.indices):
            yield to_unit_range(batch.images)


@torch.no_grad()
def reconstructions(trainer: Trainer, images: Tensor) -> Tensor:
    """What the network that would be saved now makes of its input, one by one to spare memory.

    Leaves no trace: modes and random state are afterwards what they were.

    Args:
        trainer: Of the run.
        images: (N, C, H, W) in [0, 1].

    Returns:
        (N, C, H, W) float32, on the CPU.
    """
    average, runtime = trainer.average, trainer.runtime
    model = unwrap(trainer.model) if average is None else average.module
    devices = [runtime.device] if runtime.device.type == "cuda" else []
    parts = []
    with _in_eval_mode(model), torch.random.fork_rng(devices), runtime.autocast():
        for image in images.unsqueeze(1):  # (1, C, H, W)
            prepared = trainer.prepare(runtime.send(image))
            prepared = prepared.contiguous(memory_format=torch.channels_last)
            parts.append(reconstruct(model, prepared).reconstruction.float().cpu())
    return torch.cat(parts)


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def panel_of(trainer: Trainer, count: int) -> Panel | None:
    """A panel of the same images in every epoch, or None if there are none to show.

    Args:
        trainer: Of the run.
        count: Images at most.
    """
    originals = fixed_images(trainer, count)
    if len(originals) == 0:
        return None
    if trainer.corrupt is None:
        return lambda: (originals, reconstructions(trainer, originals))
    noisy = trainer.corrupt(originals, noise_seeds(range(len(originals)), trainer.plan.seed))
    return lambda: (originals, noisy, reconstructions(trainer, noisy))
