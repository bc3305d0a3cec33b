"""Evaluation and its files. Imports no torch."""

from pydantic import Field, field_validator

from recon.sections.base import Section

__all__ = ["Evaluation"]


class Evaluation(Section):
    """What is evaluated, on which images, and where the results go."""

    title = "Evaluation"
    folder_path_test: str = Field(
        "input_images/test", min_length=1, description="every image below this folder is evaluated"
    )
    batch_size_test: int = Field(32, ge=1, description="images per step")
    model_path_mse: str = Field(
        "sample_models/model_auto_encoder_reconstruction_mse.pth",
        min_length=1,
        description="final model or checkpoint that Evaluation_MSE.py loads",
    )
    model_path_ssim: str = Field(
        "sample_models/model_auto_encoder_reconstruction_ssim.pth",
        min_length=1,
        description="final model or checkpoint that Evaluation_SSIM.py loads",
    )
    model_path_vae: str = Field(
        "checkpoints/VAE/Final_Model_AE_VAE.pth",
        min_length=1,
        description="final model or checkpoint that Evaluation_VAE.py loads",
    )
    model_path_vqvae: str = Field(
        "checkpoints/VQVAE/Final_Model_AE_VQVAE.pth",
        min_length=1,
        description="final model or checkpoint that Evaluation_VQVAE.py loads",
    )
    recon_output_mse: str = Field(
        "reconstructed_images/MSE/", min_length=1, description="folder for side-by-side pictures"
    )
    recon_output_ssim: str = Field(
        "reconstructed_images/SSIM/", min_length=1, description="folder for side-by-side pictures"
    )
    recon_output_vae: str = Field(
        "reconstructed_images/VAE/", min_length=1, description="folder for side-by-side pictures"
    )
    recon_output_vqvae: str = Field(
        "reconstructed_images/VQVAE/", min_length=1, description="folder for side-by-side pictures"
    )
    save_images: int | str = Field(
        "all",
        description='side-by-side pictures: "all", "none", or a number: so many of the worst, of '
        "the best, and of an even sample",
    )
    reconstruction_metrics_mse: str = Field(
        "reconstructed_images/validation_reconstruction_metrics_mse.xlsx",
        description="workbook; beside it the same rows as csv, and their record as json",
    )
    reconstruction_metrics_ssim: str = Field(
        "reconstructed_images/validation_reconstruction_metrics_ssim.xlsx",
        description="workbook; beside it the same rows as csv, and their record as json",
    )
    reconstruction_metrics_vae: str = Field(
        "reconstructed_images/validation_reconstruction_metrics_vae.xlsx",
        description="workbook; beside it the same rows as csv, and their record as json",
    )
    reconstruction_metrics_vqvae: str = Field(
        "reconstructed_images/validation_reconstruction_metrics_vqvae.xlsx",
        description="workbook; beside it the same rows as csv, and their record as json",
    )
    samples: int = Field(
        16, ge=0, description="new images, and steps between two, that Evaluation_VAE.py draws"
    )

    @field_validator("save_images")
    @classmethod
    def _is_choice(cls, value: int | str) -> int | str:
        if value not in ("all", "none") and not (isinstance(value, int) and value > 0):
            raise ValueError('must be "all", "none" or a number above 0')
        return value
