import io
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from recon.errors import UserError
from recon.models.dense import DenseAutoEncoder, VariationalAutoEncoder, divergence
from recon.models.output import Output, encode, reconstruct
from recon.models.registry import Form, Options, build_model

Network = DenseAutoEncoder | VariationalAutoEncoder
KINDS = [DenseAutoEncoder, VariationalAutoEncoder]
SIZE, LATENT = (64, 32), 8
WIDTHS = [32, 64, 128, 256, 512]

each = pytest.mark.parametrize("kind", KINDS)


def made(kind: Callable[..., Any], channels: int = 1, size: tuple[int, int] = SIZE) -> Any:
    torch.manual_seed(0)
    model = kind(channels, size, LATENT).eval()
    # Statistics as training leaves them: with those of a fresh network all images come out alike.
    for name, value in model.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(value, std=0.1)
        elif name.endswith("running_var"):
            nn.init.uniform_(value, 0.02, 0.1)
    return model


def pictures(count: int = 2, channels: int = 1, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def run(model: nn.Module, images: Tensor) -> Output:
    return reconstruct(model, images)


def shapes_along(model: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Shapes of what the named convolutions give."""
    found: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, result: found.update({name: tuple(result.shape)})

    names = [n for n, _ in model.named_modules() if n.count(".") == 1 and "_conv" in n]
    hooks = [model.get_submodule(n).register_forward_hook(note(n)) for n in names]
    run(model, images)
    for hook in hooks:
        hook.remove()
    return found


# Layout


def published(latent_dim: int, heads: int) -> int:
    """Weights of reference system 3 at 1x128x128, counted from its table."""
    widths = [1, *WIDTHS]
    total = heads * (8192 * latent_dim + latent_dim) + latent_dim * 8192 + 8192
    for before, after in pairwise(widths):
        total += 9 * before * after + after + 2 * after  # with its normalisation
        total += 16 * before * after + before + 2 * before
    return total - 2  # The last convolution has no normalisation.


@pytest.mark.parametrize(("kind", "heads"), [(DenseAutoEncoder, 1), (VariationalAutoEncoder, 2)])
def test_it_has_the_published_number_of_weights(kind: type[Network], heads: int) -> None:
    model = made(kind, size=(128, 128))
    assert sum(weight.numel() for weight in model.parameters()) == published(LATENT, heads)


@each
def test_every_convolution_halves_or_doubles_and_can_be_hooked_by_its_name(
    kind: type[Network],
) -> None:
    expected = {
        f"encoder.enc_conv{i}": (2, width, 64 >> i, 32 >> i) for i, width in enumerate(WIDTHS, 1)
    } | {
        f"decoder.dec_conv{i}": (2, width, 2 << i, 1 << i)
        for i, width in enumerate([256, 128, 64, 32, 1], 1)
    }
    assert shapes_along(made(kind), pictures()) == expected


def test_the_dense_network_is_the_published_chain_of_layers() -> None:
    model, images = made(DenseAutoEncoder), pictures()
    weights, values = model.state_dict(), images
    for place in range(1, 6):
        values = layer(weights, f"encoder.enc_conv{place}", values, functional.conv2d)
    latents = functional.linear(
        values.flatten(1), weights["to_latent.weight"], weights["to_latent.bias"]
    )
    values = functional.linear(
        latents, weights["decoder.from_latent.weight"], weights["decoder.from_latent.bias"]
    ).reshape(2, 512, 2, 1)
    for place in range(1, 5):
        values = layer(weights, f"decoder.dec_conv{place}", values, functional.conv_transpose2d)
    weight, bias = weights["decoder.dec_conv5.weight"], weights["decoder.dec_conv5.bias"]
    logits = functional.conv_transpose2d(values, weight, bias, stride=2, padding=1)
    result = run(model, images)
    assert torch.allclose(result.latent, latents, atol=1e-5)
    assert result.logits is not None
    assert torch.allclose(result.logits, logits, atol=1e-5)


def layer(
    weights: dict[str, Tensor], name: str, values: Tensor, convolve: Callable[..., Tensor]
) -> Tensor:
    convolved = convolve(
        values, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"], stride=2, padding=1
    )
    mean, variance = weights[f"{name}.1.running_mean"], weights[f"{name}.1.running_var"]
    scale, shift = weights[f"{name}.1.weight"], weights[f"{name}.1.bias"]
    normalised = functional.batch_norm(convolved, mean, variance, scale, shift)
    return functional.leaky_relu(normalised, 0.01)


@each
def test_every_weight_takes_part(kind: type[Network]) -> None:
    model = made(kind).train()
    result = model(pictures(3))
    (result.reconstruction.square().sum() + result.penalty.sum()).backward()
    idle = [n for n, w in model.named_parameters() if w.grad is None or not w.grad.any()]
    # A bias in front of a batch normalisation is taken off again with the mean.
    assert [name for name in idle if not name.endswith(".0.bias")] == []


# Shapes


@each
@pytest.mark.parametrize(("channels", "size"), [(1, (32, 32)), (3, (32, 96)), (3, (64, 64))])
def test_an_output_has_the_shapes_that_it_states(
    kind: type[Network], channels: int, size: tuple[int, int]
) -> None:
    result = run(made(kind, channels, size), pictures(2, channels, size))
    assert result.reconstruction.shape == (2, channels, *size)
    assert result.latent.shape == (2, LATENT)
    assert result.penalty.shape == (2,)
    assert result.logits is not None
    assert torch.equal(result.reconstruction, torch.sigmoid(result.logits))


@each
@pytest.mark.parametrize("size", [(48, 64), (64, 33), (0, 32), (16, 16), (-32, 32)])
def test_a_size_that_32_does_not_divide_is_refused(
    kind: type[Network], size: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match=r"^tile_size must be multiples of 32 .*, got") as error:
        kind(1, size, LATENT)
    assert str(size) in str(error.value)


@each
@pytest.mark.parametrize("latent_dim", [0, -1])
def test_a_latent_of_nothing_is_refused(kind: type[Network], latent_dim: int) -> None:
    with pytest.raises(ValueError, match=f"^latent_dim must be at least 1, got {latent_dim}$"):
        kind(1, SIZE, latent_dim)


@each
@pytest.mark.parametrize("shape", [(1, 32, 64), (1, 64, 64), (3, 64, 32)])
def test_images_that_it_is_not_built_for_are_refused_in_one_line(
    kind: type[Network], shape: tuple[int, int, int]
) -> None:
    model = made(kind)
    for use in (model, model.encode):
        with pytest.raises(ValueError, match=r"^images must be \(N, 1, 64, 32\).*, got") as error:
            use(torch.rand(2, *shape))
        assert str((2, *shape)) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "kind"), [("dense", KINDS[0]), ("vae", KINDS[1])])
def test_the_registry_builds_it_and_tells_of_a_wrong_size(name: str, kind: type[Network]) -> None:
    options = Options(latent_dim=5)
    model = build_model(name, Form(3, (32, 64)), options, nn.Identity)
    assert type(model) is kind
    assert run(model.eval(), pictures(2, 3, (32, 64))).latent.shape == (2, 5)
    with pytest.raises(UserError, match=f"'{name}': tile_size must be multiples of 32"):
        build_model(name, Form(3, (50, 64)), options, nn.Identity)


# Latents


@each
def test_the_latent_is_what_encode_gives(kind: type[Network]) -> None:
    model, images = made(kind), pictures()
    with torch.no_grad():
        assert torch.equal(encode(model, images), run(model, images).latent)


@each
def test_decoding_the_latent_gives_the_reconstruction(kind: type[Network]) -> None:
    model = made(kind)
    result = run(model, pictures())
    with torch.no_grad():
        assert torch.equal(model.decode(result.latent), result.reconstruction)


@each
def test_an_image_is_reconstructed_alike_in_any_company(kind: type[Network]) -> None:
    model, images = made(kind), pictures(3)
    alone = [run(model, image[None]) for image in images]
    together = run(model, images)
    for part in ("reconstruction", "latent", "penalty"):
        one_by_one = torch.cat([getattr(result, part) for result in alone])
        assert torch.allclose(getattr(together, part), one_by_one, atol=1e-5)


def test_the_dense_autoencoder_has_no_penalty() -> None:
    assert torch.equal(run(made(DenseAutoEncoder).train(), pictures()).penalty, torch.zeros(2))


# Drawing


def test_in_evaluation_the_vae_draws_nothing() -> None:
    model, images = made(VariationalAutoEncoder), pictures()
    before = torch.get_rng_state()
    first, second = run(model, images), run(model, images)
    assert torch.equal(first.reconstruction, second.reconstruction)
    assert torch.equal(torch.get_rng_state(), before)


def test_in_training_the_vae_draws_from_the_global_generator() -> None:
    model, images = made(VariationalAutoEncoder).train(), pictures()
    torch.manual_seed(3)
    first, second = run(model, images), run(model, images)
    torch.manual_seed(3)
    again = run(model, images)
    assert torch.equal(first.reconstruction, again.reconstruction)
    assert not torch.allclose(first.reconstruction, second.reconstruction)
    assert torch.equal(first.latent, second.latent)


def drawn_latents(model: VariationalAutoEncoder, images: Tensor) -> Tensor:
    """What the decoder is fed."""
    fed: list[Tensor] = []
    hook = model.decoder.register_forward_pre_hook(lambda _module, inputs: fed.append(inputs[0]))
    run(model, images)
    hook.remove()
    return fed[0]


def with_heads(*, mean: float, log_variance: float) -> VariationalAutoEncoder:
    """A VAE that gives one mean and one log-variance for every image."""
    model: VariationalAutoEncoder = made(VariationalAutoEncoder)
    for head, value in ((model.to_mean, mean), (model.to_log_variance, log_variance)):
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, value)
    return model


def test_the_drawn_latent_has_the_mean_and_variance_of_the_heads() -> None:
    model = with_heads(mean=2.0, log_variance=-3.0).train()
    torch.manual_seed(4)
    drawn = drawn_latents(model, pictures(2, size=SIZE).repeat(100, 1, 1, 1))
    assert drawn.shape == (200, LATENT)
    assert drawn.mean().item() == pytest.approx(2.0, abs=0.03)
    assert drawn.var().item() == pytest.approx(0.049787, rel=0.1)


def test_sampling_decodes_standard_normal_latents_of_the_generator() -> None:
    model = made(VariationalAutoEncoder, channels=3)
    with torch.no_grad():
        first = model.sample(3, torch.Generator().manual_seed(5))
        again = model.sample(3, torch.Generator().manual_seed(5))
        latents = torch.randn(3, LATENT, generator=torch.Generator().manual_seed(5))
        assert torch.equal(first, model.decode(latents))
    assert first.shape == (3, 3, *SIZE)
    assert torch.equal(first, again)


def test_sampling_leaves_the_global_generator_alone() -> None:
    model = made(VariationalAutoEncoder)
    before = torch.get_rng_state()
    with torch.no_grad():
        model.sample(2, torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), before)


def test_interpolation_goes_in_even_steps_from_one_reconstruction_to_the_other() -> None:
    model, (first, second) = made(VariationalAutoEncoder), pictures(2)
    with torch.no_grad():
        line = model.interpolate(first, second, 5)
        ends = model.encode(torch.stack([first, second]))
        middle = model.decode(ends.mean(dim=0, keepdim=True))[0]
        quarter = model.decode(0.75 * ends[:1] + 0.25 * ends[1:])[0]
    reconstructions = run(model, torch.stack([first, second])).reconstruction
    assert line.shape == (5, 1, *SIZE)
    assert torch.allclose(line[0], reconstructions[0], atol=1e-6)
    assert torch.allclose(line[1], quarter, atol=1e-6)
    assert torch.allclose(line[2], middle, atol=1e-6)
    assert torch.allclose(line[4], reconstructions[1], atol=1e-6)
    assert not torch.allclose(line[0], line[4], atol=1e-2)


# Divergence


def test_the_divergence_is_that_of_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(6)
    mean = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    log_variance = 3 * torch.randn(5, 7, generator=generator, dtype=torch.float64)
    standard = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), standard).sum(dim=1)
    assert torch.allclose(divergence(mean, log_variance), expected, rtol=1e-12)


def test_the_divergence_of_the_standard_normal_is_zero() -> None:
    assert torch.equal(divergence(torch.zeros(2, 4), torch.zeros(2, 4)), torch.zeros(2))


def test_the_divergence_sums_over_latent_dimensions() -> None:
    # By hand: (1 + 4 - 1 - ln 4) / 2 for a mean of 1 and a variance of 4.
    one = divergence(torch.ones(1, 1), torch.full((1, 1), 4.0).log())
    assert one.item() == pytest.approx(1.3068528, rel=1e-6)
    assert divergence(torch.ones(2, 3), torch.full((2, 3), 4.0).log())[1].item() == pytest.approx(
        3 * 1.3068528, rel=1e-6
    )


def test_the_divergence_keeps_its_digits_near_the_standard_normal() -> None:
    small = torch.full((1, 512), 1e-3)
    expected = divergence(torch.zeros(1, 512).double(), small.double()).item()
    assert divergence(torch.zeros(1, 512), small).item() == pytest.approx(expected, rel=1e-3)


def test_the_penalty_is_the_divergence_of_the_heads_without_a_weight() -> None:
    for mode in (True, False):
        model = with_heads(mean=1.0, log_variance=1.3862944).train(mode)
        penalty = run(model, pictures(3)).penalty
        assert torch.allclose(penalty, torch.full((3,), LATENT * 1.3068528))


@pytest.mark.parametrize(("given", "used"), [(1e4, 20.0), (-1e4, -30.0), (3.0, 3.0)])
def test_log_variances_are_clamped(given: float, used: float) -> None:
    model = with_heads(mean=0.0, log_variance=given)
    expected = divergence(torch.zeros(2, LATENT), torch.full((2, LATENT), used))
    assert torch.allclose(run(model, pictures()).penalty, expected)


@pytest.mark.parametrize("log_variance", [1e30, -1e30, 20.0, -30.0])
def test_gradients_are_finite_whatever_the_log_variance(log_variance: float) -> None:
    model = with_heads(mean=-50.0, log_variance=log_variance).train()
    result = model(pictures())
    (result.reconstruction.mean() + result.penalty.mean()).backward()
    assert result.penalty.isfinite().all()
    assert all(w.grad is not None and w.grad.isfinite().all() for w in model.parameters())


# Precision, layout, storage


@each
@pytest.mark.parametrize("training", [False, True])
def test_half_precision_gives_float32_throughout(kind: type[Network], *, training: bool) -> None:
    model, images = made(kind).train(training), pictures()
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16):
        half = run(model, images)
    torch.manual_seed(7)
    full = run(model, images)
    for part in ("reconstruction", "latent", "penalty", "logits"):
        assert getattr(half, part).dtype == torch.float32
    assert not torch.equal(half.reconstruction, half.reconstruction.bfloat16().float())
    assert (half.reconstruction - full.reconstruction).abs().max() < 0.1


def test_the_penalty_is_summed_in_float32_under_half_precision() -> None:
    model, images = made(VariationalAutoEncoder), pictures()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        features = model.encoder(images).flatten(1)
        mean, log_variance = model.to_mean(features), model.to_log_variance(features)
        penalty = model(images).penalty
    assert mean.dtype == torch.bfloat16
    expected = divergence(mean.double(), log_variance.double())
    assert torch.allclose(penalty.double(), expected, rtol=1e-5)


@each
def test_channels_last_changes_nothing(kind: type[Network]) -> None:
    model, images = made(kind, channels=3), pictures(2, 3)
    expected = run(model, images)
    model.to(memory_format=torch.channels_last)
    result = run(model, images.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(result.reconstruction, expected.reconstruction, atol=1e-5)
    assert torch.allclose(result.latent, expected.latent, atol=1e-5)


def gathered(parts: list[Output]) -> Output:
    """What `torch.nn.parallel.gather` makes of outputs, without its GPUs."""
    first = parts[0]
    joined = (None if p[0] is None else torch.cat(p) for p in zip(*parts, strict=True))
    return type(first)._make(joined)


@each
def test_outputs_of_parts_of_a_batch_join_as_dataparallel_joins_them(kind: type[Network]) -> None:
    model, images = made(kind), pictures(4)
    parts = [run(model, part) for part in images.chunk(2)]
    joined = gathered(parts)
    for one, other in zip(joined, run(model, images), strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert torch.allclose(one, other, atol=1e-5)


@each
def test_its_weights_load_strictly_into_another(kind: type[Network]) -> None:
    model, images, stored = made(kind), pictures(), io.BytesIO()
    torch.save(model.state_dict(), stored)
    stored.seek(0)
    other = kind(1, SIZE, LATENT).eval()
    other.load_state_dict(torch.load(stored, weights_only=True), strict=True)
    assert torch.equal(run(other, images).reconstruction, run(model, images).reconstruction)


@each
def test_it_learns_two_images(kind: type[Network]) -> None:
    model, images = made(kind, size=(32, 32)).train(), pictures(2, size=(32, 32)).round()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = functional.mse_loss(model(images).reconstruction, images)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
