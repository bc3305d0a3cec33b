"""The running average of the weights."""

import torch
from torch import nn

from recon.training.averaging import WeightAverage


def test_the_first_update_is_weighted_by_the_rising_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average = WeightAverage(model, 0.999)
    nn.init.constant_(model.weight, 1.0)
    average.update()
    assert torch.allclose(average.module.weight, torch.tensor(1 - 2 / 11))


def test_the_decay_ends_at_its_value() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average = WeightAverage(model, 0.5)
    average.updates = 1000
    nn.init.constant_(model.weight, 1.0)
    average.update()
    assert torch.allclose(average.module.weight, torch.tensor(0.5))


def test_batch_statistics_are_averaged_and_counters_copied() -> None:
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, 0.9)
    model(torch.randn(8, 2) + 5)
    average.update()
    assert (average.module.running_mean > 0).all()
    assert average.module.num_batches_tracked == 1


def test_the_trained_network_is_left_as_it_is() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    average = WeightAverage(model, 0.9)
    average.update()
    assert torch.equal(model.weight, before)
    assert model.weight.requires_grad
    assert not average.module.weight.requires_grad
