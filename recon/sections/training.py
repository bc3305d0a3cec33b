"""Devices, training and its files. Imports no torch."""

import re
from pathlib import PurePath

from pydantic import Field, field_validator

from recon.sections.base import Section, Size

__all__ = ["System", "Training"]


class System(Section):
    """Devices and processes."""

    title = "System"
    GPUs: str = Field(
        "0",
        description='GPU numbers as nvidia-smi lists them: "0" or "0,1" (several: DataParallel); '
        '"" is the CPU; "all" is whatever CUDA_VISIBLE_DEVICES shows already',
    )
    num_workers: int = Field(
        2, ge=0, description="processes that read images; 0: the main process reads"
    )

    @field_validator("GPUs")
    @classmethod
    def _numbers(cls, value: str) -> str:
        if not re.fullmatch(r"(all|\d+(,\d+)*)?", value):
            raise ValueError('must be numbers such as "0" or "0,1", "" for the CPU, or "all"')
        return value


class Training(Section):
    """What is trained on, for how long, and where it is written."""

    title = "Training"
    folder_path_train: str = Field(
        "input_images/train",
        min_length=1,
        description="every image below this folder is trained on, however deep",
    )
    tile_size: Size = Field(
        256,
        description="pixels: images are resized to this edge, or to (height, width)",
    )
    num_epochs: int = Field(100, ge=1, description="epochs")
    batch_size_train: int = Field(16, ge=1, description="images per step, over all GPUs together")
    images_per_epoch: int = Field(0, ge=0, description="images drawn in an epoch; 0: each once")
    balance_folders: bool = Field(False, description="draw equally often from every folder")
    model_saved_location_mse: str = Field(
        "checkpoints/MSE", min_length=1, description="folder for the checkpoints of the MSE loss"
    )
    model_saved_location_ssim: str = Field(
        "checkpoints/SSIM", min_length=1, description="folder for the checkpoints of the SSIM loss"
    )
    model_saved_location_vae: str = Field(
        "checkpoints/VAE", min_length=1, description="folder for the checkpoints of the VAE"
    )
    model_saved_location_vqvae: str = Field(
        "checkpoints/VQVAE", min_length=1, description="folder for the checkpoints of the VQ-VAE"
    )
    save_interval: int = Field(5, ge=1, description="epochs between the checkpoints that are kept")
    keep_checkpoints: int = Field(0, ge=0, description="how many of them to keep; 0: all")
    training_loss_file_mse: str = Field(
        "training_loss_mse.csv", min_length=1, description="csv of every epoch, MSE loss"
    )
    training_loss_file_ssim: str = Field(
        "training_loss_ssim.csv", min_length=1, description="csv of every epoch, SSIM loss"
    )
    training_loss_file_vae: str = Field(
        "training_loss_vae.csv", min_length=1, description="csv of every epoch, VAE"
    )
    training_loss_file_vqvae: str = Field(
        "training_loss_vqvae.csv", min_length=1, description="csv of every epoch, VQ-VAE"
    )

    @field_validator(
        "training_loss_file_mse",
        "training_loss_file_ssim",
        "training_loss_file_vae",
        "training_loss_file_vqvae",
    )
    @classmethod
    def _is_csv(cls, value: str) -> str:
        if PurePath(value).suffix.lower() != ".csv":  # Its curve and its record lie beside it.
            raise ValueError("must be a file name that ends in .csv")
        return value
