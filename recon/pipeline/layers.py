"""Pictures of what every layer of a model makes of some images."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from recon.analysis.feature_pictures import draw_channels, draw_latent, draw_layers
from recon.analysis.latents import Encoder
from recon.analysis.layers import feature_maps
from recon.data.loaders import to_unit_range
from recon.errors import UserError
from recon.evaluation.figures import to_picture
from recon.evaluation.records import visible
from recon.files import check_writable, replacing, without_ending
from recon.models.codebook import Codebook
from recon.models.registry import Builder
from recon.pipeline.explaining import explained
from recon.pipeline.images import Datasets, FolderDataset, open_folder, report_unreadable
from recon.pipeline.models import LoadedModel, load_model
from recon.settings import Settings
from recon.training.runtime import Runtime, start_runtime, unwrap

__all__ = ["look_at_channels", "look_inside", "run_layers"]

logger = logging.getLogger("recon")


def run_layers(
    settings: Settings,
    auto_encoder: Builder,
    datasets: Datasets,
    *,
    asked: frozenset[str] = frozenset(),
) -> list[Path]:
    """Draw layers and latent of images that are chosen evenly from a folder.

    Args:
        settings: Of the run.
        auto_encoder: `Auto_encoder.AutoEncoder`.
        datasets: `datasets.ImageFolderDataset`.
        asked: Names of the settings given on the command line.

    Returns:
        The folder of each image; none on any rank but the first.

    Raises:
        UserError: For anything that the user can put right.
    """
    _check_output(Path(settings.layers_output), settings.folder_path_layers)
    runtime = start_runtime(
        settings.GPUs, settings.precision, seed=settings.seed, deterministic=settings.deterministic
    )
    if not runtime.ranks.first:
        return []  # One process draws; under torchrun others would write the same files.
    with explained(settings, "batch_size_test"):
        return _draw_chosen(settings, auto_encoder, datasets, runtime, asked)


def _draw_chosen(
    settings: Settings,
    auto_encoder: Builder,
    datasets: Datasets,
    runtime: Runtime,
    asked: frozenset[str],
) -> list[Path]:
    """Draw those images that can be read; give the folder of each."""
    path, output = Path(settings.model_path_layers), Path(settings.layers_output)
    model = load_model(path, settings, auto_encoder, runtime, asked=asked)
    dataset = open_folder(
        datasets, "folder_path_layers", settings.folder_path_layers, model.preparation
    )
    chosen = _choose(len(dataset), settings.layers_images)
    folders, unreadable = [], []
    for index, name in zip(chosen, _names(dataset, chosen), strict=True):
        try:
            image = to_unit_range(dataset[index][None].to(runtime.device))
        except (ValueError, OSError) as error:
            if settings.unreadable_images == "stop":
                raise UserError(f"unreadable image: {error}") from None
            unreadable.append(str(error))
            continue
        _draw(model, image, output / name, every_channel=settings.layers_channels == "all")
        folders.append(output / name)
        logger.info("Pictures: %s", visible(str(output / name)))
    if not folders:
        raise UserError(f"none of the {len(chosen)} images can be read: {unreadable[0]}")
    report_unreadable(unreadable)
    return folders


def _check_output(output: Path, folder: str) -> None:
    if output.resolve().is_relative_to(Path(folder).resolve()):
        raise UserError(
            f"layers_output must not lie in folder_path_layers, got {str(output)!r}: the pictures "
            f"would be drawn the next time"
        )
    check_writable(output, "layers_output")


def _choose(count: int, number: int) -> list[int]:
    """Indices from the first to the last, evenly."""
    chosen: list[int] = np.linspace(0, count - 1, min(number, count)).round().astype(int).tolist()
    return chosen


def _names(dataset: FolderDataset, chosen: Sequence[int]) -> list[str]:
    """A folder for each image: its path without the ending, unless two would share it."""
    paths = [dataset.paths.relative(index) for index in chosen]
    stems = [without_ending(path) for path in paths]
    # A stem is also taken where a file bears it as its whole name: x.png beside x.png.jpg.
    taken = Counter([*stems, *set(paths)])
    return [p if taken[s] > 1 else s for p, s in zip(paths, stems, strict=True)]


def look_inside(model: LoadedModel, images: FolderDataset, index: int) -> tuple[Figure, Figure]:
    """What every layer makes of an image, and its latent as a picture.

    Args:
        model: An opened model.
        images: Opened images.
        index: Which of them.
    """
    inside = _look(model, images, index)
    return inside.layers(), inside.in_between()


def look_at_channels(
    model: LoadedModel, images: FolderDataset, index: int, layer: int | str
) -> Figure:
    """Every channel that one layer makes of an image.

    Args:
        model: An opened model.
        images: Opened images.
        index: Which of them.
        layer: Its name, or its place among the layers, from 0.

    Raises:
        UserError: If there is no such layer.
    """
    inside = _look(model, images, index)
    names = list(inside.maps)
    places = dict(enumerate(names)) | {name: name for name in names}
    if layer not in places:
        raise UserError(
            f"layer must be a place below {len(names)} or one of {', '.join(names)}; got {layer!r}"
        )
    return inside.channels(places[layer])


def _look(model: LoadedModel, images: FolderDataset, index: int) -> "_Inside":
    return _inside(model, to_unit_range(images[index][None].to(model.runtime.device)))


class _Inside(NamedTuple):
    """One image on its way through a network."""

    original: NDArray[np.uint8]  # (H, W) or (H, W, 3)
    maps: dict[str, Tensor]  # (C, h, w) or (F,), by layer
    kinds: dict[str, str]  # of the layers
    latent: Tensor
    reconstruction: NDArray[np.uint8]
    codes: int | None  # in the codebook, where there is one

    def layers(self) -> Figure:
        return draw_layers(self.original, self.maps, self.reconstruction, kinds=self.kinds)

    def in_between(self) -> Figure:
        return draw_latent(self.original, self.latent, self.reconstruction, codes=self.codes)

    def channels(self, layer: str) -> Figure:
        return draw_channels(f"{layer}  {self.kinds[layer]}", self.maps[layer])


def _inside(model: LoadedModel, image: Tensor) -> _Inside:
    """Pass an image, (1, C, H, W) in [0, 1], through the network and keep what arises."""
    network = unwrap(model.model)
    prepared = model.prepared(image)
    with torch.no_grad(), model.runtime.autocast():
        maps = {name: of[0] for name, of in feature_maps(network, prepared).items()}
        latent = Encoder(network, "none")(prepared)[0]
    codebook = getattr(network, "codebook", None)
    return _Inside(
        to_picture(image)[0],
        maps,
        {name: _kind(network, name) for name in maps},
        latent,
        to_picture(model.reconstruct(image))[0],
        len(codebook.usage) if isinstance(codebook, Codebook) else None,
    )


def _draw(model: LoadedModel, image: Tensor, folder: Path, *, every_channel: bool) -> None:
    """Write the pictures of one image, (1, C, H, W) in [0, 1]."""
    inside = _inside(model, image)
    _save(inside.layers(), folder / "layers.png")
    _save(inside.in_between(), folder / "latent.png")
    if every_channel:
        for place, name in enumerate(inside.maps, start=1):
            _save(inside.channels(name), folder / "channels" / f"{place:03d}_{name}.png")


def _kind(network: nn.Module, name: str) -> str:
    """The kind of a layer, by its name among the feature maps."""
    return type(network.get_submodule(name.partition(" ")[0])).__name__


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as partial:
        figure.savefig(partial, format="png")
