"""The VQ-VAE. How its codebook learns is in test_codebook.py."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from recon.models.output import Adaptive, Output, encode
from recon.models.registry import Form, Options, build_model
from recon.models.vqvae import VectorQuantizedAutoEncoder
from recon.training.averaging import WeightAverage
from recon.training.checkpoint import hash_weights


def make(channels: int = 3, codebook: str = "ema", **options: Any) -> VectorQuantizedAutoEncoder:
    torch.manual_seed(0)
    chosen: dict[str, Any] = {
        "codebook_size": 16, "code_dim": 8, "commitment": 0.25, "codebook_decay": 0.9
    }  # fmt: skip
    return VectorQuantizedAutoEncoder(channels, codebook, **chosen | options)


def alone(values: Tensor) -> Tensor:
    """The sum over one rank."""
    return values


def images_of(count: int = 2, height: int = 16, width: int = 16, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(count + height + width)
    return torch.rand(count, channels, height, width, generator=generator)


def smooth(number: int) -> Tensor:
    coarse = images_of(2, 4 + number % 2, 4)
    return functional.interpolate(coarse, scale_factor=4, mode="bilinear")


def started(codebook: str = "ema") -> VectorQuantizedAutoEncoder:
    """A network whose codebook has begun."""
    model = make(codebook=codebook)
    model.adapt(model(images_of()), alone, first=True)
    return model


def steps(
    model: VectorQuantizedAutoEncoder, optimizer: torch.optim.Optimizer, numbers: range
) -> Iterator[float]:
    """Train as the trainer does; the losses before each step."""
    for number in numbers:
        images = smooth(number)
        output = model(images)
        loss = (output.reconstruction - images).square().mean() + output.penalty.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.adapt(output, alone, first=True)
        yield loss.item()


# Layers


def layers(conv: int, transposed: int, channels: int = 3) -> list[tuple[int, ...]]:
    """Shapes of the weights of the published layout, biases left out."""
    stack = [(32, 128, 3, 3), (128, 32, 1, 1)] * 2
    encoder = [(64, channels, 4, 4), (128, 64, 4, 4), (128, 128, 3, 3), *stack, (conv, 128, 1, 1)]
    return [*encoder, (128, conv, 3, 3), *stack, (128, 64, 4, 4), (64, transposed, 4, 4)]


def test_its_convolutions_are_the_published_ones() -> None:
    model = make(1, code_dim=64, codebook_size=512)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert [tuple(m.weight.shape) for m in convolutions] == layers(64, 1, 1)
    assert [m.bias is None for m in convolutions] == [
        False, False, False, True, True, True, True, False,
        False, True, True, True, True, False, False,
    ]  # fmt: skip
    assert model.codebook.embedding.shape == (512, 64)


def test_a_residual_layer_adds_to_what_goes_in_and_leaves_it_as_it_is() -> None:
    layer = make().encoder[5]
    weights = [m.weight for m in layer.modules() if isinstance(m, nn.Conv2d)]
    features = torch.randn(1, 128, 5, 4)
    before = features.clone()
    inner = functional.conv2d(features.relu(), weights[0], padding=1).relu()
    expected = before + functional.conv2d(inner, weights[1])
    assert torch.allclose(layer(features), expected, atol=1e-6)
    assert torch.equal(features, before)


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_every_weight_takes_part(codebook: str) -> None:
    model = started(codebook)
    output = model(images_of())
    (output.reconstruction.sum() + output.penalty.sum()).backward()
    assert [
        name for name, w in model.named_parameters() if w.grad is None or not w.grad.any()
    ] == []
    assert ("codebook.embedding" in dict(model.named_parameters())) == (codebook == "gradient")


def test_the_registry_builds_it_from_the_settings() -> None:
    options = Options(codebook="gradient", codebook_size=32, code_dim=4, commitment=0.5)
    model = build_model("vqvae", Form(1, (16, 16)), options, nn.Identity)
    assert isinstance(model, VectorQuantizedAutoEncoder)
    assert model.codebook.embedding.shape == (32, 4)
    assert model.codebook.learning == "gradient"
    assert (model.commitment, model.codebook.decay) == (0.5, 0.99)
    assert model(images_of(channels=1)).reconstruction.shape == (2, 1, 16, 16)


# Sizes


@pytest.mark.parametrize("edges", [(16, 16), (17, 20), (18, 19), (1, 1), (256, 128), (181, 3)])
def test_an_image_of_any_size_comes_back_at_its_own(edges: tuple[int, int]) -> None:
    with torch.no_grad():
        output = make().eval()(images_of(1, *edges))
    grid = -(-edges[0] // 4), -(-edges[1] // 4)
    assert output.reconstruction.shape == (1, 3, *edges)
    assert output.logits is not None
    assert output.logits.shape == (1, 3, *edges)
    assert output.latent.shape == (1, 8, *grid)
    assert output.codes is not None
    assert output.codes.shape == (1, *grid)
    assert output.codes.dtype == torch.int64
    assert output.penalty.shape == (1,)


def test_an_odd_size_is_padded_by_its_border_on_the_right_and_at_the_bottom() -> None:
    model, images = started().eval(), images_of(1, 10, 13)
    whole = model(functional.pad(images, (0, 3, 0, 2), mode="replicate"))
    assert torch.allclose(
        model(images).reconstruction, whole.reconstruction[..., :10, :13], atol=1e-6
    )


def test_bits_per_pixel_count_the_codes_of_the_padded_image() -> None:
    model = make(codebook_size=512)
    assert model.bits_per_pixel(256, 256) == pytest.approx(9 / 16)
    assert model.bits_per_pixel(5, 3) == pytest.approx(9 * 2 / 15)
    codes = model.encode(images_of(1, 5, 3))
    assert codes.numel() == 2


# Values


def test_reconstructions_are_the_sigmoid_of_the_logits() -> None:
    output = started()(images_of())
    assert torch.equal(output.reconstruction, torch.sigmoid(output.logits))


def test_decoding_the_codes_gives_the_reconstruction_bit_for_bit() -> None:
    model, images = started().eval(), images_of()
    with torch.no_grad():
        output = model(images)
        assert torch.equal(model.encode(images), output.codes)
        assert torch.equal(encode(model, images), output.codes)
        assert torch.equal(model.decode(output.codes), output.reconstruction)


def test_several_codes_are_in_use_once_the_codebook_has_begun() -> None:
    assert started().encode(images_of()).unique().numel() > 4


@pytest.mark.parametrize(("codebook", "weight"), [("ema", 0.25), ("gradient", 1.25)])
def test_the_penalty_is_the_weighted_distance_of_each_image_from_its_codes(
    codebook: str, weight: float
) -> None:
    model = started(codebook)
    for mode in (True, False):
        output = model.train(mode)(images_of(3))
        entries = model.codebook.embedding[output.codes].movedim(-1, 1)
        expected = weight * (output.latent - entries).square().mean((1, 2, 3))
        assert torch.allclose(output.penalty, expected)
        assert output.penalty.min() > 0


@pytest.mark.parametrize("commitment", [0.0, 0.25])
def test_commitment_pulls_the_encoder_and_the_other_term_the_codebook(commitment: float) -> None:
    model = make(codebook="gradient", commitment=commitment)
    model(images_of()).penalty.sum().backward()
    encoder = [w.grad for w in model.encoder.parameters() if w.grad is not None and w.grad.any()]
    assert bool(encoder) == (commitment > 0)
    assert model.codebook.embedding.grad is not None
    assert model.codebook.embedding.grad.any()


def test_the_latent_is_handed_out_without_its_gradient() -> None:
    output = make()(images_of())
    assert not output.latent.requires_grad
    assert output.reconstruction.requires_grad


def test_half_precision_leaves_codebook_and_outputs_in_float32() -> None:
    model = started()
    full = model(images_of())
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images_of())
        model.adapt(output, alone, first=True)
    floats = [output.reconstruction, output.logits, output.latent, output.penalty]
    assert {value.dtype for value in floats} == {torch.float32}
    assert (output.reconstruction - full.reconstruction).abs().max() < 0.05
    assert {value.dtype for value in model.codebook.state_dict().values()} == {torch.float32}
    assert (output.codes == full.codes).float().mean() > 0.8


# Learning


def test_it_learns_outside_of_the_gradient_as_the_trainer_expects() -> None:
    assert isinstance(make(), Adaptive)


@pytest.mark.parametrize("training", [True, False])
def test_a_pass_forward_changes_nothing_that_it_keeps(training: bool) -> None:
    model = started().train(training)
    before = hash_weights(model.state_dict())
    model(images_of())
    assert hash_weights(model.state_dict()) == before


def test_an_evaluated_network_does_not_adapt() -> None:
    model = started().eval()
    before = hash_weights(model.state_dict())
    model.adapt(model(images_of()), alone, first=True)
    assert hash_weights(model.state_dict()) == before


def test_an_output_without_codes_is_refused() -> None:
    images = images_of()
    output = Output(images, images, images.new_zeros(2))
    with pytest.raises(ValueError, match="codes must be those of the latent, got None"):
        make().adapt(output, alone, first=True)


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_training_lowers_the_loss_and_keeps_codes_in_use(codebook: str) -> None:
    model = make(codebook=codebook)
    losses = list(steps(model, torch.optim.Adam(model.parameters(), 2e-3), range(32)))
    assert min(losses[-2:]) < 0.8 * losses[0]
    assert model.encode(smooth(0)).unique().numel() > 4


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_a_resumed_run_ends_in_the_same_bits(codebook: str) -> None:
    torch.manual_seed(1)
    straight = make(codebook=codebook, codebook_decay=0.5)
    optimizer = torch.optim.Adam(straight.parameters(), 1e-3)
    list(steps(straight, optimizer, range(4)))
    saved = copy.deepcopy((straight.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    list(steps(straight, optimizer, range(4, 8)))
    resumed = make(codebook=codebook, codebook_decay=0.5)
    optimizer = torch.optim.Adam(resumed.parameters(), 1e-3)
    resumed.load_state_dict(saved[0], strict=True)
    optimizer.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    list(steps(resumed, optimizer, range(4, 8)))
    assert hash_weights(resumed.state_dict()) == hash_weights(straight.state_dict())


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_the_average_of_its_weights_is_a_network_like_it(codebook: str) -> None:
    model = make(codebook=codebook)
    average = WeightAverage(model, 0.5)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in steps(model, optimizer, range(8)):
        average.update()
    model.load_state_dict(average.module.state_dict(), strict=True)
    with torch.no_grad():
        output, expected = average.module(images_of()), model.eval()(images_of())
    assert torch.equal(output.reconstruction, expected.reconstruction)
    assert output.codes.unique().numel() > 1
    assert average.module.codebook.embedding.norm(dim=1).max() < 10
    assert not average.module.codebook.embedding.requires_grad
