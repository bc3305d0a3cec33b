"""From settings to a trainer with its network, objective and data."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recon.data.augment import augment
from recon.data.noise import add_noise
from recon.data.ranges import NO_AUGMENTATION, AugmentationRanges
from recon.errors import UserError
from recon.models.registry import Builder, build_model
from recon.objectives.losses import Objective, Prediction
from recon.pipeline.features import further_terms
from recon.pipeline.images import Datasets, TrainingData, training_data
from recon.pipeline.models import (
    CHANNELS,
    ONE_SIZE,
    architecture_of,
    edges,
    form_of,
    options_of,
    preparation_of,
)
from recon.provenance import INITIAL, joined_members
from recon.settings import Settings
from recon.training.averaging import WeightAverage
from recon.training.checkpoint import hash_weights, load_strictly, read_model_file
from recon.training.muon import Muon
from recon.training.plan import Plan
from recon.training.runtime import Runtime
from recon.training.trainer import Trainer

__all__ = ["assemble"]

logger = logging.getLogger("recon")

PENALTIES = {"vae": "KL", "vqvae": "Commitment"}  # by objective, as the log names them

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda model, **options: torch.optim.Adam(model.parameters(), **options),
    "adamw": lambda model, **options: torch.optim.AdamW(model.parameters(), **options),
    "muon": Muon,
}


def assemble(
    settings: Settings,
    objective: str,
    auto_encoder: Builder,
    datasets: Datasets,
    runtime: Runtime,
    *,
    resumed: bool,
) -> tuple[Trainer, TrainingData]:
    """The trainer, and its data.

    Args:
        settings: Of the run.
        objective: "mse", "ssim", "vae" or "vqvae".
        auto_encoder: `Auto_encoder.AutoEncoder`.
        datasets: `datasets.ImageFolderDataset`.
        runtime: Of the run.
        resumed: Whether a checkpoint takes the place of initial weights.

    Raises:
        UserError: If the settings, the images and the machine do not fit together.
    """
    folder = Path(settings.of("model_saved_location", objective))
    criterion = _criterion(settings, objective, auto_encoder, runtime)
    augmentation = _augmentation(settings, objective)
    preparation = preparation_of(settings)
    architecture = architecture_of(settings, objective)
    model = build_model(architecture, form_of(preparation), options_of(settings), auto_encoder)
    data = training_data(settings, preparation, datasets, runtime, folder, resumed=resumed)
    _check_batches(settings, data, runtime)
    if settings.initial_weights and not resumed:
        data.record.update(_load_initial_weights(model, settings))
    model = runtime.place(model)
    # Codes move by leaps when dead ones are revived: their average is no code of any encoder.
    decay = 0.0 if architecture == "vqvae" else settings.weight_averaging
    sigma = settings.noise_std
    trainer = Trainer(
        model=runtime.spread(model, compile_model=settings.compile_model),
        objective=criterion,
        optimizer=_optimizer(settings, model),
        runtime=runtime,
        plan=_plan(settings, objective),
        train=data.train,
        validation=data.validation,
        prepare=preparation.normalize,
        augment=augmentation,
        corrupt=(lambda images, seeds: add_noise(images, sigma, seeds)) if sigma > 0 else None,
        average=WeightAverage(model, decay) if decay > 0 else None,
    )
    return trainer, data


def _check_batches(settings: Settings, data: TrainingData, runtime: Runtime) -> None:
    """Every process learns from every batch."""
    world, images = runtime.ranks.world, settings.images_per_epoch or data.record["train"]["images"]
    if world > 1 and min(settings.batch_size_train, images) < 2 * world:
        raise UserError(
            f"batch_size_train must be at least 2 for each of {world} processes, got "
            f"{settings.batch_size_train}, with {images} images in an epoch; raise it, or start "
            f"fewer processes"
        )


def _load_initial_weights(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """Load them, and tell by which weights and images they came about, for the record."""
    path = Path(settings.initial_weights)
    weights, provenance = read_model_file(path)
    load_strictly(model, weights, path)
    known = {**provenance.get("network", {}), **provenance.get("preparation", {})}
    now = {**options_of(settings)._asdict(), **preparation_of(settings)._asdict()}
    for name in ("activation", "input_normalization"):
        if name in known and known[name] != now[name]:
            logger.warning(
                "%s was trained with %s = %r, this run has %r", path, name, known[name], now[name]
            )
    data = provenance.get("data", {})
    before = [data[part] for part in (INITIAL, "train") if part in data]
    digests = joined_members(part.get("members") for part in before)
    return {INITIAL: {"weights_sha256": hash_weights(weights), "members": digests}}


def _criterion(
    settings: Settings, objective: str, auto_encoder: Builder, runtime: Runtime
) -> Objective:
    name = f"loss_weights_{objective}"
    further = further_terms(settings, objective, auto_encoder, runtime)
    channels = CHANNELS[settings.color_mode]
    try:
        criterion = Objective(getattr(settings, name), further, summed=objective == "vae")
        # A term that images for training or validation are too small for says so now.
        for size in {_window(settings, objective), edges(settings.tile_size)}:
            blank = torch.zeros(1, channels, *size, device=runtime.device)
            with torch.no_grad():
                criterion(Prediction(blank), blank)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError) as error:  # torch's own where a layer has nothing left.
        window = _window(settings, objective)
        raise UserError(
            f"{name}: {str(error).splitlines()[0]} (images are {window[0]} x {window[1]} in "
            f"training, by crop_size and tile_size)"
        ) from None
    return criterion


def _window(settings: Settings, objective: str) -> tuple[int, int]:
    """Height and width of what is trained on, in pixels."""
    tile = edges(settings.tile_size)
    if settings.crop_size is None or architecture_of(settings, objective) in ONE_SIZE:
        return tile
    crop = edges(settings.crop_size)
    return min(crop[0], tile[0]), min(crop[1], tile[1])


def _augmentation(settings: Settings, objective: str) -> Callable[[Tensor, int, Tensor], Tensor]:
    """A function of images in [0, 1], (N, C, H, W), a seed, and their places in the batch."""
    window = _window(settings, objective)
    prefix = "augment_"
    values = {
        name.removeprefix(prefix): getattr(settings, name)
        for name in Settings.model_fields
        if name.startswith(prefix)
    }
    ranges = AugmentationRanges(**values) if settings.augmentation else NO_AUGMENTATION
    most = 2 * min(window) - 1  # A blur mirrors half of its kernel at the border.
    if ranges.blurs and settings.augment_blur_kernel > most:
        raise UserError(
            f"augment_blur_kernel must be at most {most} for images of {window[0]} x {window[1]} "
            f"pixels in training, by crop_size and tile_size, got {settings.augment_blur_kernel}"
        )
    return lambda images, seed, places: augment(
        images, ranges, seed=seed, crop_size=window, places=places
    )


def _optimizer(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    return OPTIMIZERS[settings.optimizer](
        model,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def _plan(settings: Settings, objective: str) -> Plan:
    return Plan(
        epochs=settings.num_epochs,
        peak_learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        warmup_fraction=settings.warmup_fraction,
        gradient_clip=settings.gradient_clip,
        seed=settings.seed,
        stop_at_unreadable=settings.unreadable_images == "stop",
        accumulation=settings.accumulation,
        noise_fixed=settings.noise_fixed,
        penalty_weight=settings.beta if objective == "vae" else 1.0,
        penalty_warmup=settings.beta_warmup if objective == "vae" else 0.0,
        penalty_name=PENALTIES.get(objective, ""),
    )
