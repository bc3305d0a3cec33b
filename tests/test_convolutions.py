import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from Auto_encoder import AutoEncoder
from recon.training.convolutions import add_biases_apart
from recon.training.runtime import Runtime

LAYERS = [
    nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose2d(6, 4, 4, stride=(2, 1), padding=1, groups=2),
    nn.ConvTranspose2d(6, 4, 2, dilation=2, bias=False),
]


def gradients(model: nn.Module, images: Tensor) -> Iterator[Tensor]:
    images = images.clone().requires_grad_()
    result = model(images)
    torch.manual_seed(1)
    (result * torch.rand(result.shape)).sum().backward()
    yield from (result, images.grad, *(p.grad for p in model.parameters()))


@pytest.mark.parametrize("layer", LAYERS)
def test_results_and_gradients_are_those_of_the_plain_layer(layer: nn.Module) -> None:
    plain, quick = copy.deepcopy(layer), nn.Sequential(copy.deepcopy(layer))
    add_biases_apart(quick)
    assert type(quick[0]) is not type(plain)
    images = torch.rand(3, 6, 7, 5)
    for expected, found in zip(gradients(plain, images), gradients(quick, images), strict=True):
        assert torch.allclose(found, expected, atol=1e-4)


def test_a_cpu_adds_biases_apart_in_training_alone() -> None:
    torch.manual_seed(0)
    plain = AutoEncoder().eval()
    quick = Runtime(torch.device("cpu"), 1, "float32").place(copy.deepcopy(plain))
    names = list(plain.state_dict())
    assert list(quick.state_dict()) == names
    images = torch.rand(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = plain.to(memory_format=torch.channels_last)(images)  # type: ignore[call-overload]
        assert torch.equal(quick(images), expected)
    kinds = {type(layer).__name__ for layer in quick.modules()}
    assert kinds == {type(layer).__name__ for layer in plain.modules()}
    with torch.profiler.profile() as profile:
        quick.train()(images).sum().backward()
    convolutions = [e for e in profile.events() if e.name == "aten::sum"]
    assert len(convolutions) >= 5  # one for the bias of each transposed convolution


def test_a_size_of_the_result_is_still_taken() -> None:
    layer = nn.Sequential(nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1))
    add_biases_apart(layer)
    assert layer[0](torch.rand(1, 2, 4, 4), [8, 8]).shape[-2:] == (8, 8)
