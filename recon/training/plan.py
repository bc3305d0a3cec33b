"""How to train, and on what."""

from collections.abc import Callable
from typing import NamedTuple

from recon.data.loaders import Batches, Loader

__all__ = ["Plan", "Split"]


class Plan(NamedTuple):
    """How to minimise."""

    epochs: int
    peak_learning_rate: float
    schedule: str
    warmup_fraction: float
    gradient_clip: float  # 0: none
    seed: int
    stop_at_unreadable: bool
    accumulation: int = 1  # pieces that a batch is computed in
    noise_fixed: bool = False  # an image bears the same noise in every epoch
    penalty_weight: float = 1.0
    penalty_warmup: float = 0.0  # part of all steps in which that weight rises from 0
    penalty_name: str = ""  # under which it is logged; "": not at all


class Split(NamedTuple):
    """One side of the data."""

    loader: Loader
    batches: Batches
    path_of: Callable[[int], str]
