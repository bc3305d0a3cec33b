"""What every layer of a network makes of images, and arrays to look at it.

Images are (N, C, H, W) float tensors, prepared as the network expects them. The maps of one image
are (C, h, w), or (F,) where a layer gives a vector; pictures are (h, w).
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.exposure import equalize_hist, rescale_intensity
from torch import Tensor, nn

__all__ = [
    "CUT",
    "channel_grid",
    "equalise",
    "feature_maps",
    "fold",
    "grey_levels",
    "mean_over_channels",
    "stretch",
]

# They rescale or rearrange what another layer gives, and are part of its picture.
PASSED_OVER = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.dropout._DropoutNd,
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Sequential,  # without layers
)
CUT = 2.0  # per cent of the values at either end that a stretch lets go
MIDDLE = 0.5  # grey of a picture that is the same everywhere

Picture = NDArray[np.float32]


def feature_maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The output of every layer: of the innermost modules, in the order in which they run.

    Left out are normalisations, dropout and what only changes the shape, and code numbers. A module
    that runs again gives `name (2)`.

    Args:
        model: The plain network, unwrapped; it keeps no hook, whatever happens.
        images: (N, C, H, W).

    Returns:
        From the name of a module, as `named_modules` gives it, to (N, ...) float32.
    """
    maps: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            runs = 1 + sum(known.partition(" (")[0] == name for known in maps)
            # A copy: the next layer may compute in place.
            maps[name if runs == 1 else f"{name} ({runs})"] = output.detach().float().clone()

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
        for name, module in model.named_modules()
        if not any(module.children()) and not isinstance(module, PASSED_OVER)
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def mean_over_channels(maps: Tensor) -> Picture:
    """One picture of a layer, (h, w): the mean of its maps, or its vector folded to lines.

    Args:
        maps: (C, h, w) or (F,).

    Raises:
        ValueError: Another shape.
    """
    if maps.ndim == 1:
        return fold(maps)
    if maps.ndim != 3:
        raise ValueError(f"maps must be (C, h, w) or (F,), got {tuple(maps.shape)}")
    return _as_array(maps.float().mean(0))


def fold(vector: Tensor) -> Picture:
    """Write a vector, (F,), line by line into a rectangle of no more than twice as wide as high.

    Where none of the kind holds F numbers, the last line ends in NaN.
    """
    count = len(vector)
    least = math.isqrt(count - 1) + 1
    whole = (width for width in range(least, math.isqrt(2 * count) + 1) if count % width == 0)
    width = next(whole, least)
    folded = np.full((-(-count // width), width), np.nan, np.float32)
    folded.flat[:count] = _as_array(vector)
    return folded


def channel_grid(maps: Tensor) -> Picture:
    """Every channel beside the others, with lines of NaN between them.

    Args:
        maps: (C, h, w); or a vector, (F,), which is folded.

    Returns:
        (rows (h + 1) - 1, columns (w + 1) - 1).
    """
    if maps.ndim == 1:
        return fold(maps)
    count, height, width = maps.shape
    columns = math.ceil(math.sqrt(count * height / width))  # as wide as high
    rows = -(-count // columns)
    tiles = np.full((rows * columns, height + 1, width + 1), np.nan, np.float32)
    tiles[:count, :height, :width] = _as_array(maps)
    lines = tiles.reshape(rows, columns, height + 1, width + 1).transpose(0, 2, 1, 3)
    # (rows, h + 1, columns, w + 1) to one picture
    return lines.reshape(rows * (height + 1), columns * (width + 1))[:-1, :-1]


def grey_levels(picture: Picture) -> NDArray[np.uint8]:
    """From the lowest value, black, to the highest, white."""
    return stretch(picture, cut=0)


def stretch(picture: Picture, *, cut: float = CUT) -> NDArray[np.uint8]:
    """Linear contrast: black and white lie where so many per cent of the values are beyond.

    Args:
        picture: (h, w) of any range.
        cut: Per cent at either end.
    """
    low, high = np.percentile(picture, (cut, 100 - cut))
    if not low < high:
        return _levels(np.full(picture.shape, MIDDLE))
    return _levels(rescale_intensity(picture, (low, high), (0.0, 1.0)))  # type: ignore[no-untyped-call]


def equalise(picture: Picture) -> NDArray[np.uint8]:
    """Histogram equalisation: about as many pixels of each grey.

    Args:
        picture: (h, w) of any range.
    """
    if picture.min() == picture.max():
        return _levels(np.full(picture.shape, MIDDLE))
    return _levels(equalize_hist(picture))  # type: ignore[no-untyped-call]


def _levels(values: NDArray[Any]) -> NDArray[np.uint8]:
    levels: NDArray[np.uint8] = np.rint(values * 255).astype(np.uint8)
    return levels


def _as_array(values: Tensor) -> Picture:
    array: Picture = values.detach().float().cpu().numpy()
    return array
