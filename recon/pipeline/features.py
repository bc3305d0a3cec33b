"""Terms of an objective that need a network of their own."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from recon.errors import UserError
from recon.models.output import encode
from recon.models.registry import Builder
from recon.objectives.features import FeatureDistance
from recon.objectives.losses import FEATURE, Term
from recon.pipeline.models import load_model, preparation_of
from recon.settings import Settings
from recon.training.checkpoint import Weights, load_strictly, read_model_file
from recon.training.runtime import Runtime, unwrap

__all__ = ["further_terms"]

VGG19 = "vgg19"
VGG19_LAYER = "features.11"  # the output of features[:12], relu3_1: a picture's local texture


def further_terms(
    settings: Settings, objective: str, auto_encoder: Builder, runtime: Runtime
) -> dict[str, Term]:
    """The terms of an objective that `recon.objectives.losses.TERMS` cannot hold.

    Args:
        settings: Of the run.
        objective: Whose `loss_weights_` say whether a term is wanted.
        auto_encoder: `Auto_encoder.AutoEncoder`.
        runtime: Where to put the networks.

    Returns:
        "feature" where it has a weight above 0, else nothing.

    Raises:
        UserError: If network, weights or layer cannot be had.
    """
    if getattr(settings, f"loss_weights_{objective}").get(FEATURE, 0) <= 0:
        return {}
    if settings.feature_network == VGG19:
        network, prepare = _vgg19(settings)
        layer = settings.feature_layer or VGG19_LAYER
    else:
        network, prepare = _own_model(settings, auto_encoder, runtime)
        layer = settings.feature_layer
    try:
        return {FEATURE: FeatureDistance(runtime.place(network), layer, prepare)}
    except ValueError as error:
        raise UserError(str(error)) from None


class _Encoder(nn.Module):
    """A model up to its latent."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return encode(self.model, images)


def _own_model(
    settings: Settings, auto_encoder: Builder, runtime: Runtime
) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A model of this project, up to its latent if no layer is named, and its normalisation."""
    path = Path(settings.feature_network)
    loaded = load_model(path, settings, auto_encoder, runtime)
    model, channels = unwrap(loaded.model), preparation_of(settings).channels
    if loaded.preparation.channels != channels:
        raise UserError(
            f"feature_network must be a model of images of {channels} channels, as color_mode = "
            f"{settings.color_mode!r} has them, got {loaded.preparation.channels}: {path}"
        )
    return model if settings.feature_layer else _Encoder(model), loaded.preparation.normalize


def _vgg19(settings: Settings) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The convolutions of VGG19 with the names that torchvision gives them."""
    # Here, since it takes two seconds that only this term should cost.
    from torchvision import models  # type: ignore[import-untyped, unused-ignore]

    with torch.device("meta"):  # Nothing is drawn for weights that are loaded in a moment.
        network = nn.Sequential(OrderedDict(features=models.vgg19().features))
    network = network.to_empty(device="cpu")
    path = Path(settings.feature_weights or "torchvision's vgg19")
    weights = read_model_file(path).weights if settings.feature_weights else _downloaded(models)
    convolutions = {
        f"features.{name.removeprefix('features.')}": value
        for name, value in weights.items()
        if not name.startswith("classifier.")
    }
    load_strictly(network, convolutions, path)
    preparation = preparation_of(settings)._replace(channels=3, input_normalization="imagenet")
    return network, lambda images: preparation.normalize(images.expand(-1, 3, -1, -1))


def _downloaded(models: ModuleType) -> Weights:
    """Torchvision's own weights of VGG19, kept in torch's folder of downloads."""
    source = models.VGG19_Weights.IMAGENET1K_V1
    try:
        return dict(source.get_state_dict(map_location="cpu", check_hash=True, weights_only=True))
    except Exception as error:  # noqa: BLE001 - networks and damaged bytes raise anything
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"the weights of vgg19 cannot be downloaded ({reason}); give their file as "
            f"feature_weights"
        ) from None
