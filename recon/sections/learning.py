"""The objective, how it is minimised, and in what arithmetic. Imports no torch."""

from typing import Literal

from pydantic import Field, field_validator

from recon.sections.base import Section

__all__ = ["Arithmetic", "Optimisation"]


class Optimisation(Section):
    """The network, its objective and how it is minimised."""

    title = "Network and optimisation"
    architecture: Literal["auto_encoder", "residual", "dense", "unet", "vae", "vqvae"] = Field(
        "auto_encoder",
        description="network that Training_MSE.py and Training_SSIM.py train; those of a VAE and "
        "of a VQ-VAE are chosen by their scripts",
    )
    loss_weights_mse: dict[str, float] = Field(
        {"mse": 1.0},
        description="terms of the MSE objective and their weights: mse, l1, ssim, ms_ssim, bce, "
        "feature",
    )
    loss_weights_ssim: dict[str, float] = Field(
        {"ssim": 1.0},
        description="terms of the SSIM objective and their weights, "
        "such as {'ssim': 0.85, 'l1': 0.15}",
    )
    loss_weights_vae: dict[str, float] = Field(
        {"bce": 1.0}, description="terms of the VAE's reconstruction, each summed over pixels"
    )
    loss_weights_vqvae: dict[str, float] = Field(
        {"mse": 1.0}, description="terms of the VQ-VAE's reconstruction and their weights"
    )
    beta: float = Field(
        1.0, ge=0, description="weight of the VAE's divergence from its prior, summed likewise"
    )
    beta_warmup: float = Field(
        0.0, ge=0, le=1, description="part of all steps in which beta rises from 0"
    )
    feature_network: str = Field(
        "vgg19",
        min_length=1,
        description='of the term "feature": "vgg19", or the path of a model file of this project',
    )
    feature_layer: str = Field(
        "",
        description='the layer whose output is compared, such as "features.11" or "encoder.8"; '
        '"": features.11 of vgg19, the latent of a model file',
    )
    feature_weights: str = Field(
        "", description='file of the weights of vgg19; "": torchvision downloads them'
    )
    optimizer: Literal["adam", "adamw", "muon"] = Field(
        "muon",
        description="muon steps alike in all directions of a weight matrix, which takes more "
        "arithmetic and learns far more from it; adamw decays weights apart from the gradient; "
        "these want a learning_rate of about 4e-4 where muon wants 4e-3",
    )
    # Beyond these bounds a step is more than float32 can hold, also of both together.
    learning_rate: float = Field(
        4e-3, gt=0, le=1e30, description="its highest value; warm-up and schedule lie below"
    )
    weight_decay: float = Field(1e-5, ge=0, le=1e4, description="per step")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="learning rate after the warm-up: cosine to zero, or constant"
    )
    warmup_fraction: float = Field(
        0.05, ge=0, lt=1, description="part of all steps in which the learning rate rises from 0"
    )
    weight_averaging: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="decay, per step, of the running average of the weights that is validated and "
        "saved as the model; 0: the weights of the last step, as always for vqvae",
    )
    initial_weights: str = Field(
        "", description='a model file to start from, such as a sample model; "": at random'
    )
    accumulation: int = Field(
        1, ge=1, description="pieces that each batch is computed in, to need less memory"
    )
    gradient_clip: float = Field(
        1.0, ge=0, description="largest Euclidean norm of the gradient; 0: no limit"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of weights, order, split and augmentation")
    resume: str = Field(
        "",
        description='"": start anew; "auto": go on with the newest checkpoint in the '
        "folder of checkpoints; or the path of a checkpoint",
    )

    @field_validator(
        "loss_weights_mse", "loss_weights_ssim", "loss_weights_vae", "loss_weights_vqvae"
    )
    @classmethod
    def _weights_count(cls, value: dict[str, float]) -> dict[str, float]:
        if any(weight < 0 for weight in value.values()) or not sum(value.values()) > 0:
            raise ValueError("must hold weights of at least 0 whose sum is above 0")
        return value


class Arithmetic(Section):
    """Precision, compilation and determinism."""

    title = "Arithmetic"
    precision: Literal["auto", "bfloat16", "float16", "tf32", "float32"] = Field(
        "auto",
        description="of the network; auto: bfloat16 where the device computes it natively, else "
        "float16 on GPUs and float32 on CPUs; losses and metrics are float32 or better always",
    )
    compile_model: bool = Field(
        False, description="torch.compile: a minute or more at the start, faster steps on GPUs"
    )
    deterministic: bool = Field(
        False, description="the same bits on the same machine, at some cost in speed"
    )
