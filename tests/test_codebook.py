"""The codebook of the VQ-VAE."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recon.models.codebook import Codebook, perplexity, straight_through


def alone(values: Tensor) -> Tensor:
    """The sum over one rank."""
    return values


def make(size: int = 8, dim: int = 3, learning: str = "ema", decay: float = 0.99) -> Codebook:
    torch.manual_seed(0)
    return Codebook(size, dim, learning=learning, decay=decay)


def started(entries: Tensor, learning: str = "ema", decay: float = 0.99) -> Codebook:
    """A codebook of these entries as it is after its start: N = 1, m = e."""
    codebook = make(*entries.shape, learning=learning, decay=decay)
    with torch.no_grad():
        codebook.embedding.copy_(entries)
        codebook.usage.fill_(1.0)
        if learning == "ema":
            codebook.sums.copy_(entries)
    return codebook


def picture(vectors: list[list[float]]) -> Tensor:
    """A latent of one image, one row high, whose vectors are these."""
    return torch.tensor(vectors).t()[None, :, None]


def distances_between(some: Tensor, others: Tensor) -> Tensor:
    return torch.linalg.vector_norm(some[:, None].double() - others[None].double(), dim=-1)


def learn(codebook: Codebook, latent: Tensor, total: Callable[[Tensor], Tensor] = alone) -> None:
    codebook.adapt(latent, codebook(latent), total, first=True)


def state_of(codebook: Codebook) -> dict[str, Tensor]:
    return copy.deepcopy(codebook.state_dict())


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


# Choosing


def test_the_nearest_entry_is_chosen() -> None:
    torch.manual_seed(1)
    codebook, latent = started(torch.randn(32, 5)), torch.randn(2, 5, 6, 7)
    vectors = latent.permute(0, 2, 3, 1).reshape(-1, 5)
    expected = distances_between(vectors, codebook.embedding).argmin(1)
    assert torch.equal(codebook(latent), expected.view(2, 6, 7))


def test_entries_that_half_precision_cannot_tell_apart_are_told_apart_under_autocast() -> None:
    codebook = started(torch.tensor([[1.0], [1.001]]))
    with torch.autocast("cpu", torch.bfloat16):
        codes = codebook(picture([[1.0001], [1.0009]]))
    assert codes.tolist() == [[[0, 1]]]


def test_entries_that_tf32_cannot_tell_apart_are_searched_in_double_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codebook, products = started(torch.tensor([[1.0], [1.0001]])), []
    plain = torch.addmm
    record = lambda *args, **named: products.append(args[1].dtype) or plain(*args, **named)  # noqa: E731
    monkeypatch.setattr(torch, "addmm", record)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert codebook(picture([[1.00001], [1.00009]])).tolist() == [[[0, 1]]]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert products == [torch.float64]


def test_a_search_in_pieces_finds_what_a_whole_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    codebook, latent = started(torch.randn(8, 3)), torch.randn(2, 3, 5, 5)
    whole = codebook(latent)
    monkeypatch.setattr("recon.models.codebook.SEARCHED", 7)
    assert torch.equal(codebook(latent), whole)


def test_entries_lie_where_their_numbers_do() -> None:
    codebook, codes = started(torch.randn(8, 3)), torch.randint(8, (2, 4, 5))
    found = codebook.look_up(codes)
    assert found.shape == (2, 3, 4, 5)
    assert torch.equal(found[1, :, 2, 3], codebook.embedding[codes[1, 2, 3]])
    assert torch.equal(codebook(found), codes)


def test_the_gradient_passes_straight_through_to_the_latent_and_not_to_the_entries() -> None:
    latent = torch.randn(2, 3, 4, 4, requires_grad=True)
    entries = torch.randn(2, 3, 4, 4, requires_grad=True)
    weights = torch.randn(2, 3, 4, 4)
    quantised = straight_through(latent, entries)
    (quantised * weights).sum().backward()
    assert torch.equal(quantised, entries)
    assert latent.grad is not None
    assert torch.equal(latent.grad, weights)
    assert entries.grad is None


def test_an_unknown_way_of_learning_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^codebook must be one of ema, gradient, got 'magic'$"):
        make(learning="magic")


# Moving averages


def test_a_step_of_two_entries_agrees_with_one_by_hand() -> None:
    codebook = started(torch.tensor([[0.0, 0.0], [4.0, 4.0]]), decay=0.9)
    learn(codebook, picture([[1.0, 0.0], [0.0, 2.0], [5.0, 3.0]]))
    # n = (2, 1); N = 0.9 + 0.1 n; m = 0.9 e + 0.1 sum; sum(N) = 2.1, and 2e-5 is K epsilon.
    usage = torch.tensor([1.1, 1.0])
    sums = torch.tensor([[0.1, 0.2], [3.6 + 0.5, 3.6 + 0.3]])
    smoothed = (usage + 1e-5) / (2.1 + 2e-5) * 2.1
    assert torch.allclose(codebook.usage, usage)
    assert torch.allclose(codebook.sums, sums)
    assert torch.allclose(codebook.embedding, sums / smoothed[:, None], rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 200])
def test_entries_that_nothing_chooses_keep_their_norms_until_they_are_revived(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recon.models.codebook.LEAST_USAGE", 0.0)
    torch.manual_seed(1)
    entries = torch.cat([torch.zeros(1, 4), 10 + torch.rand(15, 4)])
    codebook = started(entries)
    for _ in range(steps):
        learn(codebook, 0.1 * torch.randn(2, 4, 4, 4))
    norms = codebook.embedding[1:].norm(dim=1)
    assert torch.allclose(norms, entries[1:].norm(dim=1), rtol=2e-4)


@pytest.mark.parametrize("steps", [1, 200])
def test_no_entry_is_thrown_further_out_than_the_vectors(steps: int) -> None:
    codebook, latent = make(64, 4), torch.randn(2, 4, 4, 4)
    for _ in range(steps):
        learn(codebook, latent)
    largest = latent.norm(dim=1).max()
    assert codebook.embedding.norm(dim=1).max() < 1.001 * largest


def test_an_entry_comes_to_the_mean_of_the_vectors_that_choose_it() -> None:
    codebook = started(torch.tensor([[0.0], [10.0]]), decay=0.5)
    for _ in range(40):
        learn(codebook, picture([[1.0], [3.0], [11.0]]))
    assert torch.allclose(codebook.embedding, torch.tensor([[2.0], [11.0]]), atol=1e-3)


def test_it_learns_in_place_so_that_views_and_averages_keep_their_hold() -> None:
    codebook = make()
    before = {name: value.data_ptr() for name, value in codebook.state_dict().items()}
    for _ in range(3):
        learn(codebook, torch.randn(1, 3, 4, 4))
    assert {name: value.data_ptr() for name, value in codebook.state_dict().items()} == before


@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_nothing_is_learnt_in_evaluation(learning: str) -> None:
    codebook = make(learning=learning).eval()
    before, latent = state_of(codebook), torch.randn(1, 3, 4, 4)
    learn(codebook, latent)
    assert same(state_of(codebook), before)
    learn(codebook.train(), latent)
    assert not same(state_of(codebook), before)


def test_choosing_and_looking_up_leave_the_codebook_as_it_is() -> None:
    codebook = make()
    before = state_of(codebook)
    codebook.look_up(codebook(torch.randn(1, 3, 4, 4)))
    assert same(state_of(codebook), before)


def test_all_that_it_keeps_is_float32() -> None:
    assert {value.dtype for value in make().state_dict().values()} == {torch.float32}
    assert make().state_dict().keys() == {"embedding", "usage", "sums"}
    assert make(learning="gradient").state_dict().keys() == {"embedding", "usage"}


# Start and revival


@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_it_starts_from_different_vectors_of_the_first_batch(learning: str) -> None:
    codebook, latent = make(8, 3, learning), 5 + torch.randn(2, 3, 4, 4)
    learn(codebook, latent)
    vectors = latent.movedim(1, -1).reshape(-1, 3)
    distances = distances_between(codebook.embedding.detach(), vectors)
    assert distances.min(1).values.max() < 1e-3
    assert len(set(distances.argmin(1).tolist())) == 8
    assert torch.equal(codebook.usage, torch.ones(8))


def test_it_starts_with_the_sums_of_its_entries() -> None:
    codebook = make()
    learn(codebook, torch.randn(1, 3, 4, 4))
    assert torch.allclose(codebook.sums, codebook.embedding, rtol=1e-4)


def test_a_first_batch_of_fewer_vectors_than_entries_is_enough() -> None:
    codebook, latent = make(8, 3), torch.randn(1, 3, 1, 3)
    learn(codebook, latent)
    distances = distances_between(codebook.embedding, latent[0, :, 0].t())
    assert set(distances.argmin(1).tolist()) == {0, 1, 2}


@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_a_dead_entry_is_revived_from_the_batch_and_the_living_stay(learning: str) -> None:
    codebook = started(torch.tensor([[0.0], [50.0], [9.0]]), learning, decay=0.9)
    for _ in range(13):  # 0.9^13 is less than 0.4 of the mean of 1, 0 and 1
        learn(codebook, picture([[0.0], [9.0]]))
    assert codebook.embedding[1].item() == pytest.approx(50, rel=1e-3)
    learn(codebook, picture([[0.0], [9.0]]))
    assert codebook.usage[1].item() == 1.0
    assert min(abs(codebook.embedding[1].item() - value) for value in (0.0, 9.0)) < 1e-3
    assert torch.allclose(codebook.embedding[[0, 2]], torch.tensor([[0.0], [9.0]]), atol=1e-3)
    if learning == "ema":
        assert torch.allclose(codebook.sums[1], codebook.embedding[1], rtol=1e-4)


def test_a_rarely_chosen_entry_lives_where_batches_are_small() -> None:
    codebook = started(torch.arange(8.0)[:, None], decay=0.9)
    for step in range(32):  # Each entry is chosen in one step of eight.
        learn(codebook, picture([[float(step % 8)]]))
    assert torch.allclose(codebook.embedding, torch.arange(8.0)[:, None], atol=1e-2)


def test_the_dead_come_back_until_nearly_all_are_in_use() -> None:
    torch.manual_seed(3)
    codebook = started(torch.cat([torch.zeros(1, 2), torch.full((31, 2), 100.0)]), decay=0.8)
    for _ in range(60):
        learn(codebook, torch.rand(1, 2, 16, 16))
    assert codebook(torch.rand(1, 2, 16, 16)).unique().numel() > 28


def test_vectors_for_the_dead_come_from_everywhere_in_the_batch() -> None:
    latent, seen = torch.arange(64.0).view(1, 1, 8, 8), set()
    torch.manual_seed(2)
    for _ in range(40):
        codebook = Codebook(8, 1, learning="gradient", decay=0.9)
        learn(codebook, latent)
        seen |= set(codebook.embedding.detach().flatten().tolist())
    assert len(seen) > 60


# Gradient


def test_a_gradient_codebook_moves_by_its_optimiser_alone_while_its_entries_live() -> None:
    codebook = started(torch.randn(8, 3), "gradient")
    before = codebook.embedding.detach().clone()
    learn(codebook, torch.randn(1, 3, 8, 8))
    assert torch.equal(codebook.embedding, before)
    assert isinstance(codebook.embedding, torch.nn.Parameter)
    assert codebook.embedding.requires_grad


def test_a_codebook_of_moving_averages_has_nothing_for_an_optimiser() -> None:
    assert list(make().parameters()) == []


# Ranks


def adapt_together(ranks: list[Codebook], latents: list[Tensor]) -> None:
    """One step of all ranks, whose sums reach each of them."""
    parts: list[Tensor] = []

    def collect(values: Tensor) -> Tensor:
        parts.append(values.clone())
        return values

    codes = [codebook(latent) for codebook, latent in zip(ranks, latents, strict=True)]
    steps = list(zip(ranks, latents, codes, strict=True))
    for number, (codebook, latent, chosen) in enumerate(steps):
        copy.deepcopy(codebook).adapt(latent, chosen, collect, first=number == 0)
    summed = torch.stack(parts).sum(0)
    for number, (codebook, latent, chosen) in enumerate(steps):
        codebook.adapt(latent, chosen, lambda _: summed.clone(), first=number == 0)


def test_two_ranks_learn_what_one_learns_from_both_their_batches() -> None:
    entries, latent = torch.randn(6, 3), torch.randn(4, 3, 5, 5)
    ranks, whole = [started(entries), started(entries)], started(entries)
    adapt_together(ranks, [latent[:1], latent[1:]])
    learn(whole, latent)
    assert same(state_of(ranks[0]), state_of(ranks[1]))
    assert torch.allclose(ranks[0].embedding, whole.embedding, atol=1e-6)
    assert torch.allclose(ranks[0].usage, whole.usage)


@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_all_ranks_start_from_vectors_of_the_first(learning: str) -> None:
    ranks = [make(4, 2, learning), make(4, 2, learning)]
    latents = [torch.randn(1, 2, 3, 3), 100 + torch.randn(2, 2, 3, 3)]
    adapt_together(ranks, latents)
    assert same(state_of(ranks[0]), state_of(ranks[1]))
    assert ranks[1].embedding.abs().max() < 10


def test_ranks_with_batches_of_different_sizes_draw_equally_often() -> None:
    after = []
    for count, first in ((1, True), (3, False)):
        codebook = make()
        torch.manual_seed(5)
        latent = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        codebook.adapt(latent, codebook(latent), alone, first=first)
        after.append(torch.get_rng_state())
    assert torch.equal(after[0], after[1])


def test_it_resumes_bit_for_bit() -> None:
    latents = [torch.randn(1, 3, 4, 4) for _ in range(40)]
    straight = make(decay=0.8)
    for latent in latents[:20]:
        learn(straight, latent)
    saved, draws = state_of(straight), torch.get_rng_state()
    for latent in latents[20:]:
        learn(straight, latent)
    resumed = make(decay=0.8)
    resumed.load_state_dict(saved)
    torch.set_rng_state(draws)
    for latent in latents[20:]:
        learn(resumed, latent)
    assert same(state_of(resumed), state_of(straight))


# Perplexity


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([7, 0, 0, 0], 1.0),
        ([7, 0, 7, 0], 2.0),
        ([3] * 512, 512.0),
        ([3, 1], math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))),
    ],
)
def test_perplexity_counts_the_codes_in_use(counts: list[int], expected: float) -> None:
    assert perplexity(torch.tensor(counts)) == pytest.approx(expected, rel=1e-6)


def test_perplexity_of_an_epoch_is_not_that_of_its_batches() -> None:
    batches = torch.eye(16)
    assert all(perplexity(batch) == pytest.approx(1) for batch in batches)
    assert perplexity(batches.sum(0)) == pytest.approx(16)


def test_perplexity_of_nothing_is_no_number() -> None:
    assert math.isnan(perplexity(torch.zeros(4)))
