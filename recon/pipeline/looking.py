"""Look at single reconstructions, as the notebook does."""

import json
from collections.abc import Iterable
from pathlib import Path

from recon.data.loaders import to_unit_range
from recon.evaluation.evaluator import Corrupt
from recon.evaluation.figures import ReconstructionRow, to_picture
from recon.gpus import select_gpus
from recon.models.registry import Builder
from recon.objectives.metrics import image_metrics
from recon.pipeline.denoising import corruption, noise_of
from recon.pipeline.images import Datasets, FolderDataset, open_folder
from recon.pipeline.models import LoadedModel, load_model
from recon.settings import Settings
from recon.training.checkpoint import sidecar
from recon.training.runtime import start_runtime

__all__ = ["is_of_another_run", "look_at", "open_images", "open_model"]


def open_model(path: str | Path, settings: Settings, auto_encoder: Builder) -> LoadedModel:
    """Load a model on the device that the settings choose.

    Args:
        path: Of a final model or checkpoint.
        settings: Of the run.
        auto_encoder: `Auto_encoder.AutoEncoder`.

    Raises:
        UserError: If it is missing, damaged or of another architecture.
    """
    select_gpus(settings.GPUs)
    runtime = start_runtime(
        settings.GPUs, settings.precision, seed=settings.seed, deterministic=settings.deterministic
    )
    return load_model(Path(path), settings, auto_encoder, runtime)


def is_of_another_run(log: str | Path, model: LoadedModel) -> bool:
    """Whether the record beside the log of a training says that it is not this model's.

    Args:
        log: The csv.
        model: An opened model.
    """
    try:
        record = json.loads(sidecar(Path(log)).read_text(encoding="utf-8"))
        dates = {record["date"], model.provenance["date"]}  # when the run began, or went on
    except (OSError, ValueError, LookupError, TypeError):
        return False  # Not known.
    return len(dates) > 1


def open_images(folder: str | Path, model: LoadedModel, datasets: Datasets) -> FolderDataset:
    """The images below a folder, prepared as the model was trained.

    Raises:
        UserError: If there are none.
    """
    return open_folder(datasets, "folder", str(folder), model.preparation)


def look_at(
    model: LoadedModel, images: FolderDataset, indices: Iterable[int], settings: Settings
) -> list[ReconstructionRow]:
    """Reconstruct and measure some of the images, one by one, with the noise of an evaluation.

    Args:
        model: An opened model.
        images: Opened images.
        indices: Which of them.
        settings: With `noise_std_test`, or else the noise that the model was trained with.
    """
    corrupt = corruption(noise_of(settings, model), settings.seed)
    return [_look_at(model, images, index, corrupt) for index in indices]


def _look_at(
    model: LoadedModel, images: FolderDataset, index: int, corrupt: Corrupt
) -> ReconstructionRow:
    original = to_unit_range(images[index][None].to(model.runtime.device))
    fed = corrupt(original, [index])
    reconstruction = model.reconstruct(fed).clamp(0, 1)
    mse, psnr, ssim = (values.item() for values in image_metrics(reconstruction, original))
    name = images.paths.relative(index)
    noisy = None if fed is original else to_picture(fed)[0]
    shown = to_picture(original)[0], to_picture(reconstruction)[0]
    return ReconstructionRow(name, shown[0], shown[1], mse, psnr, ssim, noisy)
