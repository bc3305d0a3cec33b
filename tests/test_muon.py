import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from recon.training.muon import Muon, orthogonalized

SHAPES = [(8, 8), (24, 6), (6, 24), (1, 9), (9, 1), (64, 512)]


class Small(nn.Module):
    """A convolution, a transposed one, a linear layer, and what is no matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.mix = nn.Linear(6, 6)
        self.up = nn.ConvTranspose2d(6, 2, 4, stride=2, padding=1)
        self.codes = nn.Parameter(torch.rand(5, 4))  # a matrix in shape only

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.down(images)).movedim(1, -1)
        restored: Tensor = self.up(self.mix(features).movedim(-1, 1))
        return restored + self.codes.sum()


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    return Small()


def learn(model: Small, optimizer: torch.optim.Optimizer, numbers: range) -> Iterator[float]:
    for number in numbers:
        images = torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        loss = (model(images) - images).square().mean()
        loss.backward()
        optimizer.step()
        yield loss.item()


# Orthogonalisation


@pytest.mark.parametrize("shape", SHAPES)
def test_the_singular_vectors_stay_and_their_values_come_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    left, values, right = torch.linalg.svd(torch.randn(shape).double(), full_matrices=False)
    values = torch.linspace(1.0, 0.05, len(values)).double()
    found = orthogonalized(((left * values) @ right).float()).double()
    inner = left.T @ found @ right.T
    assert inner.diagonal().min() > 0.66
    assert inner.diagonal().max() < 1.24
    assert (inner - inner.diagonal().diag()).abs().max() < 1e-4


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_scale_of_a_gradient_is_of_no_account(scale: float) -> None:
    torch.manual_seed(2)
    matrix = torch.randn(6, 10)
    assert (orthogonalized(scale * matrix) - orthogonalized(matrix)).abs().max() < 1e-3


def test_a_gradient_of_zero_gives_no_step() -> None:
    assert not orthogonalized(torch.zeros(4, 7)).any()


@pytest.mark.parametrize("rank", [1, 3])
def test_rounding_is_not_blown_up_where_a_gradient_has_few_directions(rank: int) -> None:
    torch.manual_seed(3)
    matrix = torch.randn(256, rank) @ torch.randn(rank, 1024)
    values = torch.linalg.svdvals(orthogonalized(matrix))
    assert values.max() < 1.25
    assert values[rank:].max() < 0.05


def test_it_is_computed_in_full_precision_under_autocast() -> None:
    torch.manual_seed(4)
    matrix = torch.randn(16, 32)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = orthogonalized(matrix)
    assert torch.equal(rounded, orthogonalized(matrix))


# Steps


def test_every_weight_of_a_layer_moves_by_the_same_length_along_all_directions(
    model: Small,
) -> None:
    optimizer = Muon(model, lr=0.01, weight_decay=0.0)
    before = copy.deepcopy(model)
    list(learn(model, optimizer, range(1)))
    for layer, old in ((model.down, before.down), (model.mix, before.mix), (model.up, before.up)):
        moved = (layer.weight - old.weight).detach().flatten(1)  # type: ignore[operator]
        lengths = torch.linalg.svdvals(moved) / (0.01 * 0.2 * max(moved.shape) ** 0.5)
        assert lengths.max() < 1.25
        assert lengths.median() > 0.6


def test_all_but_the_weights_of_layers_is_learnt_as_adamw_learns_it(model: Small) -> None:
    other = copy.deepcopy(model)
    list(learn(model, Muon(model, lr=0.01, weight_decay=0.1), range(1)))
    list(learn(other, torch.optim.AdamW(other.parameters(), 0.01, weight_decay=0.1), range(1)))
    plain = [name for name, _ in model.named_parameters() if not name.endswith("weight")]
    assert {"codes", "down.bias", "norm.bias"} <= set(plain)
    theirs = dict(other.named_parameters())
    for name in [*plain, "norm.weight"]:
        assert torch.allclose(model.get_parameter(name), theirs[name], atol=1e-7), name


def test_weights_decay_apart_from_the_gradient(model: Small) -> None:
    optimizer = Muon(model, lr=0.1, weight_decay=0.5)
    before = model.mix.weight.detach().clone()
    model.mix.weight.grad = torch.zeros_like(before)
    optimizer.step()
    assert torch.allclose(model.mix.weight, 0.95 * before)


def test_a_weight_without_gradient_stays(model: Small) -> None:
    before = copy.deepcopy(model.state_dict())
    Muon(model, lr=0.1, weight_decay=0.5).step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_shared_layer_is_learnt_once() -> None:
    layer = nn.Linear(4, 4, bias=False)
    optimizer = Muon(nn.Sequential(layer, layer), lr=0.1, weight_decay=0.0)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 0]


def test_it_learns(model: Small) -> None:
    losses = list(learn(model, Muon(model, lr=0.01, weight_decay=0.0), range(60)))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_a_run_continues_bit_for_bit_from_its_saved_state(model: Small) -> None:
    optimizer = Muon(model, lr=0.01, weight_decay=0.01, fused=True)
    list(learn(model, optimizer, range(3)))
    resumed = copy.deepcopy(model)
    saved = copy.deepcopy(optimizer.state_dict())
    list(learn(model, optimizer, range(3, 6)))
    further = Muon(resumed, lr=1.0, weight_decay=0.0, fused=True)
    further.load_state_dict(saved)
    list(learn(resumed, further, range(3, 6)))
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_step_that_overflowed_is_left_out_by_the_scaler(model: Small) -> None:
    optimizer = Muon(model, lr=0.01, weight_decay=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = copy.deepcopy(dict(model.named_parameters()))
    for overflow, moves in ((float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(model(torch.rand(1, 2, 8, 8)).sum() * overflow).backward()
        scaler.step(optimizer)
        scaler.update()
        changed = [not torch.equal(p, before[name]) for name, p in model.named_parameters()]
        assert any(changed) == moves
