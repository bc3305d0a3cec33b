import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from recon.errors import UserError
from recon.models.output import Output, encode, reconstruct
from recon.models.registry import Form, Options, build_model
from recon.models.unet import UNet

WIDTH = 4


@pytest.fixture(scope="module")
def network() -> UNet:
    torch.manual_seed(0)
    model = UNet(3, WIDTH)
    for name, value in model.named_buffers():  # statistics as training leaves them
        if name.endswith("running_mean"):
            nn.init.normal_(value, std=0.1)
        elif name.endswith("running_var"):
            nn.init.uniform_(value, 0.1, 0.5)
    return model.eval()


def pictures(count: int = 2, channels: int = 3, height: int = 48, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, channels, height, width, generator=generator)


@torch.no_grad()
def run(model: nn.Module, images: Tensor) -> Output:
    return reconstruct(model, images)


# Shapes


@pytest.mark.parametrize("edges", [(16, 16), (32, 48), (33, 64), (31, 50), (1, 1), (1, 70)])
def test_an_image_of_any_size_comes_back_at_its_own(network: UNet, edges: tuple[int, int]) -> None:
    result = run(network, pictures(1, 3, *edges))
    assert result.reconstruction.shape == (1, 3, *edges)
    assert result.logits is not None
    assert result.logits.shape == (1, 3, *edges)


@pytest.mark.parametrize(("height", "width"), [(20, 29), (32, 29), (20, 32)])
def test_an_odd_size_is_padded_by_its_border_on_the_right_and_at_the_bottom(
    network: UNet, height: int, width: int
) -> None:
    images = pictures(1, 3, height, width)
    padded = functional.pad(images, (0, 32 - width, 0, 32 - height), mode="replicate")
    expected = run(network, padded)
    result = run(network, images)
    assert result.logits is not None
    assert expected.logits is not None
    assert torch.equal(result.logits, expected.logits[..., :height, :width])
    assert torch.equal(result.latent, expected.latent)


@pytest.mark.parametrize(("edges", "places"), [((48, 32), (3, 2)), ((33, 16), (3, 1))])
def test_the_latent_is_the_lowest_scale(
    network: UNet, edges: tuple[int, int], places: tuple[int, int]
) -> None:
    images = pictures(2, 3, *edges)
    latent = run(network, images).latent
    assert latent.shape == (2, 16 * WIDTH, *places)
    with torch.no_grad():
        assert torch.equal(encode(network, images), latent)


def test_the_named_stages_halve_four_times_and_double_four_times(network: UNet) -> None:
    found: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, result: found.update({name: tuple(result.shape)})

    names = [f"encoder.enc_conv{i}" for i in range(1, 6)]
    names += [f"decoder.dec_conv{i}" for i in range(1, 5)]
    hooks = [network.get_submodule(n).register_forward_hook(note(n)) for n in names]
    run(network, pictures())
    for hook in hooks:
        hook.remove()
    scales = [0, 1, 2, 3, 4, 3, 2, 1, 0]
    shapes = [(2, WIDTH << s, 48 >> s, 32 >> s) for s in scales]
    assert found == dict(zip(names, shapes, strict=True))


def test_grey_images_have_one_channel_throughout() -> None:
    grey = UNet(1, WIDTH).eval()
    assert run(grey, pictures(channels=1)).reconstruction.shape == (2, 1, 48, 32)


@pytest.mark.parametrize("width", [0, -3])
def test_a_width_of_nothing_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"^unet_width must be at least 1, got {width}$"):
        UNet(3, width)


def test_the_registry_builds_it_for_any_size() -> None:
    options = Options(unet_width=2)
    model = build_model("unet", Form(1, (50, 31)), options, nn.Identity)
    assert isinstance(model, UNet)
    assert run(model.eval(), pictures(1, 1, 50, 31)).latent.shape == (1, 32, 4, 2)
    with pytest.raises(UserError, match="'unet': unet_width must be"):
        build_model("unet", Form(1, (50, 31)), Options(unet_width=0), nn.Identity)


# Values


def test_an_output_is_the_sigmoid_of_its_logits_without_penalty(network: UNet) -> None:
    result = run(network, pictures())
    assert isinstance(result, Output)
    assert result.logits is not None
    assert torch.equal(result.reconstruction, torch.sigmoid(result.logits))
    assert torch.equal(result.penalty, torch.zeros(2))
    assert result.codes is None


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_every_scale_reaches_the_reconstruction_past_the_latent(network: UNet, stage: int) -> None:
    images = pictures()
    expected = run(network, images)
    rise = network.get_submodule(f"decoder.dec_conv{5 - stage}")
    silence = rise.register_forward_pre_hook(lambda _m, inputs: (inputs[0], 0 * inputs[1]))
    result = run(network, images)
    silence.remove()
    assert torch.equal(result.latent, expected.latent)
    assert not torch.allclose(result.reconstruction, expected.reconstruction, atol=1e-4)


def test_every_weight_takes_part() -> None:
    model = UNet(3, WIDTH)
    model(pictures()).reconstruction.square().sum().backward()
    idle = [n for n, w in model.named_parameters() if w.grad is None or not w.grad.any()]
    # The bias of the rise goes into a convolution, not straight into a normalisation.
    assert idle == []


def test_an_image_is_reconstructed_alike_in_any_company(network: UNet) -> None:
    images = pictures(3)
    alone = torch.cat([run(network, image[None]).reconstruction for image in images])
    assert torch.allclose(run(network, images).reconstruction, alone, atol=1e-5)


def test_half_precision_gives_float32_with_more_levels_than_it_has_itself(network: UNet) -> None:
    images = pictures()
    with torch.autocast("cpu", torch.bfloat16):
        half = run(network, images).reconstruction
    assert half.dtype == torch.float32
    assert not torch.equal(half, half.bfloat16().float())
    assert (half - run(network, images).reconstruction).abs().max() < 0.05


def test_channels_last_changes_nothing() -> None:
    model, images = UNet(3, WIDTH).eval(), pictures(height=40)
    expected = run(model, images).reconstruction
    model.to(memory_format=torch.channels_last)
    result = run(model, images.contiguous(memory_format=torch.channels_last)).reconstruction
    assert torch.allclose(result, expected, atol=1e-5)


def test_its_weights_load_strictly_into_another(network: UNet) -> None:
    stored = io.BytesIO()
    torch.save(network.state_dict(), stored)
    stored.seek(0)
    other = UNet(3, WIDTH).eval()
    other.load_state_dict(torch.load(stored, weights_only=True), strict=True)
    images = pictures()
    assert torch.equal(run(other, images).reconstruction, run(network, images).reconstruction)


def test_it_learns_to_take_off_noise() -> None:
    torch.manual_seed(2)
    model = UNet(1, WIDTH).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    rows = torch.linspace(0, 6, 32).sin() / 2 + 0.5
    clean = (rows[:, None] * rows).expand(4, 1, 32, 32)
    noisy = (clean + 0.3 * torch.randn(clean.shape)).clamp(0, 1)
    for _ in range(40):
        loss: Tensor = functional.mse_loss(model(noisy).reconstruction, clean)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < functional.mse_loss(noisy, clean).item() / 3
