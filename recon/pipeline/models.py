"""Open a trained model as it was trained."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recon.errors import UserError
from recon.models.folding import fold_normalizations
from recon.models.output import Output, joined, reconstruct
from recon.models.preparation import Preparation
from recon.models.registry import Builder, Form, Options, build_model
from recon.settings import Settings, Size
from recon.training.checkpoint import hash_weights, load_strictly, read_model_file
from recon.training.runtime import Runtime

__all__ = [
    "LoadedModel",
    "architecture_of",
    "edges",
    "form_of",
    "load_model",
    "options_of",
    "preparation_of",
]

logger = logging.getLogger("recon")

CHANNELS = {"rgb": 3, "grey": 1}
OWN_ARCHITECTURE = {"vae": "vae", "vqvae": "vqvae"}  # objectives that are one with their network


class LoadedModel(NamedTuple):
    """A trained network, ready to reconstruct."""

    model: nn.Module
    preparation: Preparation
    provenance: dict[str, Any]  # empty where nothing is recorded
    runtime: Runtime
    one_by_one: bool = False  # so that no bit depends on how many images come together
    weights_sha256: str = ""  # as they are in the file

    def reconstruct(self, images: Tensor) -> Tensor:
        """Reconstruct images in [0, 1], (N, C, H, W), on this model's device."""
        return self.output(images).reconstruction

    def prepared(self, images: Tensor) -> Tensor:
        """The network's input for images in [0, 1], (N, C, H, W) both."""
        return self.preparation.normalize(images).contiguous(memory_format=torch.channels_last)

    def output(self, images: Tensor) -> Output:
        """All that the network returns for images in [0, 1], (N, C, H, W), on its device."""
        if self.one_by_one and len(images) > 1:
            return joined([self.output(images[i : i + 1]) for i in range(len(images))])
        with torch.no_grad(), self.runtime.autocast():
            output = reconstruct(self.model, self.prepared(images))
        return output._replace(reconstruction=output.reconstruction.float())


def preparation_of(settings: Settings) -> Preparation:
    """The preparation of images that the settings describe."""
    return Preparation(
        edges(settings.tile_size),
        CHANNELS[settings.color_mode],
        settings.input_normalization,
        settings.intensity_range,
        settings.slice_axis,
    )


def architecture_of(settings: Settings, objective: str) -> str:
    """The network that an objective trains.

    Raises:
        UserError: If the settings name the network of another objective.
    """
    own = OWN_ARCHITECTURE.get(objective, "")
    others = set(OWN_ARCHITECTURE.values()) - {own}
    if own and settings.architecture not in others:
        return own
    if settings.architecture in others:
        raise UserError(
            f"architecture must not be {settings.architecture!r} for the {objective.upper()} loss; "
            f"Training_{settings.architecture.upper()}.py trains it"
        )
    return settings.architecture


def form_of(preparation: Preparation) -> Form:
    """The images that a network is built for."""
    return Form(preparation.channels, preparation.tile_size)


def options_of(settings: Settings) -> Options:
    """What the settings say of networks."""
    return Options(**{name: getattr(settings, name) for name in Options._fields})


def edges(size: Size) -> tuple[int, int]:
    """Height and width in pixels."""
    return (size, size) if isinstance(size, int) else size


def load_model(
    path: Path,
    settings: Settings,
    auto_encoder: Builder,
    runtime: Runtime,
    *,
    asked: frozenset[str] = frozenset(),
    objective: str = "",
    folded: bool = False,
) -> LoadedModel:
    """Load a final model, a training checkpoint, or a file of the reference.

    How images are prepared comes from the model's own record; from the settings where it has
    none.

    Args:
        path: Of the model file.
        settings: Of the run.
        auto_encoder: `Auto_encoder.AutoEncoder`.
        runtime: Where to put it.
        asked: Names of the settings given on the command line: these must not contradict the
            record, except for `tile_size`, which then takes the record's place.
        objective: Whose network a file without a record holds; "": that of the settings.
        folded: Whether speed matters more than finding the layers as they were trained.

    Raises:
        UserError: If the file is missing, damaged, of another architecture, or contradicted.
    """
    weights, provenance = read_model_file(path)
    preparation = _reconcile(path, provenance, settings, asked)
    architecture, options = _network_of(path, provenance, settings, asked, objective)
    model = build_model(architecture, form_of(preparation), options, auto_encoder)
    load_strictly(model, weights, path)
    model = runtime.place(fold_normalizations(model.eval()) if folded else model)
    model = runtime.spread(model, compile_model=settings.compile_model, learns=False).eval()
    digest = hash_weights(weights)
    return LoadedModel(model, preparation, provenance, runtime, settings.deterministic, digest)


def _network_of(
    path: Path,
    provenance: dict[str, Any],
    settings: Settings,
    asked: frozenset[str],
    objective: str,
) -> tuple[str, Options]:
    """Name and options of the network in a file: its record's, or else the settings'."""
    recorded = dict(provenance.get("network", {}))
    if "architecture" in provenance:
        recorded["architecture"] = str(provenance["architecture"])
    for name in sorted(asked & recorded.keys()):
        if getattr(settings, name) != recorded[name]:
            raise _contradiction(path, name, getattr(settings, name), recorded[name])
    usual = OWN_ARCHITECTURE.get(objective, settings.architecture)
    architecture = recorded.pop("architecture", usual)
    try:
        options = options_of(settings)._replace(**recorded)
    except (TypeError, ValueError) as error:  # Which of them depends on the version of Python.
        raise UserError(f"{path}: not a record of a network ({error})") from None
    return architecture, options


def _contradiction(path: Path, setting: str, asked: object, found: object) -> UserError:
    return UserError(
        f"{setting} = {asked!r} contradicts {path}, which was trained with {found!r}; leave the "
        f"flag out"
    )


def _reconcile(
    path: Path, provenance: dict[str, Any], settings: Settings, asked: frozenset[str]
) -> Preparation:
    configured = preparation_of(settings)
    if "preparation" not in provenance:
        logger.info(
            "%s says nothing of how its images were prepared: taking input_normalization = %r, "
            "tile_size = %r, color_mode = %r from the settings",
            path,
            settings.input_normalization,
            settings.tile_size,
            settings.color_mode,
        )
        return configured
    try:
        recorded = Preparation.from_record(provenance["preparation"])
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    setting_of = {"channels": "color_mode"}
    for name in ("channels", "input_normalization", "intensity_range", "slice_axis"):
        setting = setting_of.get(name, name)
        if setting in asked and getattr(recorded, name) != getattr(configured, name):
            raise _contradiction(path, setting, getattr(settings, setting), getattr(recorded, name))
    if "tile_size" in asked:
        return recorded._replace(tile_size=configured.tile_size)
    return recorded
