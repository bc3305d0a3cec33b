"""What a sweep tries, checked before anything is written."""

import logging
from collections.abc import Mapping
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from recon.analysis.sweep import Dimension
from recon.errors import UserError
from recon.pipeline.models import OWN_ARCHITECTURE
from recon.sections import Augmentation, Networks
from recon.settings import Settings
from recon.sources import Source, merge

__all__ = ["leave_out_idle", "read_space"]

logger = logging.getLogger("recon")

PLACE = "sweep_space"

# What changes the weights, but not what the validation loss means: with other images, another
# objective or another penalty, the lowest loss would not be the best one.
SWEPT = {
    *Augmentation.model_fields, *Networks.model_fields, "num_epochs", "batch_size_train",
    "images_per_epoch", "balance_folders", "input_normalization", "architecture", "optimizer",
    "learning_rate", "weight_decay", "schedule", "warmup_fraction", "weight_averaging",
    "initial_weights", "gradient_clip", "precision", "noise_fixed",
} - {"codebook", "commitment"}  # fmt: skip

# Settings that only some networks know.
KNOWN_TO = {
    "latent_dim": ("dense", "vae"), "residual_blocks": ("residual",),
    "latent_channels": ("residual",), "activation": ("residual",), "unet_width": ("unet",),
    "crop_size": ("auto_encoder", "residual", "unet", "vqvae"),
    "codebook_size": ("vqvae",), "code_dim": ("vqvae",), "codebook_decay": ("vqvae",),
}  # fmt: skip

PRIMITIVE = (bool, int, float, str, type(None))  # what a database holds as it is


def read_space(space: Mapping[str, Any], objective: str) -> dict[str, Dimension]:
    """Check the setting `sweep_space`.

    Args:
        space: Settings and what to try.
        objective: Of the sweep.

    Raises:
        UserError: If a setting is unknown or cannot be swept, or refuses one of its values.
    """
    return {name: _dimension(name, options, objective) for name, options in space.items()}


def leave_out_idle(space: dict[str, Dimension], architecture: str) -> dict[str, Dimension]:
    """The space without what the network does not know: each of its values would be the same.

    Args:
        space: What `read_space` gave.
        architecture: Of the sweep.

    Raises:
        UserError: If nothing is left.
    """
    if "architecture" in space:
        return space
    idle = [name for name in space if architecture not in KNOWN_TO.get(name, (architecture,))]
    if idle:
        logger.info("Left out: %s, unknown to architecture %r", ", ".join(idle), architecture)
    if len(idle) == len(space):
        raise UserError(f"sweep_space must hold a setting that {architecture!r} knows, got {idle}")
    return {name: dimension for name, dimension in space.items() if name not in idle}


def _dimension(name: str, options: Any, objective: str) -> Dimension:
    if name not in Settings.model_fields:
        _check(name, options)  # Raises, naming the nearest setting.
    if name not in SWEPT or (name == "architecture" and objective in OWN_ARCHITECTURE):
        raise UserError(
            f"sweep_space must hold settings that change what is learnt but not what the "
            f"validation loss of {objective!r} measures, got {name!r}"
        )
    if isinstance(options, list):
        return _choices(name, options)
    if isinstance(options, tuple) and len(options) in (2, 3):
        return _range(name, *options)
    raise _refusal(name, 'a list of values, (low, high) or (low, high, "log")', options)


def _choices(name: str, values: list[Any]) -> Dimension:
    checked = tuple(_check(name, value) for value in values)
    spelt = [value if isinstance(value, PRIMITIVE) else repr(value) for value in checked]
    if not spelt or len(set(spelt)) < len(spelt):
        raise _refusal(name, "a list of one or more values, each of them once", values)
    return Dimension(CategoricalDistribution(spelt), checked)


def _range(name: str, low: Any, high: Any, scale: Any = None) -> Dimension:
    options = (low, high) if scale is None else (low, high, scale)
    if any(type(bound) not in (int, float) for bound in (low, high)):
        raise _refusal(name, "(low, high) of numbers, or a list of values", options)
    for bound in (low, high):
        _check(name, bound)
    if not low < high:
        raise _refusal(name, "(low, high) with low below high", options)
    if scale not in (None, "log") or (scale == "log" and low <= 0):
        raise _refusal(name, '(low, high) or, with low above 0, (low, high, "log")', options)
    # A setting of fractions takes 0.5 for what a range of whole numbers leaves out.
    whole = isinstance(low, int) and isinstance(high, int)
    whole = whole and Settings.model_fields[name].annotation is not float
    log = scale == "log"
    if whole:
        return Dimension(IntDistribution(low, high, log=log))
    return Dimension(FloatDistribution(low, high, log=log))


def _check(name: str, value: Any) -> Any:
    """The value as the setting takes it."""
    return getattr(merge(Settings, [Source(PLACE, {name: value})]), name)


def _refusal(name: str, rule: str, options: Any) -> UserError:
    return UserError(f"sweep_space[{name!r}] must be {rule}, got {options!r}")
