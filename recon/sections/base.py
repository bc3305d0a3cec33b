"""What every section of the settings shares. Imports no torch."""

from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator

__all__ = ["MIN_EDGE", "Range", "Section", "Size"]

# A list is as good as a tuple, and what JSON gives back. A set has no order.
_FromList = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
Size = int | Annotated[tuple[int, int], _FromList]
Range = Annotated[tuple[float, float], _FromList]

LARGEST = 2**53  # beyond, floats leave out whole numbers, and machines overflow
MIN_EDGE = 11  # pixels: the window of SSIM


class Section(BaseModel):
    """What all sections share: strict types, no unknown names, nothing changes after loading."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )  # Names may begin with model_.
    title: ClassVar[str]

    @field_validator("*")
    @classmethod
    def _fits(cls, value: object) -> object:
        if isinstance(value, str) and "\0" in value:
            raise ValueError("must hold no NUL character")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and abs(number) > LARGEST:
                raise ValueError(f"must be at most {LARGEST}")
        return value
