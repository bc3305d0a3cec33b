"""Random changes of the training images. Imports no torch."""

from pydantic import Field, field_validator

from recon.sections.base import Range, Section, Size

__all__ = ["Augmentation", "Denoising"]


class Augmentation(Section):
    """Random changes of the training images; what goes in is also what should come out."""

    title = "Augmentation"
    augmentation: bool = Field(True, description="on or off as a whole, but for crop_size")
    crop_size: Size | None = Field(
        128,
        description="pixels: train on random windows of this edge or (height, width), of whole "
        "tiles where these are smaller; None: on whole tiles, as dense and vae always do",
    )
    augment_probability: float = Field(
        0.6, ge=0, le=1, description="of any change but flips and crops, which every image gets"
    )
    augment_rotation: float = Field(45.0, ge=0, le=180, description="degrees, either way")
    augment_horizontal_flip: float = Field(0.5, ge=0, le=1, description="probability")
    augment_vertical_flip: float = Field(0.5, ge=0, le=1, description="probability")
    augment_affine_rotation: float = Field(10.0, ge=0, le=180, description="degrees, either way")
    augment_translate: float = Field(0.0, ge=0, le=1, description="part of the edge, either way")
    augment_scale: Range = Field((0.6, 1.7), description="factor, lowest and highest")
    augment_shear: float = Field(0.0, ge=0, le=89, description="degrees, either way")
    augment_brightness: float = Field(0.2, ge=0, le=1, description="factor 1 - b to 1 + b")
    augment_contrast: float = Field(0.2, ge=0, le=1, description="factor 1 - c to 1 + c")
    augment_saturation: float = Field(0.2, ge=0, le=1, description="factor 1 - s to 1 + s")
    augment_hue: float = Field(0.05, ge=0, le=0.5, description="turns of the colour wheel")
    augment_blur_kernel: int = Field(5, ge=1, description="pixels, odd")
    augment_blur_sigma: Range = Field((0.1, 0.8), description="pixels; (0, 0): none")
    augment_stain: float = Field(
        0.25, ge=0, le=1, description="strength of the haematoxylin and eosin variation; 0: none"
    )

    @field_validator("augment_blur_kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd")
        return value


class Denoising(Section):
    """Gaussian noise on what the network is fed; the target stays clean."""

    title = "Denoising"
    noise_std: float = Field(
        0.0, ge=0, description="standard deviation of the noise in training, in intensities 0..1"
    )
    noise_fixed: bool = Field(
        False, description="the same noise on an image in every epoch; False: new every time"
    )
    noise_std_test: float | None = Field(
        None, ge=0, description="of the noise in evaluation; None: as the model was trained"
    )
    noise_sweep: tuple[float, ...] = Field(
        (), description="further deviations to evaluate, drawn as a curve"
    )

    @field_validator("noise_sweep", mode="before")
    @classmethod
    def _as_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("noise_sweep")
    @classmethod
    def _not_negative(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(sigma < 0 for sigma in value):
            raise ValueError("must hold deviations of at least 0")
        return value
