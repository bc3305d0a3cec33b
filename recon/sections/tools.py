"""Sweeps, latents, pictures of layers, and trackers. Imports no torch."""

from pathlib import PurePath
from typing import Any, Literal

from pydantic import Field, field_validator

from recon.sections.base import Section

__all__ = ["Latents", "Layers", "Sweep", "Tracking"]

TRACKERS = ("tensorboard", "wandb")


class Latents(Section):
    """What Export_latents.py writes: one row per image."""

    title = "Latents"
    model_path_latents: str = Field(
        "sample_models/model_auto_encoder_reconstruction_mse.pth",
        min_length=1,
        description="final model or checkpoint whose encoder is used",
    )
    folder_path_latents: str = Field(
        "input_images", min_length=1, description="every image below this folder is encoded"
    )
    latents_file: str = Field(
        "latents/features.csv",
        description="csv with Feature_1, ..., File_Path, or .npz, or .parquet",
    )
    latents_pooling: Literal["mean", "none"] = Field(
        "mean", description="average feature maps over height and width, or keep them whole"
    )

    @field_validator("latents_file")
    @classmethod
    def _is_table(cls, value: str) -> str:
        if PurePath(value).suffix.lower() not in (".csv", ".npz", ".parquet"):
            raise ValueError("must be a file name that ends in .csv, .npz or .parquet")
        return value


class Layers(Section):
    """What Show_layers.py draws: what every layer makes of some images."""

    title = "Layers"
    model_path_layers: str = Field(
        "sample_models/model_auto_encoder_reconstruction_mse.pth",
        min_length=1,
        description="final model or checkpoint",
    )
    folder_path_layers: str = Field(
        "input_images/test", min_length=1, description="folder of the images"
    )
    layers_output: str = Field("layer_pictures", min_length=1, description="folder for pictures")
    layers_images: int = Field(3, ge=1, description="how many images, evenly from the folder")
    layers_channels: Literal["mean", "all"] = Field(
        "mean", description="the mean over the channels of a layer, or its channels one by one"
    )


class Sweep(Section):
    """What Sweep.py tries; the best trial is the one of the lowest validation loss."""

    title = "Sweep"
    sweep_objective: Literal["mse", "ssim", "vae", "vqvae"] = Field(
        "mse", description="which training script's settings are swept"
    )
    sweep_space: dict[str, Any] = Field(
        {
            "learning_rate": [4e-3, 2e-3, 1e-3, 5e-4, 1e-4],
            "num_epochs": [10, 20, 40],
            "batch_size_train": [16, 32, 64],
            "latent_dim": [512, 1024, 2048],
        },
        min_length=1,
        description="settings and what to try: a list of values; (low, high) for a range, "
        '(low, high, "log") for one on a logarithmic scale',
    )
    sweep_trials: int = Field(20, ge=1, description="trials in all, over all machines")
    sweep_folder: str = Field(
        "sweeps", min_length=1, description="folder for trials, tables and pictures"
    )
    sweep_name: str = Field("sweep", min_length=1, description="of the study in its storage")
    sweep_storage: str = Field(
        "",
        description='where trials are recorded: any database URL of Optuna; "": SQLite in the '
        "folder",
    )
    sweep_pruning: bool = Field(True, description="end trials early that fall behind the median")


class Tracking(Section):
    """Loggers beside the csv."""

    title = "Tracking"
    tracking: str = Field(
        "", description='"tensorboard", "wandb", "tensorboard,wandb", or "" for the csv alone'
    )
    tracking_folder: str = Field("tracking", min_length=1, description="where they write")
    tracking_images: int = Field(
        8, ge=0, description="validation images whose reconstructions are logged every epoch"
    )
    wandb_project: str = Field("recon", min_length=1, description="project at Weights & Biases")
    wandb_mode: Literal["offline", "online"] = Field(
        "offline", description="offline: kept in tracking_folder, to be sent with wandb sync"
    )

    @field_validator("tracking")
    @classmethod
    def _known(cls, value: str) -> str:
        names = value.split(",") if value else []
        if any(name not in TRACKERS for name in names):
            raise ValueError('must be "tensorboard", "wandb", "tensorboard,wandb" or ""')
        return value
