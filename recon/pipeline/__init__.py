"""Training and evaluation as a whole: the only room that composes the others."""

from recon.pipeline.evaluating import run_evaluation
from recon.pipeline.images import Datasets
from recon.pipeline.layers import look_at_channels, look_inside
from recon.pipeline.looking import is_of_another_run, look_at, open_images, open_model
from recon.pipeline.models import LoadedModel
from recon.pipeline.training import run_training

__all__ = [
    "Datasets",
    "LoadedModel",
    "is_of_another_run",
    "look_at",
    "look_at_channels",
    "look_inside",
    "open_images",
    "open_model",
    "run_evaluation",
    "run_training",
]
