"""The residual autoencoder."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from recon.models.output import encode
from recon.models.registry import Form, Options, build_model
from recon.models.residual import ResidualAutoEncoder


def make(
    blocks: int = 1, channels: int = 3, latent_channels: int = 1, activation: str = "relu"
) -> ResidualAutoEncoder:
    torch.manual_seed(0)
    return ResidualAutoEncoder(
        channels, blocks, latent_channels=latent_channels, activation=activation
    )


def images_of(count: int = 2, height: int = 16, width: int = 16, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(count + height + width)
    return torch.rand(count, channels, height, width, generator=generator)


def shapes_of(model: nn.Module, kind: type[nn.Module]) -> list[tuple[int, ...]]:
    return [tuple(m.weight.shape) for m in model.modules() if isinstance(m, kind)]


# Layers


@pytest.mark.parametrize("blocks", [1, 3])
def test_its_convolutions_are_the_published_ones(blocks: int) -> None:
    model = make(blocks)
    within = {width: [(width, width, 3, 3)] * (2 * blocks) for width in (64, 32, 8)}
    assert shapes_of(model.encoder, nn.Conv2d) == [
        (64, 3, 3, 3), *within[64], (32, 64, 3, 3), *within[32], (8, 32, 3, 3), *within[8],
        (1, 8, 3, 3),
    ]  # fmt: skip
    assert shapes_of(model.decoder, nn.ConvTranspose2d) == [
        (1, 8, 3, 3), *within[8], (8, 32, 3, 3), *within[32], (32, 64, 3, 3), *within[64],
        (64, 3, 3, 3),
    ]  # fmt: skip


def test_a_block_adds_two_normalised_convolutions_to_what_goes_in() -> None:
    block = make().encoder[0].blocks[0]
    first, norm, _, second, last = block.layers
    nn.init.normal_(last.weight)
    features = torch.randn(2, 64, 6, 5)
    inner = functional.batch_norm(
        functional.conv2d(features, first.weight, padding=1), None, None, norm.weight, norm.bias,
        training=True,
    ).relu()  # fmt: skip
    expected = features + functional.batch_norm(
        functional.conv2d(inner, second.weight, padding=1), None, None, last.weight, last.bias,
        training=True,
    )  # fmt: skip
    assert torch.allclose(block(features), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", functional.relu),
        ("leaky_relu", lambda x: functional.leaky_relu(x, 0.01)),
        ("elu", functional.elu),
        ("gelu", functional.gelu),
        ("silu", functional.silu),
    ],
)
def test_activations_go_by_their_names(name: str, function: Callable[[Tensor], Tensor]) -> None:
    model, values = make(activation=name), torch.linspace(-3, 3, 13)
    for stage in (model.encoder[0], model.decoder["dec_conv1"]):
        assert torch.allclose(stage.blocks[0].layers[2](values), function(values))


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^activation must be one of relu, .*, got 'tanh'$"):
        make(activation="tanh")


def test_every_weight_takes_part_once_the_blocks_have_opened() -> None:
    model = make()
    for name, weight in model.named_parameters():
        if name.endswith("layers.4.weight"):
            nn.init.ones_(weight)
    model(images_of()).reconstruction.square().sum().backward()
    assert [
        name for name, w in model.named_parameters() if w.grad is None or not w.grad.any()
    ] == []


def test_the_registry_builds_it_from_the_settings() -> None:
    options = Options(residual_blocks=2, latent_channels=3, activation="gelu")
    model = build_model("residual", Form(1, (16, 16)), options, nn.Identity)
    assert isinstance(model, ResidualAutoEncoder)
    assert len(model.encoder[0].blocks) == 2
    assert isinstance(model.encoder[0].blocks[0].layers[2], nn.GELU)
    output = model(images_of(channels=1))
    assert output.latent.shape == (2, 3, 4, 4)
    assert output.reconstruction.shape == (2, 1, 16, 16)


# Sizes


@pytest.mark.parametrize(
    ("edges", "latent"),
    [
        ((181, 181), (46, 46)),
        ((121, 121), (31, 31)),
        ((128, 180), (32, 45)),
        ((182, 183), (46, 46)),
        ((16, 17), (4, 5)),
        ((2, 1), (1, 1)),
        ((3, 5), (1, 2)),
    ],
)
def test_an_image_of_any_size_comes_back_at_its_own(
    edges: tuple[int, int], latent: tuple[int, int]
) -> None:
    model, images = make().eval(), images_of(1, *edges)
    with torch.no_grad():
        output = model(images)
    assert output.reconstruction.shape == images.shape
    assert output.logits is not None
    assert output.logits.shape == images.shape
    assert output.latent.shape == (1, 1, *latent)


def test_a_size_of_the_reference_is_decoded_without_output_padding() -> None:
    model = make().eval()
    with torch.no_grad():
        output = model(images_of(1, 13, 9))
        features = output.latent
        for stage in model.decoder.values():
            features = stage.blocks(stage.layer(features))
    assert torch.equal(output.logits, features)


# Values


def test_reconstructions_are_the_sigmoid_of_the_logits() -> None:
    output = make()(images_of())
    assert torch.equal(output.reconstruction, torch.sigmoid(output.logits))
    assert torch.equal(output.penalty, torch.zeros(2))
    assert output.codes is None


def test_encoding_and_decoding_make_what_the_whole_makes() -> None:
    model, images = make().eval(), images_of(2, 10, 13)
    with torch.no_grad():
        output = model(images)
        assert torch.equal(model.encode(images), output.latent)
        assert torch.equal(encode(model, images), output.latent)
        assert torch.equal(model.decode(output.latent, (10, 13)), output.reconstruction)


def test_half_precision_gives_float32() -> None:
    model, images = make().eval(), images_of()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images)
    assert {output.reconstruction.dtype, output.latent.dtype} == {torch.float32}
    assert (output.reconstruction - model(images).reconstruction).abs().max() < 0.05


# Training


@pytest.mark.parametrize("blocks", [1, 10])
def test_neither_signal_nor_gradient_fades_with_depth(blocks: int) -> None:
    model, images = make(blocks), torch.randn(4, 3, 24, 24)
    output = model(images)
    assert 0.2 < output.latent.std() < 5
    assert 0.05 < output.logits.std() < 5
    (output.logits * torch.randn_like(output.logits)).sum().backward()
    first = model.encoder[0].layer.weight.grad.norm()
    last = model.decoder["dec_conv4"].layer.weight.grad.norm()
    assert 0.1 < first / last < 10


def test_ten_blocks_a_scale_learn_from_the_first_steps() -> None:
    model, images = make(10), functional.interpolate(images_of(4, 4, 4), (16, 16), mode="bilinear")
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    losses = []
    for _ in range(12):
        loss = (model(images).reconstruction - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.6 * losses[0]
