import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from recon.objectives.losses import TERMS, Objective, Prediction
from recon.objectives.ms_ssim import SMALLEST, ms_ssim
from recon.objectives.ssim import ssim

DISTANCES = sorted(TERMS.keys() - {"bce"})  # which are 0 for equal images


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pair(count: int = 3, term: str = "mse") -> tuple[Tensor, Tensor]:
    shape = (1, SMALLEST, SMALLEST + 3) if term == "ms_ssim" else (3, 16, 12)
    return random_images(count, *shape, seed=1), random_images(count, *shape, seed=2)


def value_of(weights: dict[str, float], x: Tensor, y: Tensor, *, summed: bool = False) -> Tensor:
    return Objective(weights, summed=summed)(Prediction(x), y)


# Terms


def test_mse_is_the_mean_over_channels_and_pixels_of_each_image() -> None:
    x, y = pair()
    expected = torch.stack([functional.mse_loss(a, b) for a, b in zip(x, y, strict=True)])
    assert torch.allclose(value_of({"mse": 1.0}, x, y), expected)


def test_l1_is_the_mean_absolute_error_of_each_image() -> None:
    x, y = pair()
    expected = torch.stack([functional.l1_loss(a, b) for a, b in zip(x, y, strict=True)])
    assert torch.allclose(value_of({"l1": 1.0}, x, y), expected)


def test_the_ssim_term_is_what_is_lacking_to_1() -> None:
    x, y = pair()
    assert torch.allclose(value_of({"ssim": 1.0}, x, y), 1 - ssim(x, y))


def test_the_ms_ssim_term_is_what_is_lacking_to_1() -> None:
    x, y = pair(term="ms_ssim")
    assert torch.allclose(value_of({"ms_ssim": 1.0}, x, y), 1 - ms_ssim(x, y))


@pytest.mark.parametrize("name", DISTANCES)
def test_every_distance_is_0_for_equal_images_and_above_for_others(name: str) -> None:
    x, y = pair(term=name)
    assert torch.allclose(value_of({name: 1.0}, x, x), torch.zeros(3), rtol=0, atol=1e-6)
    assert (value_of({name: 1.0}, x, y) > 1e-3).all()


@pytest.mark.parametrize("name", sorted(TERMS))
def test_every_term_is_least_for_equal_images(name: str) -> None:
    x, y = pair(term=name)
    nearer = y + 0.1 * (x - y)
    values = [value_of({name: 1.0}, images, y) for images in (y, nearer, x)]
    assert (values[0] < values[1]).all()
    assert (values[1] < values[2]).all()


@pytest.mark.parametrize("name", sorted(TERMS))
def test_every_term_gives_one_float32_value_for_each_image(name: str) -> None:
    value = value_of({name: 1.0}, *pair(5, name))
    assert value.shape == (5,)
    assert value.dtype == torch.float32


@pytest.mark.parametrize("name", sorted(TERMS))
def test_every_term_leads_a_reconstruction_towards_its_target(name: str) -> None:
    x, y = pair(term=name)
    x.requires_grad_()
    before = value_of({name: 1.0}, x, y).mean()
    before.backward()
    assert x.grad is not None
    nearer = x.detach() - 0.01 * x.grad / x.grad.abs().max()
    assert value_of({name: 1.0}, nearer, y).mean() < before


# Binary cross entropy


def test_bce_of_probabilities_is_torchs_mean_for_each_image() -> None:
    x, y = pair()
    pairs = zip(x, y, strict=True)
    expected = torch.stack([functional.binary_cross_entropy(a, b) for a, b in pairs])
    assert torch.allclose(value_of({"bce": 1.0}, x, y), expected)


def test_bce_takes_the_logits_where_there_are_some() -> None:
    x, y = pair()
    logits = 200 * (x - 0.5)  # Of which the sigmoid is 0 or 1 in float32.
    pairs = zip(logits.double(), y.double(), strict=True)
    exact = [functional.binary_cross_entropy_with_logits(a, b) for a, b in pairs]
    value = Objective({"bce": 1.0})(Prediction(torch.sigmoid(logits), logits), y)
    assert torch.allclose(value.double(), torch.stack(exact), rtol=1e-6)


def test_bce_of_logits_and_of_their_sigmoids_agree() -> None:
    x, y = pair()
    logits = 6 * (x - 0.5)
    from_logits = Objective({"bce": 1.0})(Prediction(torch.zeros_like(x), logits), y)
    assert torch.allclose(value_of({"bce": 1.0}, torch.sigmoid(logits), y), from_logits, rtol=1e-5)


def test_bce_has_the_value_by_hand() -> None:
    x, y = torch.tensor([0.25, 0.5]).view(1, 1, 1, 2), torch.tensor([1.0, 0.5]).view(1, 1, 1, 2)
    expected = (math.log(4) + math.log(2)) / 2
    assert value_of({"bce": 1.0}, x, y).item() == pytest.approx(expected, rel=1e-6)
    assert value_of({"bce": 1.0}, x, y, summed=True).item() == pytest.approx(2 * expected, rel=1e-6)


@pytest.mark.parametrize("certain", [0.0, 1.0])
def test_bce_of_a_certain_error_is_bounded_and_so_is_its_gradient(certain: float) -> None:
    x = torch.full((1, 3, 4, 4), certain, requires_grad=True)
    value = value_of({"bce": 1.0}, x, torch.full((1, 3, 4, 4), 1 - certain))
    value.sum().backward()
    assert value.item() == pytest.approx(-math.log(2.0**-23), rel=1e-3)
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_bce_of_certain_logits_keeps_a_gradient() -> None:
    logits = torch.full((1, 1, 2, 2), -200.0, requires_grad=True)
    target = torch.ones(1, 1, 2, 2)
    value = Objective({"bce": 1.0})(Prediction(torch.sigmoid(logits), logits), target)
    value.sum().backward()
    assert value.item() == pytest.approx(200)
    assert logits.grad is not None
    assert torch.allclose(logits.grad, torch.full((1, 1, 2, 2), -0.25))


@pytest.mark.parametrize("outside", [-0.01, 1.01, math.nan])
def test_bce_refuses_a_target_outside_0_to_1(outside: float) -> None:
    x, y = pair()
    y[0, 0, 0, 0] = outside
    with pytest.raises(ValueError, match=r"target must be in 0\.\.1, got"):
        value_of({"bce": 1.0}, x, y)


# Mixtures


def test_a_mixture_is_the_weighted_sum_of_its_terms() -> None:
    x, y = pair()
    weights = {"ssim": 0.85, "l1": 0.15, "mse": 2.0}
    expected = sum(weight * TERMS[name](Prediction(x), y) for name, weight in weights.items())
    assert torch.allclose(value_of(weights, x, y), torch.as_tensor(expected))


def test_a_weight_scales_its_term() -> None:
    x, y = pair()
    assert torch.allclose(value_of({"mse": 3.0}, x, y), 3 * value_of({"mse": 1.0}, x, y))


def test_a_term_of_weight_0_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_prediction: Prediction, _target: Tensor) -> Tensor:
        raise AssertionError

    monkeypatch.setitem(TERMS, "l1", refuse)
    x, y = pair()
    assert torch.equal(value_of({"l1": 0.0, "mse": 1.0}, x, y), value_of({"mse": 1.0}, x, y))


def mean_of_reconstruction(prediction: Prediction, _target: Tensor) -> Tensor:
    return prediction.reconstruction.flatten(1).mean(1)


def test_a_new_term_is_one_function_in_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TERMS, "mean", mean_of_reconstruction)
    x, y = pair()
    assert torch.equal(value_of({"mean": 1.0}, x, y), x.flatten(1).mean(1))


def test_a_further_term_is_known_to_its_objective_alone() -> None:
    x, y = pair()
    objective = Objective({"mean": 2.0}, {"mean": mean_of_reconstruction})
    assert torch.equal(objective(Prediction(x), y), 2 * x.flatten(1).mean(1))
    with pytest.raises(ValueError, match="got 'mean'"):
        Objective({"mean": 2.0})


def test_an_unknown_term_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"among bce, feature, l1, ms_ssim, mse, ssim, got 'sim'"):
        Objective({"mse": 1.0, "sim": 1.0})


def test_later_changes_of_the_weights_have_no_effect() -> None:
    weights = {"mse": 1.0}
    objective = Objective(weights)
    weights["l1"] = 1.0
    x, y = pair()
    assert torch.equal(objective(Prediction(x), y), value_of({"mse": 1.0}, x, y))


# Sums


@pytest.mark.parametrize("name", ["bce", "mse", "l1"])
def test_a_summed_objective_is_torchs_sum_over_pixels_and_channels(name: str) -> None:
    x, y = pair()
    torchs = {
        "bce": functional.binary_cross_entropy,
        "mse": functional.mse_loss,
        "l1": functional.l1_loss,
    }[name]
    expected = [torchs(a, b, reduction="sum") for a, b in zip(x, y, strict=True)]
    assert torch.allclose(value_of({name: 1.0}, x, y, summed=True), torch.stack(expected))


def test_a_summed_objective_multiplies_a_mixture_by_the_values_of_an_image() -> None:
    x, y = pair()
    weights = {"ssim": 0.5, "bce": 0.5}
    mean = value_of(weights, x, y)
    assert torch.allclose(value_of(weights, x, y, summed=True), 3 * 16 * 12 * mean)


# Precision


@pytest.mark.parametrize("name", sorted(TERMS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_reconstruction_in_half_precision_is_compared_in_float32(
    name: str, dtype: torch.dtype
) -> None:
    x, y = pair(term=name)
    half = x.to(dtype).requires_grad_()
    value = value_of({name: 1.0}, half, y)
    value.sum().backward()
    assert value.dtype == torch.float32
    assert torch.equal(value.detach(), value_of({name: 1.0}, half.detach().float(), y))
    assert half.grad is not None
    assert half.grad.isfinite().all()


def test_small_errors_do_not_vanish_in_half_precision() -> None:
    target = torch.full((1, 3, 16, 16), 0.5)
    reconstruction = target.half() + torch.tensor(2.0**-11).half()
    assert value_of({"mse": 1.0}, reconstruction, target).item() == pytest.approx(2.0**-22)


@pytest.mark.parametrize("name", sorted(TERMS))
def test_autocast_changes_nothing(name: str) -> None:
    x, y = pair(term=name)
    with torch.autocast("cpu", torch.bfloat16):
        within = value_of({name: 1.0}, x, y)
    assert torch.equal(within, value_of({name: 1.0}, x, y))


@pytest.mark.parametrize("weights", [{"ssim": 0.5, "mse": 0.5}, {"bce": 1.0}, {"ms_ssim": 1.0}])
def test_the_value_of_an_image_does_not_depend_on_its_batch(weights: dict[str, float]) -> None:
    x, y = pair(term=next(iter(weights)))
    alone = torch.cat([value_of(weights, x[i : i + 1], y[i : i + 1]) for i in range(3)])
    assert torch.allclose(value_of(weights, x, y), alone, rtol=0, atol=1e-6)
