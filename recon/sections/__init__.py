"""Every setting, its type, range, unit and default. Imports no torch.

Each section is a heading of `--help` and of the README's table.
"""

from recon.sections.augmentation import Augmentation, Denoising
from recon.sections.base import MIN_EDGE, Range, Section, Size
from recon.sections.evaluation import Evaluation
from recon.sections.images import Images, Validation
from recon.sections.learning import Arithmetic, Optimisation
from recon.sections.networks import Networks
from recon.sections.tools import Latents, Layers, Sweep, Tracking
from recon.sections.training import System, Training

__all__ = [
    "MIN_EDGE", "SECTIONS", "Arithmetic", "Augmentation", "Denoising", "Evaluation", "Images",
    "Latents", "Layers", "Networks", "Optimisation", "Range", "Section", "Size", "Sweep", "System",
    "Tracking", "Training", "Validation",
]  # fmt: skip

SECTIONS: tuple[type[Section], ...] = (
    System, Training, Evaluation, Images, Validation, Networks, Optimisation, Arithmetic,
    Augmentation, Denoising, Latents, Layers, Sweep, Tracking,
)  # fmt: skip
