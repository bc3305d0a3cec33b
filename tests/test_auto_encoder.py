import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from Auto_encoder import AutoEncoder

FILE = Path(__file__).parents[1] / "Auto_encoder.py"
ENCODER = [(3, 32, 1), (32, 64, 2), (64, 128, 2), (128, 256, 2), (256, 512, 2), (512, 512, 2)]
DECODER = [(512, 512), (512, 256), (256, 128), (128, 64), (64, 32)]


class Reference(nn.Module):
    """The published layout, written out layer by layer."""

    def __init__(self) -> None:
        super().__init__()
        encoder: list[nn.Module] = []
        for before, after, stride in ENCODER:
            encoder += [nn.Conv2d(before, after, 3, stride, 1)]
            encoder += [nn.BatchNorm2d(after), nn.LeakyReLU(0.01)]
        decoder: list[nn.Module] = []
        for before, after in DECODER:
            decoder += [nn.ConvTranspose2d(before, after, 3, 2, 1, 1)]
            decoder += [nn.BatchNorm2d(after), nn.LeakyReLU(0.01)]
        decoder += [nn.Conv2d(32, 3, 3, 1, 1), nn.Sigmoid()]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))


def published_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a published file of weights, in their order."""
    for place, (before, after, _) in enumerate(ENCODER):
        yield from layer_shapes("encoder", 3 * place, (after, before, 3, 3), after)
    for place, (before, after) in enumerate(DECODER):
        yield from layer_shapes("decoder", 3 * place, (before, after, 3, 3), after)
    yield "decoder.15.weight", (3, 32, 3, 3)
    yield "decoder.15.bias", (3,)


def layer_shapes(
    part: str, index: int, weight: tuple[int, ...], width: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{part}.{index}.weight", weight
    yield f"{part}.{index}.bias", (width,)
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield f"{part}.{index + 1}.{name}", (width,)
    yield f"{part}.{index + 1}.num_batches_tracked", ()


def trained(model: nn.Module, seed: int) -> nn.Module:
    """The model with statistics as training leaves them, not those of a fresh one."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.05, 0.2)
            nn.init.normal_(module.weight, mean=1.0, std=0.2)
            nn.init.normal_(module.bias, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def network() -> AutoEncoder:
    torch.manual_seed(0)
    model = trained(AutoEncoder(), seed=0)
    assert isinstance(model, AutoEncoder)
    return model


@torch.no_grad()
def run(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


# Weights


def test_it_has_the_published_number_of_weights(network: AutoEncoder) -> None:
    assert sum(weight.numel() for weight in network.parameters()) == 7_861_251


def test_names_and_shapes_of_its_weights_are_the_published_ones(network: AutoEncoder) -> None:
    found = [(name, tuple(value.shape)) for name, value in network.state_dict().items()]
    assert found == list(published_shapes())
    assert found[0][0] == "encoder.0.weight"
    assert found[-1][0] == "decoder.15.bias"


def test_weights_of_the_published_layout_give_the_same_outputs() -> None:
    torch.manual_seed(1)
    reference, network = trained(Reference(), seed=1), AutoEncoder().eval()
    network.load_state_dict(reference.state_dict(), strict=True)
    images = torch.rand(2, 3, 64, 96)
    assert torch.equal(run(network, images), run(reference, images))


def test_its_weights_load_into_the_published_layout(network: AutoEncoder) -> None:
    reference = Reference().eval()
    reference.load_state_dict(network.state_dict(), strict=True)
    images = torch.rand(2, 3, 32, 64)
    expected = run(network, images)
    assert expected.std() > 0.01
    assert torch.equal(run(reference, images), expected)


def test_every_weight_takes_part(network: AutoEncoder) -> None:
    model = AutoEncoder()
    model(torch.rand(2, 3, 64, 64)).square().sum().backward()
    idle = [n for n, w in model.named_parameters() if w.grad is None or not w.grad.any()]
    # A bias in front of a batch normalisation is taken off again with the mean.
    assert [name for name in idle if not name.endswith(".bias")] == []


# Latent


@pytest.mark.parametrize("edges", [(32, 32), (64, 96), (256, 256)])
def test_the_latent_has_512_channels_at_a_32nd_of_the_size(
    network: AutoEncoder, edges: tuple[int, int]
) -> None:
    latent = run(network.encoder, torch.rand(1, 3, *edges))
    assert latent.shape == (1, 512, edges[0] // 32, edges[1] // 32)


def test_the_decoder_makes_of_the_latent_what_the_whole_makes_of_the_image(
    network: AutoEncoder,
) -> None:
    images = torch.rand(2, 3, 64, 32)
    latent = run(network.encoder, images)
    assert torch.equal(run(network.decoder, latent), run(network, images))


# Sizes


@pytest.mark.parametrize(
    "edges", [(32, 32), (64, 32), (33, 64), (31, 65), (11, 50), (1, 1), (1, 70), (181, 181)]
)
def test_an_image_of_any_size_comes_back_at_its_own(
    network: AutoEncoder, edges: tuple[int, int]
) -> None:
    images = torch.rand(1, 3, *edges)
    assert run(network, images).shape == images.shape


@pytest.mark.parametrize(("height", "width"), [(40, 61), (64, 61), (40, 64)])
def test_an_odd_size_is_padded_by_its_border_on_the_right_and_at_the_bottom(
    network: AutoEncoder, height: int, width: int
) -> None:
    images = torch.rand(1, 3, height, width)
    padded = functional.pad(images, (0, 64 - width, 0, 64 - height), mode="replicate")
    expected = run(network, padded)[..., :height, :width]
    assert torch.equal(run(network, images), expected)


def test_a_batch_of_one_is_what_it_is_among_others(network: AutoEncoder) -> None:
    images = torch.rand(3, 3, 32, 32)
    assert torch.allclose(run(network, images)[1:2], run(network, images[1:2]), atol=1e-5)


def test_grey_images_have_one_channel_throughout() -> None:
    grey = AutoEncoder(channels=1).eval()
    assert grey.encoder[0].weight.shape == (32, 1, 3, 3)
    assert run(grey, torch.rand(2, 1, 40, 32)).shape == (2, 1, 40, 32)


# Values


@pytest.mark.parametrize("factor", [1.0, 1e3, -1e3])
def test_reconstructions_lie_between_0_and_1(network: AutoEncoder, factor: float) -> None:
    decoded = run(network, factor * torch.rand(1, 3, 64, 64))
    assert decoded.isfinite().all()
    assert decoded.min() >= 0
    assert decoded.max() <= 1


def test_half_precision_gives_float32_with_more_levels_than_it_has_itself(
    network: AutoEncoder,
) -> None:
    images = torch.rand(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        decoded = run(network, images)
    assert decoded.dtype == torch.float32
    assert not torch.equal(decoded, decoded.bfloat16().float())
    assert (decoded - run(network, images)).abs().max() < 0.05


# One file


def test_it_imports_torch_and_the_standard_library_alone() -> None:
    tops = set()
    for node in ast.walk(ast.parse(FILE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            tops |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            tops.add(str(node.module).split(".")[0])
    assert "torch" in tops
    assert tops - {"torch"} <= sys.stdlib_module_names


def test_a_copy_of_the_file_works_in_another_folder(tmp_path: Path, network: AutoEncoder) -> None:
    shutil.copy(FILE, tmp_path)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    program = tmp_path / "use.py"
    program.write_text(
        "import sys, torch\n"
        "from Auto_encoder import AutoEncoder\n"
        "model = AutoEncoder().eval()\n"
        "model.load_state_dict(torch.load('weights.pth', weights_only=True), strict=True)\n"
        "assert 'recon' not in sys.modules and 'Config' not in sys.modules\n"
        "print(sys.modules['Auto_encoder'].__file__, model(torch.zeros(1, 3, 32, 32)).shape)\n",
        encoding="utf-8",
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    answer = subprocess.run(
        [sys.executable, "use.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    where, shape = answer.stdout.split(" ", 1)
    assert Path(where).resolve() == (tmp_path / "Auto_encoder.py").resolve()
    assert shape.strip() == "torch.Size([1, 3, 32, 32])"
