from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from recon.objectives.features import FeatureDistance
from recon.objectives.losses import Objective, Prediction


class Counting(nn.Module):
    """Leaves its input as it is, and counts how often it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, images: Tensor) -> Tensor:
        self.runs += 1
        return images


class Network(nn.Module):
    """With a layer that it does not run, and others whose outputs cannot be compared."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.features = nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5)
            )
        self.later = Counting()
        self.codes = Codes()
        self.unused = nn.ReLU()

    def forward(self, images: Tensor) -> tuple[Tensor]:
        codes: Tensor = self.codes(self.later(self.features(images)))
        return (codes,)


class Codes(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.argmax(1)


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pair(count: int = 3) -> tuple[Tensor, Tensor]:
    return random_images(count, 3, 12, 10, seed=1), random_images(count, 3, 12, 10, seed=2)


def unchanged(images: Tensor) -> Tensor:
    return images


def distance(layer: str = "features", network: nn.Module | None = None) -> FeatureDistance:
    return FeatureDistance(network or Network(), layer, unchanged)


# The value


def test_it_is_the_mean_squared_distance_of_a_layers_outputs() -> None:
    x, y = pair()
    convolution = Network().features[0]
    with torch.no_grad():
        expected = (convolution(x) - convolution(y)).square().mean((1, 2, 3))
    value = distance("features.0")(Prediction(x), y)
    assert torch.allclose(value, expected)
    assert value.shape == (3,)
    assert value.dtype == torch.float32


def test_the_name_of_no_layer_is_the_network_itself() -> None:
    x, y = pair()
    whole = nn.Sequential(nn.Flatten(), nn.Tanh())
    expected = (x.tanh() - y.tanh()).square().mean((1, 2, 3))
    assert torch.allclose(distance("", whole)(Prediction(x), y), expected)


def test_it_is_0_for_equal_images_and_above_for_others() -> None:
    x, y = pair()
    assert torch.equal(distance()(Prediction(x), x), torch.zeros(3))
    assert (distance()(Prediction(x), y) > 1e-3).all()


def test_it_is_symmetric() -> None:
    x, y = pair()
    assert torch.allclose(distance()(Prediction(x), y), distance()(Prediction(y), x))


def test_both_images_are_prepared_for_the_network() -> None:
    x, y = pair()
    identity = nn.Sequential(nn.Identity())
    value = FeatureDistance(identity, "0", lambda images: 3 * images - 1)(Prediction(x), y)
    assert torch.allclose(value, 9 * (x - y).square().mean((1, 2, 3)))


def test_an_image_does_not_depend_on_its_batch() -> None:
    x, y = pair()
    measure = distance()
    alone = [measure(Prediction(x[i : i + 1]), y[i : i + 1]) for i in range(3)]
    assert torch.allclose(measure(Prediction(x), y), torch.cat(alone))


def test_it_is_a_term_of_an_objective() -> None:
    x, y = pair()
    objective = Objective({"mse": 10.0, "feature": 0.5}, {"feature": distance()})
    expected = 10 * (x - y).square().mean((1, 2, 3)) + 0.5 * distance()(Prediction(x), y)
    assert torch.allclose(objective(Prediction(x), y), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_objective_takes_half_precision_as_float32_even_under_autocast(
    dtype: torch.dtype,
) -> None:
    x, y = pair()
    objective = Objective({"feature": 1.0}, {"feature": distance()})
    with torch.autocast("cpu", torch.bfloat16):
        value = objective(Prediction(x.to(dtype)), y)
    assert torch.equal(value, objective(Prediction(x.to(dtype).float()), y))


# The frozen network


def test_layers_after_the_one_that_is_compared_are_not_computed() -> None:
    network = Network()
    measure = distance("features", network)
    measure(Prediction(pair()[0]), pair()[1])
    assert network.later.runs == 0


def test_a_layer_in_place_after_the_one_that_is_compared_does_not_change_it() -> None:
    x, y = pair()
    normalised = nn.Sequential(*Network().features[:2]).eval()
    with torch.no_grad():
        expected = (normalised(x) - normalised(y)).square().mean((1, 2, 3))
    assert torch.allclose(distance("features.1")(Prediction(x), y), expected)


def test_gradients_reach_the_reconstruction_and_nothing_else() -> None:
    x, y = pair()
    x.requires_grad_()
    y.requires_grad_()
    network = Network()
    distance("features", network)(Prediction(x), y).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0
    assert y.grad is None
    assert all(weight.grad is None for weight in network.parameters())


def test_it_leads_a_reconstruction_towards_its_target() -> None:
    x, y = pair()
    x.requires_grad_()
    before = distance()(Prediction(x), y).mean()
    before.backward()
    assert x.grad is not None
    nearer = x.detach() - 0.1 * x.grad / x.grad.abs().max()
    assert distance()(Prediction(nearer), y).mean() < before


def test_the_network_is_in_evaluation_mode_and_stays_as_it_is() -> None:
    network = Network().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    distance("features", network)(Prediction(pair()[0].requires_grad_()), pair()[1])
    assert not any(module.training for module in network.modules())
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


# What is refused


def test_an_unknown_layer_is_refused_naming_the_nearest() -> None:
    named = nn.Sequential(OrderedDict(features=nn.Sequential(nn.ReLU(), nn.ReLU()), head=nn.ReLU()))
    expected = (
        r"^feature_layer must be one of the network, such as 'features\.1', .*, got 'feature\.1'$"
    )
    with pytest.raises(ValueError, match=expected):
        distance("feature.1", named)


def test_a_layer_that_the_network_does_not_run_is_refused() -> None:
    x, y = pair()
    with pytest.raises(ValueError, match=r"feature_layer must be one that .* runs, got 'unused'"):
        distance("unused")(Prediction(x), y)


@pytest.mark.parametrize(("layer", "kind"), [("codes", r"torch\.int64"), ("", "tuple")])
def test_an_output_that_has_no_distance_is_refused(layer: str, kind: str) -> None:
    x, y = pair()
    with pytest.raises(ValueError, match=rf"a tensor of floats, got '{layer}' \({kind}\)"):
        distance(layer)(Prediction(x), y)


def test_an_error_within_the_network_is_passed_on() -> None:
    x, y = random_images(1, 2, 12, 10), random_images(1, 2, 12, 10)
    with pytest.raises(RuntimeError, match="channels"):
        distance()(Prediction(x), y)
