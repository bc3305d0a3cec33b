"""Open a trained model as it was trained."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recon.errors import UserError, quoted, shortened
from recon.models.folding import fold_normalizations
from recon.models.output import Output, joined, reconstruct
from recon.models.preparation import Preparation
from recon.models.registry import BUILDERS, Builder, Form, Options, build_model
from recon.settings import Settings, Size
from recon.sources import Source, merge
from recon.training.checkpoint import check_shapes, hash_weights, load_strictly, read_model_file
from recon.training.runtime import Runtime

__all__ = [
    "ONE_SIZE",
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
# More than any network has that was trained: what a spoilt record asks for may take hours.
MOST = {"residual_blocks": 1000}
MOST_NUMBERS = 2**24  # for every other whole number of a network
PREPARED = ("tile_size", "input_normalization", "intensity_range", "slice_axis")
NOISE = ("noise_std",)  # of the training: an evaluation adds as much
MEND = "mend or remove the model's record"
ONE_SIZE = ("dense", "vae")  # architectures that take images of the size they were built for
OWN_ARCHITECTURE = {"vae": "vae", "vqvae": "vqvae"}  # objectives that are one with their network


class LoadedModel(NamedTuple):
    """A trained network, ready to reconstruct."""

    model: nn.Module
    preparation: Preparation
    provenance: dict[str, Any]  # empty where nothing is recorded
    runtime: Runtime
    one_by_one: bool = False  # so that no bit depends on how many images come together
    weights_sha256: str = ""  # as they are in the file
    threads: int = 1  # that may share the images of a batch

    @property
    def kind(self) -> str:
        """The model in a few words: network, size of its images, and the loss it learnt by."""
        height, width = self.preparation.tile_size
        network = self.provenance.get("architecture", "of no record")
        words = [str(network), f"{width} x {height} pixels"]
        if objective := self.provenance.get("objective"):
            words.append(f"trained with {shortened(str(objective)).upper()}")
        return ", ".join(words)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Reconstruct images in [0, 1], (N, C, H, W), on this model's device."""
        return self.output(images).reconstruction

    def parts(self, images: Tensor) -> Sequence[Tensor]:
        """Images as they come to the network together."""
        return images.chunk(max(1, len(images))) if self.one_by_one else [images]

    def prepared(self, images: Tensor) -> Tensor:
        """The network's input for images in [0, 1], (N, C, H, W) both."""
        return self.preparation.normalize(images).contiguous(memory_format=torch.channels_last)

    def output(self, images: Tensor) -> Output:
        """All that the network returns for images in [0, 1], (N, C, H, W), on its device."""
        with torch.no_grad(), self.runtime.autocast():
            outputs = [reconstruct(self.model, self.prepared(part)) for part in self.parts(images)]
        output = joined(outputs)
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
    settings_then = provenance.get("settings", {})
    _check_recorded(path, {n: settings_then[n] for n in NOISE if n in settings_then})
    preparation = _reconcile(path, provenance, settings, asked)
    architecture, options = _network_of(path, provenance, settings, asked, objective)
    form = form_of(preparation)
    if architecture in BUILDERS:  # First without memory, of which a spoilt record may ask any.
        with torch.device("meta"):
            check_shapes(build_model(architecture, form, options, auto_encoder), weights, path)
    model = build_model(architecture, form, options, auto_encoder)
    load_strictly(model, weights, path)
    model = runtime.place(fold_normalizations(model.eval()) if folded else model)
    model = runtime.spread(model, compile_model=settings.compile_model, learns=False).eval()
    on_cpu = runtime.device.type == "cpu"
    return LoadedModel(
        model,
        preparation,
        provenance,
        runtime,
        one_by_one=on_cpu or settings.deterministic,  # On a GPU that is slow.
        weights_sha256=hash_weights(weights),
        threads=torch.get_num_threads() if on_cpu and not settings.compile_model else 1,
    )


def _network_of(
    path: Path,
    provenance: dict[str, Any],
    settings: Settings,
    asked: frozenset[str],
    objective: str,
) -> tuple[str, Options]:
    """Name and options of the network in a file: its record's, or else the settings'."""
    recorded = dict(provenance.get("network", {}))
    _check_network(path, recorded)
    if "architecture" in provenance:
        recorded["architecture"] = provenance["architecture"]
        _check_recorded(path, {"architecture": provenance["architecture"]})
    for name in sorted(asked & recorded.keys()):
        if getattr(settings, name) != recorded[name]:
            raise _contradiction(path, name, getattr(settings, name), recorded[name])
    usual = OWN_ARCHITECTURE.get(objective, settings.architecture)
    architecture = recorded.pop("architecture", usual)
    return architecture, options_of(settings)._replace(**recorded)


def _check_network(path: Path, recorded: Mapping[str, Any]) -> None:
    """Refuse options that no network of this program was trained with."""
    strange = next((name for name in recorded if name not in Options._fields), None)
    if strange is not None:
        raise UserError(f"{path}: not a record of a network (unknown option {quoted(strange)})")
    _check_recorded(path, recorded)
    for name, value in recorded.items():
        most = MOST.get(name, MOST_NUMBERS)
        if isinstance(value, int) and value > most:
            raise UserError(f"{name} must be at most {most}, got {value} in {path}; {MEND}")


def _check_recorded(path: Path, values: Mapping[str, Any]) -> None:
    """Hold what a model's record says against the rules of the settings of the same names."""
    try:
        merge(Settings, [Source(str(path), values)])
    except UserError as error:
        raise UserError(f"{' '.join(str(error).splitlines())}; {MEND}") from None


def _contradiction(path: Path, setting: str, asked: object, found: object) -> UserError:
    return UserError(
        f"{setting} = {asked!r} contradicts {path}, which was trained with {quoted(found)}; leave "
        f"the flag, or its line in the --config file, out"
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
    record = provenance["preparation"]
    try:
        _check_recorded(path, {name: record[name] for name in PREPARED if name in record})
        recorded = Preparation.from_record(record)
    except ValueError as error:
        raise UserError(f"{path}: {shortened(str(error))}; {MEND}") from None
    if recorded.channels not in CHANNELS.values():
        raise UserError(
            f"channels must be 1 or 3, got {quoted(recorded.channels)} in {path}; {MEND}"
        )
    if "color_mode" in asked and recorded.channels != configured.channels:
        modes = {channels: mode for mode, channels in CHANNELS.items()}
        raise _contradiction(path, "color_mode", settings.color_mode, modes[recorded.channels])
    for name in ("input_normalization", "intensity_range", "slice_axis"):
        if name in asked and getattr(recorded, name) != getattr(configured, name):
            raise _contradiction(path, name, getattr(settings, name), getattr(recorded, name))
    if "tile_size" not in asked or recorded.tile_size == configured.tile_size:
        return recorded
    if provenance.get("architecture") in ONE_SIZE:
        raise _contradiction(path, "tile_size", configured.tile_size, recorded.tile_size)
    logger.info(
        "Images are resized to %d x %d pixels, as tile_size asks; the model was trained at %d x %d",
        *(*configured.tile_size[::-1], *recorded.tile_size[::-1]),
    )
    return recorded._replace(tile_size=configured.tile_size)
