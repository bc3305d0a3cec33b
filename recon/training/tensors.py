"""Which tensors of a file are taken: those that are nothing but their values."""

import torch
from torch import Tensor

__all__ = ["plain_tensor"]

# What networks are trained in and converted to; others, torch cannot even compare or convert.
DTYPES = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8,
    torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2,
}  # fmt: skip


def plain_tensor(value: object) -> Tensor | None:
    """A tensor without gradient and attributes; None for anything but a plain one on the CPU."""
    if not isinstance(value, Tensor):
        return None
    bare = Tensor.detach(value)  # Of the class: a file may put anything in an attribute's place.
    plain = (
        type(bare) is Tensor
        and not bare.is_nested
        and bare.layout is torch.strided
        and bare.dtype in DTYPES
        and bare.device.type == "cpu"
        and not (bare.is_neg() or bare.is_conj())  # Views whose bytes are not their values.
    )
    return bare if plain else None
