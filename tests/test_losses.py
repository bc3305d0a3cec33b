import pytest
import torch
from torch import Tensor

from recon.objectives.losses import TERMS, Objective
from recon.objectives.ssim import ssim


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pair(count: int = 3) -> tuple[Tensor, Tensor]:
    return random_images(count, 3, 16, 12, seed=1), random_images(count, 3, 16, 12, seed=2)


def test_mse_is_the_mean_over_channels_and_pixels_of_each_image() -> None:
    x, y = pair()
    expected = torch.stack([torch.nn.functional.mse_loss(a, b) for a, b in zip(x, y, strict=True)])
    assert torch.allclose(Objective({"mse": 1.0})(x, y), expected)


def test_l1_is_the_mean_absolute_error_of_each_image() -> None:
    x, y = pair()
    expected = torch.stack([torch.nn.functional.l1_loss(a, b) for a, b in zip(x, y, strict=True)])
    assert torch.allclose(Objective({"l1": 1.0})(x, y), expected)


def test_the_ssim_term_is_what_is_lacking_to_1() -> None:
    x, y = pair()
    assert torch.allclose(Objective({"ssim": 1.0})(x, y), 1 - ssim(x, y))


@pytest.mark.parametrize("name", sorted(TERMS))
def test_every_term_is_0_for_equal_images_and_above_for_others(name: str) -> None:
    x, y = pair()
    objective = Objective({name: 1.0})
    assert torch.allclose(objective(x, x), torch.zeros(3), rtol=0, atol=1e-6)
    assert (objective(x, y) > 1e-3).all()


@pytest.mark.parametrize("name", sorted(TERMS))
def test_every_term_gives_one_float32_value_for_each_image(name: str) -> None:
    value = Objective({name: 1.0})(*pair(5))
    assert value.shape == (5,)
    assert value.dtype == torch.float32


@pytest.mark.parametrize("name", sorted(TERMS))
def test_every_term_leads_a_reconstruction_towards_its_target(name: str) -> None:
    x, y = pair()
    x.requires_grad_()
    objective = Objective({name: 1.0})
    before = objective(x, y).mean()
    before.backward()
    assert x.grad is not None
    nearer = x.detach() - 0.1 * x.grad / x.grad.abs().max()
    assert objective(nearer, y).mean() < before


def test_a_mixture_is_the_weighted_sum_of_its_terms() -> None:
    x, y = pair()
    weights = {"ssim": 0.85, "l1": 0.15, "mse": 2.0}
    expected = sum(weight * TERMS[name](x, y) for name, weight in weights.items())
    assert torch.allclose(Objective(weights)(x, y), torch.as_tensor(expected))


def test_a_weight_scales_its_term() -> None:
    x, y = pair()
    assert torch.allclose(Objective({"mse": 3.0})(x, y), 3 * Objective({"mse": 1.0})(x, y))


def test_a_term_of_weight_0_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_x: Tensor, _y: Tensor) -> Tensor:
        raise AssertionError

    monkeypatch.setitem(TERMS, "l1", refuse)
    x, y = pair()
    assert torch.equal(Objective({"l1": 0.0, "mse": 1.0})(x, y), Objective({"mse": 1.0})(x, y))


def test_a_new_term_is_one_function_in_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TERMS, "mean", lambda x, _y: x.flatten(1).mean(1))
    x, y = pair()
    assert torch.equal(Objective({"mean": 1.0})(x, y), x.flatten(1).mean(1))


def test_an_unknown_term_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"among l1, mse, ssim, got 'sim'"):
        Objective({"mse": 1.0, "sim": 1.0})


def test_later_changes_of_the_weights_have_no_effect() -> None:
    weights = {"mse": 1.0}
    objective = Objective(weights)
    weights["l1"] = 1.0
    x, y = pair()
    assert torch.equal(objective(x, y), Objective({"mse": 1.0})(x, y))


@pytest.mark.parametrize("name", sorted(TERMS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_reconstruction_in_half_precision_is_compared_in_float32(
    name: str, dtype: torch.dtype
) -> None:
    x, y = pair()
    half = x.to(dtype).requires_grad_()
    value = Objective({name: 1.0})(half, y)
    value.sum().backward()
    assert value.dtype == torch.float32
    assert torch.equal(value.detach(), Objective({name: 1.0})(half.detach().float(), y))
    assert half.grad is not None
    assert half.grad.isfinite().all()


def test_small_errors_do_not_vanish_in_half_precision() -> None:
    target = torch.full((1, 3, 16, 16), 0.5)
    reconstruction = target.half() + torch.tensor(2.0**-11).half()
    assert Objective({"mse": 1.0})(reconstruction, target).item() == pytest.approx(2.0**-22)


@pytest.mark.parametrize("name", sorted(TERMS))
def test_autocast_changes_nothing(name: str) -> None:
    x, y = pair()
    with torch.autocast("cpu", torch.bfloat16):
        within = Objective({name: 1.0})(x, y)
    assert torch.equal(within, Objective({name: 1.0})(x, y))


def test_the_value_of_an_image_does_not_depend_on_its_batch() -> None:
    x, y = pair()
    objective = Objective({"ssim": 0.5, "mse": 0.5})
    alone = torch.cat([objective(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    assert torch.allclose(objective(x, y), alone, rtol=0, atol=1e-6)
