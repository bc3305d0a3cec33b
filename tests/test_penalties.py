"""Training of networks with a penalty, a codebook, or noise on what they are fed."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recon.models.output import Output
from recon.training.keeper import Keeper
from recon.training.logs import read_log, write_log
from recon.training.restoring import restore
from recon.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]
Images = Callable[..., list[Tensor]]


def ignore(_: Trainer) -> None:
    """Save nothing."""


class Grey(nn.Module):
    """Reconstructs everything as one grey, with a penalty of 2 and codes that follow the image."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(1))
        self.fed: list[Tensor] = []
        self.adapted: list[tuple[Output, bool]] = []

    def forward(self, images: Tensor) -> Output:
        self.fed.append(images.detach().clone())
        count = len(images)
        codes = images[:, 0, 0, :1].mul(3).round().long()[:, None]  # (N, 1, 1)
        penalty = torch.full((count,), 2.0)
        latent = images.flatten(1).mean(1, keepdim=True)
        return Output(torch.sigmoid(self.level).expand_as(images), latent, penalty, None, codes)

    def adapt(self, output: Output, total: Callable[[Tensor], Tensor], *, first: bool) -> None:
        assert torch.equal(total(torch.ones(2)), torch.ones(2))
        self.adapted.append((output, first))


class Black(Grey):
    """The same without codes or a rule of its own."""

    adapt = None  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Output:
        return super().forward(images)._replace(codes=None)


def noisy(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Noise that can be read back: the image's seed in the first pixel."""
    changed = images.clone()
    changed[:, 0, 0, 0] = torch.tensor([seed % 9973 / 9973 for seed in seeds])
    return changed


def seeds_of(model: Grey) -> list[list[int]]:
    return [(x[:, 0, 0, 0] * 9973).round().long().tolist() for x in model.fed]


def test_the_penalty_is_added_with_its_weight_and_logged_apart(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    trainer = make_trainer(
        random_images(4), model=Black(), epochs=1, penalty_weight=3.0, penalty_name="KL"
    )
    trainer.fit(ignore)
    row = trainer.state.history[0]
    assert row.further["KL"] == pytest.approx(2.0)
    assert row.loss == pytest.approx(row.further["Reconstruction Loss"] + 6.0)


def test_its_weight_rises_over_the_warm_up(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    trainer = make_trainer(
        random_images(4), model=Black(), epochs=4, penalty_warmup=0.5, penalty_name="KL"
    )
    trainer.fit(ignore)
    added = [row.loss - row.further["Reconstruction Loss"] for row in trainer.state.history]
    assert added == pytest.approx([0.0, 1.0, 2.0, 2.0])


def test_validation_bears_the_whole_weight_from_the_start(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    images = random_images(2)
    trainer = make_trainer(images, validation=images, model=Black(), epochs=1, penalty_warmup=1.0)
    trainer.fit(ignore)
    assert trainer.state.history[0].validation_loss > 2.0


def test_a_network_without_penalty_or_codes_logs_neither(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    trainer = make_trainer(random_images(4), epochs=1)
    trainer.fit(ignore)
    assert trainer.state.history[0].further == {}


def test_an_adaptive_network_sees_the_whole_batch_once_a_step(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    model = Grey()
    trainer = make_trainer(random_images(6), model=model, batch_size=3, epochs=2, accumulation=2)
    trainer.fit(ignore)
    assert len(model.adapted) == 4
    for output, first in model.adapted:
        assert first
        assert len(output.latent) == len(output.reconstruction) == 3
        assert not output.reconstruction.requires_grad
        assert output.codes is not None
        assert output.codes.shape == (3, 1, 1)


def test_the_perplexity_is_that_of_the_codes_of_the_whole_epoch(
    make_trainer: MakeTrainer,
) -> None:
    levels = [torch.full((3, 16, 16), level, dtype=torch.uint8) for level in (0, 0, 255, 255)]
    trainer = make_trainer(levels, model=Grey(), batch_size=1, epochs=1)
    trainer.fit(ignore)
    further = trainer.state.history[0].further
    assert further["Perplexity"] == pytest.approx(2.0, abs=1e-4)
    assert further["Codes Used"] == 2


def test_noise_is_on_what_the_network_is_fed_and_not_on_the_target(
    make_trainer: MakeTrainer,
) -> None:
    black = [torch.zeros(3, 16, 16, dtype=torch.uint8)] * 2
    model = Black()
    trainer = make_trainer(black, model=model, epochs=1, batch_size=2)
    trainer.corrupt = lambda images, _seeds: images + 0.5
    trainer.fit(ignore)
    assert torch.equal(model.fed[0], torch.full((2, 3, 16, 16), 0.5))
    assert trainer.state.history[0].loss == pytest.approx(0.25 + 2.0)  # 0.5 against black


def test_noise_is_new_in_every_epoch_and_for_every_image(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    model = Black()
    trainer = make_trainer(random_images(4), model=model, epochs=2)
    trainer.corrupt = noisy
    trainer.fit(ignore)
    first, second = (set(seeds) for seeds in seeds_of(model))
    assert len(first) == len(second) == 4
    assert first != second


def test_fixed_noise_belongs_to_the_image(make_trainer: MakeTrainer) -> None:
    images = [torch.full((3, 16, 16), 10 * n, dtype=torch.uint8) for n in range(4)]
    model = Black()
    trainer = make_trainer(images, model=model, epochs=3, noise_fixed=True, batch_size=2)
    trainer.corrupt = noisy
    trainer.fit(ignore)
    seen: dict[int, set[int]] = {}
    for fed, seeds in zip(model.fed, seeds_of(model), strict=True):
        for level, seed in zip(fed[:, 0, 1, 1].mul(25.5).round().tolist(), seeds, strict=True):
            seen.setdefault(int(level), set()).add(seed)
    assert len(seen) == 4
    assert all(len(seeds) == 1 for seeds in seen.values())


def test_validation_noise_is_the_same_in_every_epoch(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    images = random_images(2)
    model = Black()
    trainer = make_trainer(images, validation=images, model=model, epochs=2)
    trainer.corrupt = noisy
    trainer.fit(ignore)
    drawn = seeds_of(model)
    assert drawn[1] == drawn[3]  # After the training step of each epoch.
    assert drawn[0] != drawn[2]


def test_figures_and_codes_survive_a_checkpoint(
    make_trainer: MakeTrainer, random_images: Images, tmp_path: Any
) -> None:
    def keeper(folder: str) -> Keeper:
        return Keeper(tmp_path / folder, tmp_path / f"{folder}.csv", 1, 0, "X", {}, lambda *_: None)

    plan = {"model": Grey(), "epochs": 2, "penalty_name": "Commitment"}
    (tmp_path / "a").mkdir()
    trainer = make_trainer(random_images(4), **plan)
    trainer.fit(keeper("a").keep)
    again = make_trainer(random_images(4), **plan)
    path = tmp_path / "a" / "Model_AE_epoch_001.pth"
    restore(again, torch.load(path, weights_only=True), path)
    (tmp_path / "b").mkdir()
    again.fit(keeper("b").keep)
    for one, other in zip(again.state.history, trainer.state.history, strict=True):
        assert dict(one.further) == dict(other.further)
    log = read_log(tmp_path / "b.csv")
    assert list(log)[-4:] == ["Reconstruction Loss", "Commitment", "Perplexity", "Codes Used"]
    assert log["Codes Used"] == [row.further["Codes Used"] for row in trainer.state.history]


def test_a_log_without_further_figures_reads_as_before(
    make_trainer: MakeTrainer, random_images: Images, tmp_path: Any
) -> None:
    trainer = make_trainer(random_images(4), epochs=1)
    trainer.fit(ignore)
    write_log(tmp_path / "log.csv", trainer.state.history)
    log = read_log(tmp_path / "log.csv")
    assert list(log)[-1] == "Images/s"
    assert math.isnan(log["Validation PSNR"][0])
