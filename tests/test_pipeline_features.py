import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor, nn

from Auto_encoder import AutoEncoder
from recon.errors import UserError
from recon.models.output import encode
from recon.models.preparation import IMAGENET_MEAN, IMAGENET_STD, Preparation
from recon.models.registry import Form, Options, build_model
from recon.objectives.losses import Objective, Prediction, Term
from recon.pipeline.features import further_terms
from recon.settings import Settings
from recon.training.checkpoint import save_final
from recon.training.runtime import Runtime

RUNTIME = Runtime(torch.device("cpu"), 1, "float32")
MakeSettings = Callable[..., Settings]


class SmallVgg(nn.Module):
    """Stands in for VGG19: twelve layers before the default one ends, and one after."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = [
            layer
            for inputs in (3, *[4] * 6)
            for layer in (nn.Conv2d(inputs, 4, 3, padding=1), nn.ReLU(inplace=True))
        ]
        self.features = nn.Sequential(*convolutions)
        self.classifier = nn.Sequential(nn.Linear(4, 2))


def drawn(network: Callable[[], nn.Module]) -> nn.Module:
    """A network of random weights, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return network()


def random_images(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pair(channels: int = 3) -> tuple[Tensor, Tensor]:
    return (random_images(2, channels, 16, 16, seed=1), random_images(2, channels, 16, 16, seed=2))


def imagenet(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


@torch.no_grad()
def apart(network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    return (network(x) - network(y)).square().flatten(1).mean(1)


@pytest.fixture
def vgg(monkeypatch: pytest.MonkeyPatch) -> SmallVgg:
    monkeypatch.setattr(torchvision.models, "vgg19", SmallVgg)
    network = drawn(SmallVgg)
    assert isinstance(network, SmallVgg)
    return network


@pytest.fixture
def vgg_file(vgg: SmallVgg, tmp_path: Path) -> str:
    torch.save(vgg.state_dict(), tmp_path / "vgg.pth")
    return str(tmp_path / "vgg.pth")


@pytest.fixture
def make(make_settings: MakeSettings) -> MakeSettings:
    def with_feature(**changes: Any) -> Settings:
        return make_settings(loss_weights_mse={"mse": 10.0, "feature": 1.0}, **changes)

    return with_feature


def write_model(
    path: Path, channels: int = 3, normalization: str = "imagenet"
) -> tuple[AutoEncoder, Preparation]:
    model = drawn(lambda: AutoEncoder(channels))
    assert isinstance(model, AutoEncoder)
    preparation = Preparation((16, 16), channels, normalization, None)
    record = {"architecture": "auto_encoder", "preparation": preparation._asdict()}
    save_final(path, model.state_dict(), record)
    return model.eval(), preparation


def feature_term(settings: Settings) -> Term:
    return further_terms(settings, "mse", AutoEncoder, RUNTIME)["feature"]


def refusal(settings: Settings) -> str:
    with pytest.raises(UserError) as caught:
        further_terms(settings, "mse", AutoEncoder, RUNTIME)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Whether there is such a term


@pytest.mark.parametrize("weights", [{"mse": 1.0}, {"mse": 1.0, "feature": 0.0}])
def test_a_network_is_opened_only_where_the_term_has_a_weight(
    weights: dict[str, float], make_settings: MakeSettings
) -> None:
    settings = make_settings(loss_weights_mse=weights, feature_network="missing.pth")
    assert further_terms(settings, "mse", AutoEncoder, RUNTIME) == {}


def test_the_weights_that_count_are_those_of_the_objective(make: MakeSettings) -> None:
    settings = make(feature_network="missing.pth")
    assert further_terms(settings, "ssim", AutoEncoder, RUNTIME) == {}
    assert refusal(settings) == "missing.pth is missing"


def test_the_term_fits_into_an_objective(make: MakeSettings, vgg_file: str) -> None:
    settings, (x, y) = make(feature_weights=vgg_file), pair()
    terms = further_terms(settings, "mse", AutoEncoder, RUNTIME)
    value = Objective(settings.loss_weights_mse, terms)(Prediction(x), y)
    expected = 10 * (x - y).square().mean((1, 2, 3)) + terms["feature"](Prediction(x), y)
    assert torch.allclose(value, expected)


# VGG19


def test_vgg19_compares_its_first_twelve_layers_on_imagenets_scale(
    make: MakeSettings, vgg: SmallVgg, vgg_file: str
) -> None:
    x, y = pair()
    expected = apart(vgg.features[:12], imagenet(x), imagenet(y))
    value = feature_term(make(feature_weights=vgg_file))(Prediction(x), y)
    assert (expected > 0).all()
    assert torch.allclose(value, expected, rtol=1e-4)


def test_the_layer_can_be_named(make: MakeSettings, vgg: SmallVgg, vgg_file: str) -> None:
    x, y = pair()
    term = feature_term(make(feature_weights=vgg_file, feature_layer="features.3"))
    expected = apart(vgg.features[:4], imagenet(x), imagenet(y))
    assert torch.allclose(term(Prediction(x), y), expected, rtol=1e-4)


def test_grey_images_are_shown_to_vgg19_as_grey_rgb(make: MakeSettings, vgg_file: str) -> None:
    x, y = pair(channels=1)
    grey = feature_term(make(feature_weights=vgg_file, color_mode="grey"))
    rgb = feature_term(make(feature_weights=vgg_file))
    expected = rgb(Prediction(x.repeat(1, 3, 1, 1)), y.repeat(1, 3, 1, 1))
    assert torch.equal(grey(Prediction(x), y), expected)


@pytest.mark.parametrize("part", ["features.", ""])
def test_a_file_of_the_convolutions_alone_will_do(
    part: str, make: MakeSettings, vgg: SmallVgg, vgg_file: str, tmp_path: Path
) -> None:
    x, y = pair()
    weights = {f"{part}{name}": value for name, value in vgg.features.state_dict().items()}
    torch.save(weights, tmp_path / "convolutions.pth")
    terms = [
        feature_term(make(feature_weights=file))
        for file in (vgg_file, str(tmp_path / "convolutions.pth"))
    ]
    assert torch.equal(terms[0](Prediction(x), y), terms[1](Prediction(x), y))


def test_nothing_is_drawn_at_random(make: MakeSettings, vgg_file: str) -> None:
    before = torch.random.get_rng_state()
    feature_term(make(feature_weights=vgg_file))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_names_of_the_layers_are_those_of_the_real_vgg19() -> None:
    with torch.device("meta"):
        features = torchvision.models.vgg19().features
    kinds = [type(layer) for layer in features[:12]]
    block = [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.MaxPool2d]
    assert kinds == [*block, *block, nn.Conv2d, nn.ReLU]


def test_without_a_file_torchvision_gives_the_weights(
    make: MakeSettings, vgg: SmallVgg, vgg_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def give(_self: object, **how: Any) -> dict[str, Tensor]:
        asked.append(how)
        return vgg.state_dict()

    monkeypatch.setattr(torchvision.models.VGG19_Weights, "get_state_dict", give)
    x, y = pair()
    expected = feature_term(make(feature_weights=vgg_file))(Prediction(x), y)
    assert torch.equal(feature_term(make())(Prediction(x), y), expected)
    assert asked == [{"map_location": "cpu", "check_hash": True, "weights_only": True}]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (URLError("no route"), "<urlopen error no route>"),
        (RuntimeError("invalid hash value\nmore"), "invalid hash value"),
        (EOFError(), "EOFError"),
    ],
)
@pytest.mark.usefixtures("vgg")
def test_without_file_and_network_the_setting_is_named(
    failure: Exception, reason: str, make: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: object, **_how: Any) -> dict[str, Tensor]:
        raise failure

    monkeypatch.setattr(torchvision.models.VGG19_Weights, "get_state_dict", fail)
    assert refusal(make()) == (
        f"the weights of vgg19 cannot be downloaded ({reason}); give their file as feature_weights"
    )


@pytest.mark.usefixtures("vgg")
def test_weights_of_another_network_are_refused(make: MakeSettings, tmp_path: Path) -> None:
    torch.save(AutoEncoder().state_dict(), tmp_path / "other.pth")
    message = refusal(make(feature_weights=str(tmp_path / "other.pth")))
    assert "other.pth holds another network" in message


@pytest.mark.usefixtures("vgg")
def test_a_damaged_file_of_weights_is_refused(make: MakeSettings, tmp_path: Path) -> None:
    (tmp_path / "damaged.pth").write_bytes(b"nothing of the kind")
    message = refusal(make(feature_weights=str(tmp_path / "damaged.pth")))
    assert "damaged.pth is no readable PyTorch file" in message


def test_an_unknown_layer_is_refused_naming_the_nearest(make: MakeSettings, vgg_file: str) -> None:
    message = refusal(make(feature_weights=vgg_file, feature_layer="feature.11"))
    assert re.search(r"^feature_layer must be .* 'features\.11', .*, got 'feature\.11'$", message)


# A model of this project


@pytest.mark.parametrize("normalization", ["imagenet", "none"])
def test_a_model_compares_latents_of_images_prepared_as_its_own(
    normalization: str, make: MakeSettings, tmp_path: Path
) -> None:
    path, (x, y) = tmp_path / "model.pth", pair()
    model, preparation = write_model(path, normalization=normalization)
    expected = apart(lambda images: encode(model, preparation.normalize(images)), x, y)
    value = feature_term(make(feature_network=str(path)))(Prediction(x), y)
    assert (expected > 0).all()
    assert torch.allclose(value, expected, rtol=1e-4)


def test_a_layer_of_a_model_can_be_named(make: MakeSettings, tmp_path: Path) -> None:
    path, (x, y) = tmp_path / "model.pth", random_images(2, 2, 3, 32, 32, seed=1).unbind()
    model, preparation = write_model(path)
    expected = apart(lambda images: model.encoder[:9](preparation.normalize(images)), x, y)
    term = feature_term(make(feature_network=str(path), feature_layer="encoder.8"))
    assert torch.allclose(term(Prediction(x), y), expected, rtol=1e-4)


def test_the_layers_of_a_model_bear_the_same_names_on_several_gpus(
    make: MakeSettings, tmp_path: Path
) -> None:
    path, (x, y) = tmp_path / "model.pth", pair()
    write_model(path)
    settings = make(feature_network=str(path), feature_layer="encoder.2")
    spread = further_terms(settings, "mse", AutoEncoder, RUNTIME._replace(devices=2))["feature"]
    assert torch.equal(spread(Prediction(x), y), feature_term(settings)(Prediction(x), y))


def test_gradients_reach_the_reconstruction_through_a_model(
    make: MakeSettings, tmp_path: Path
) -> None:
    path, (x, y) = tmp_path / "model.pth", pair()
    write_model(path)
    x.requires_grad_()
    feature_term(make(feature_network=str(path)))(Prediction(x), y).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


def test_a_model_of_other_channels_is_refused(make: MakeSettings, tmp_path: Path) -> None:
    write_model(tmp_path / "grey.pth", channels=1)
    message = refusal(make(feature_network=str(tmp_path / "grey.pth")))
    assert re.search(r"^feature_network must be .* 3 channels, .* 'rgb' .*, got 1: .*", message)


def test_a_model_of_another_architecture_is_refused(make: MakeSettings, tmp_path: Path) -> None:
    torch.save(SmallVgg().state_dict(), tmp_path / "other.pth")
    message = refusal(make(feature_network=str(tmp_path / "other.pth")))
    assert "other.pth holds another network" in message


@pytest.mark.parametrize("size", [{"tile_size": 16, "crop_size": 32}, {"tile_size": 64}])
def test_a_term_that_one_size_of_a_run_does_not_suit_is_refused_before_it_begins(
    size: dict[str, Any],
    train: Callable[..., Any],
    write_images: Callable[..., Path],
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "train", 8)
    path = tmp_path / "dense.pth"
    network = build_model("dense", Form(3, (32, 32)), Options(latent_dim=4), AutoEncoder)
    form = Preparation((32, 32), 3, "none", None)._asdict()
    record = {"architecture": "dense", "network": {"latent_dim": 4}, "preparation": form}
    save_final(path, network.state_dict(), record)
    changes = {"loss_weights_mse": {"feature": 1.0}, "feature_network": str(path), **size}
    with pytest.raises(UserError, match="loss_weights_mse: "):
        train(**changes, **({} if "crop_size" in size else {"crop_size": 32}))
    assert not list((tmp_path / "out").glob("*.pth"))
