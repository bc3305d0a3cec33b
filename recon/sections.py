"""Every setting, its type, range, unit and default. Imports no torch.

Each section is a heading of `--help` and of the README's table.
"""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

__all__ = ["MIN_EDGE", "SECTIONS", "Range", "Section", "Size"]

# A list is as good as a tuple, and what JSON gives back. A set has no order.
_FromList = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
Size = int | Annotated[tuple[int, int], _FromList]
Range = Annotated[tuple[float, float], _FromList]

MIN_EDGE = 11  # pixels: the window of SSIM


class Section(BaseModel):
    """What all sections share: strict types, no unknown names, nothing changes after loading."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )  # Names may begin with model_.
    title: ClassVar[str]


class System(Section):
    """Devices and processes."""

    title = "System"
    GPUs: str = Field(
        "0",
        description='GPU numbers as nvidia-smi lists them: "0" or "0,1" (several: DataParallel); '
        '"" is the CPU; "all" is whatever CUDA_VISIBLE_DEVICES shows already',
    )
    num_workers: int = Field(2, ge=0, description="processes that read images; 0: none besides")

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
    save_interval: int = Field(5, ge=1, description="epochs between the checkpoints that are kept")
    keep_checkpoints: int = Field(0, ge=0, description="how many of them to keep; 0: all")
    training_loss_file_mse: str = Field(
        "training_loss_mse.csv", min_length=1, description="csv of every epoch, MSE loss"
    )
    training_loss_file_ssim: str = Field(
        "training_loss_ssim.csv", min_length=1, description="csv of every epoch, SSIM loss"
    )


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
    recon_output_mse: str = Field(
        "reconstructed_images/MSE/", min_length=1, description="folder for side-by-side pictures"
    )
    recon_output_ssim: str = Field(
        "reconstructed_images/SSIM/", min_length=1, description="folder for side-by-side pictures"
    )
    save_images: int | str = Field(
        "all",
        description='side-by-side pictures: "all", "none", or a number: so many of the worst, of '
        "the best, and of an even sample",
    )
    reconstruction_metrics_mse: str = Field(
        "reconstructed_images/validation_reconstruction_metrics_mse.xlsx",
        description="workbook; the same rows are written beside it as csv",
    )
    reconstruction_metrics_ssim: str = Field(
        "reconstructed_images/validation_reconstruction_metrics_ssim.xlsx",
        description="workbook; the same rows are written beside it as csv",
    )

    @field_validator("save_images")
    @classmethod
    def _is_choice(cls, value: int | str) -> int | str:
        if value not in ("all", "none") and not (isinstance(value, int) and value > 0):
            raise ValueError('must be "all", "none" or a number above 0')
        return value


class Images(Section):
    """How image files become what the network is fed."""

    title = "Images"
    cache: Literal["memory", "disk", "none"] = Field(
        "memory",
        description="where decoded tiles are kept, so that only the first epoch decodes them",
    )
    cache_folder: str = Field(".tile_cache", min_length=1, description="for cache = 'disk'")
    cache_limit_gb: float = Field(
        4.0, ge=0, description="gigabytes: tiles beyond it are decoded every time"
    )
    color_mode: Literal["rgb", "grey"] = Field("rgb", description="three channels or one")
    intensity_range: Range | None = Field(
        None,
        description="(lowest, highest) value that files deeper than 8 bit map to 0 and 1; "
        "None: 16-bit files by 65535, float files within 0..1 as they are, others refused",
    )
    input_normalization: Literal["imagenet", "none"] = Field(
        "imagenet",
        description="of the network's input alone, stored with the weights; targets, losses and "
        "metrics stay in 0..1",
    )
    unreadable_images: Literal["skip", "stop"] = Field(
        "skip", description="skip them, counted and listed at the end, or stop the run"
    )
    image_check_file: str = Field(
        "image_check.xlsx",
        description="workbook that Check_images.py writes; the same rows are written beside it "
        "as csv",
    )


class Validation(Section):
    """Images that are never trained on and choose the best checkpoint."""

    title = "Validation"
    folder_path_validation: str = Field(
        "", description='folder of validation images; "": split them off the training folder'
    )
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="part of the training images to split off; 0: none"
    )
    validation_group: str = Field(
        "folder",
        min_length=1,
        description='what the split keeps together: "folder", "image" (neighbouring tiles leak '
        "from one side to the other), or a regular expression on the path whose first group, "
        "or whole match, names the slide or patient",
    )

    @field_validator("validation_group")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"must be a valid regular expression ({error})") from None
        return value


class Optimisation(Section):
    """The network, its objective and how it is minimised."""

    title = "Network and optimisation"
    architecture: str = Field("auto_encoder", description="network, by its name in the registry")
    loss_weights_mse: dict[str, float] = Field(
        {"mse": 1.0}, description="terms of the MSE objective and their weights"
    )
    loss_weights_ssim: dict[str, float] = Field(
        {"ssim": 1.0},
        description="terms of the SSIM objective and their weights, "
        "such as {'ssim': 0.85, 'l1': 0.15}",
    )
    optimizer: Literal["adam", "adamw"] = Field(
        "adamw", description="adamw decays weights apart from the gradient"
    )
    learning_rate: float = Field(1e-3, gt=0, description="peak, per step")
    weight_decay: float = Field(1e-5, ge=0, description="per step")
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
        "saved as the model; 0: the weights of the last step",
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

    @field_validator("loss_weights_mse", "loss_weights_ssim")
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
        "float16 on GPUs and float32 on CPUs; losses and metrics are float32 always",
    )
    compile_model: bool = Field(
        False, description="torch.compile: a minute or more at the start, faster steps on GPUs"
    )
    deterministic: bool = Field(
        False, description="the same bits on the same machine, at some cost in speed"
    )


class Augmentation(Section):
    """Random changes of the training images; what goes in is also what should come out."""

    title = "Augmentation"
    augmentation: bool = Field(True, description="on or off as a whole")
    crop_size: Size | None = Field(
        None,
        description="pixels: train on random windows of this edge or (height, width); None: whole",
    )
    augment_probability: float = Field(
        1.0, ge=0, le=1, description="of any change but flips and crops, which every image gets"
    )
    augment_rotation: float = Field(45.0, ge=0, le=180, description="degrees, either way")
    augment_horizontal_flip: float = Field(0.5, ge=0, le=1, description="probability")
    augment_vertical_flip: float = Field(0.5, ge=0, le=1, description="probability")
    augment_affine_rotation: float = Field(10.0, ge=0, le=180, description="degrees, either way")
    augment_translate: float = Field(0.1, ge=0, le=1, description="part of the edge, either way")
    augment_scale: Range = Field((0.9, 1.1), description="factor, lowest and highest")
    augment_shear: float = Field(5.0, ge=0, le=89, description="degrees, either way")
    augment_brightness: float = Field(0.2, ge=0, le=1, description="factor 1 - b to 1 + b")
    augment_contrast: float = Field(0.2, ge=0, le=1, description="factor 1 - c to 1 + c")
    augment_saturation: float = Field(0.2, ge=0, le=1, description="factor 1 - s to 1 + s")
    augment_hue: float = Field(0.1, ge=0, le=0.5, description="turns of the colour wheel")
    augment_blur_kernel: int = Field(5, ge=1, description="pixels, odd")
    augment_blur_sigma: Range = Field((0.1, 2.0), description="pixels; (0, 0): none")
    augment_stain: float = Field(
        0.0, ge=0, le=1, description="strength of the haematoxylin and eosin variation; 0: none"
    )

    @field_validator("augment_blur_kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd")
        return value


SECTIONS: tuple[type[Section], ...] = (
    System, Training, Evaluation, Images, Validation, Optimisation, Arithmetic, Augmentation,
)  # fmt: skip
