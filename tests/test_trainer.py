import math
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from Auto_encoder import AutoEncoder
from recon.data.loaders import Loader
from recon.errors import InterruptedRunError, UserError
from recon.models.preparation import Preparation
from recon.ranks import Ranks
from recon.training.keeper import Keeper
from recon.training.sums import Sums
from recon.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]
Images = Callable[..., list[Tensor]]


def ignore(_: Trainer) -> None:
    """Save nothing."""


def plain(level: int, edge: int = 16) -> Tensor:
    return torch.full((3, edge, edge), level, dtype=torch.uint8)


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def are_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def flat(trainer: Trainer) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])


class HalfGrey(nn.Module):
    """Reconstructs everything as 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.level).expand_as(images)


class Poisoned(torch.optim.SGD):
    """Leaves weights that are not finite after a given number of steps."""

    left = 3

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        self.left -= 1
        if self.left == 0:
            self.param_groups[0]["params"][0].data.fill_(math.nan)


# Learning


def test_it_overfits_four_images(make_trainer: MakeTrainer, random_images: Images) -> None:
    trainer = make_trainer(random_images(4), epochs=80, peak_learning_rate=0.03)
    trainer.fit(ignore)
    assert trainer.state.history[0].loss > 0.05
    assert trainer.state.history[-1].loss < 0.005


def test_the_loss_is_the_mean_over_images_and_not_over_batches(make_trainer: MakeTrainer) -> None:
    levels = [0, 20, 255, 128, 90]
    images = [plain(level) for level in levels]
    trainer = make_trainer(images, model=HalfGrey(), batch_size=2, peak_learning_rate=0.0)
    trainer.fit(ignore)
    expected = sum((level / 255 - 0.5) ** 2 for level in levels) / 5
    assert trainer.state.history[1].loss == pytest.approx(expected, rel=1e-6)


def test_the_validation_loss_is_the_mean_over_images_and_not_over_batches(
    make_trainer: MakeTrainer,
) -> None:
    levels = [0, 20, 255, 128, 90]
    trainer = make_trainer(
        [plain(60)],
        validation=[plain(level) for level in levels],
        model=HalfGrey(),
        batch_size=2,
        peak_learning_rate=0.0,
    )
    trainer.fit(ignore)
    expected = sum((level / 255 - 0.5) ** 2 for level in levels) / 5
    assert trainer.state.history[1].validation_loss == pytest.approx(expected, rel=1e-6)


def test_every_training_image_is_learnt_from_once_an_epoch_in_a_new_order(
    make_trainer: MakeTrainer,
) -> None:
    seen: list[int] = []

    def note(images: Tensor, *_: object) -> Tensor:
        seen.extend((images[:, 0, 0, 0] * 255).round().int().tolist())
        return images

    trainer = make_trainer([plain(i) for i in range(10)], validation=[plain(99)], batch_size=3)
    trainer.augment = note
    trainer.fit(ignore)
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_validation_images_never_reach_the_optimiser(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    learnt = []
    for validation in (None, random_images(3, seed=1), random_images(3, seed=2)):
        trainer = make_trainer(random_images(6), validation=validation, epochs=3)
        trainer.fit(ignore)
        learnt.append(weights_of(trainer))
    assert are_equal(learnt[0], learnt[1])
    assert are_equal(learnt[0], learnt[2])


def test_validation_uses_the_running_statistics(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    modes: list[bool] = []
    trainer = make_trainer(random_images(4), validation=random_images(2, seed=1), epochs=1)
    trainer.model.register_forward_hook(lambda model, *_: modes.append(model.training))
    trainer.fit(ignore)
    assert modes == [True, False]


def test_the_best_epoch_is_that_of_the_lowest_validation_loss(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    trainer = make_trainer(
        random_images(4), validation=random_images(2, seed=1), epochs=5, peak_learning_rate=0.3
    )
    trainer.fit(ignore)
    losses = [row.validation_loss for row in trainer.state.history]
    assert losses != sorted(losses, reverse=True)
    assert trainer.state.best_epoch == 1 + losses.index(min(losses))


def test_the_best_epoch_is_that_of_the_lowest_loss_where_there_is_no_validation(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    trainer = make_trainer(random_images(4), epochs=5)
    spread = iter([1.0, 0.3, 0.1, 0.2, 0.4])  # darker images are easier
    trainer.augment = lambda images, _seed, _places: 0.5 + (images - 0.5) * next(spread)
    trainer.fit(ignore)
    losses = [row.loss for row in trainer.state.history]
    assert losses != sorted(losses, reverse=True)
    assert trainer.state.best_epoch == 1 + losses.index(min(losses))


def test_gradient_clipping_bounds_the_step(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    moved = {}
    for clip in (0.0, 1e-3):
        trainer = make_trainer(
            random_images(4),
            optimizer=torch.optim.SGD,
            epochs=1,
            peak_learning_rate=1.0,
            gradient_clip=clip,
        )
        before = flat(trainer)
        trainer.fit(ignore)
        after = flat(trainer)
        moved[clip] = float((after - before).norm())
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-2)
    assert moved[0.0] > 1e-2


def test_the_learning_rate_of_each_step_is_that_of_the_schedule_over_all_epochs(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    used: list[float] = []
    trainer = make_trainer(
        random_images(8),
        epochs=2,
        peak_learning_rate=0.4,
        schedule="cosine",
        warmup_fraction=0.5,
    )
    trainer.optimizer.register_step_pre_hook(lambda o, *_: used.append(o.param_groups[0]["lr"]))
    trainer.fit(ignore)
    assert used == pytest.approx([0.2, 0.4, 0.4, 0.2])


def test_bfloat16_follows_the_loss_curve_of_float32_within_two_percent(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    curves = {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        trainer = make_trainer(
            random_images(4, 32),
            model=AutoEncoder(),
            precision=precision,
            epochs=4,
            peak_learning_rate=5e-4,
        )
        trainer.fit(ignore)
        curves[precision] = [row.loss for row in trainer.state.history]
    assert curves["bfloat16"] != curves["float32"]
    assert curves["bfloat16"] == pytest.approx(curves["float32"], rel=0.02)
    assert curves["float32"][-1] < 0.9 * curves["float32"][0]


def test_the_weights_stay_in_float32_under_bfloat16(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    trainer = make_trainer(random_images(4), precision="bfloat16")
    trainer.fit(ignore)
    assert {w.dtype for w in trainer.model.parameters()} == {torch.float32}


# Reproducibility


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(
    train: Callable[..., dict[str, Tensor]],
    write_images: Callable[..., Path],
    tmp_path: Path,
    num_workers: int,
) -> None:
    write_images(tmp_path / "train", 10)
    one, other = train(), train(num_workers=num_workers)
    assert are_equal(one, other)


def test_another_seed_gives_other_weights(
    train: Callable[..., dict[str, Tensor]], write_images: Callable[..., Path], tmp_path: Path
) -> None:
    write_images(tmp_path / "train", 6)
    assert not are_equal(train(num_epochs=1), train(num_epochs=1, seed=1))


def test_augmentation_draws_anew_in_every_step_and_alike_in_every_run(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    def seeds_of_a_run(seed: int) -> list[int]:
        seeds: list[int] = []
        trainer = make_trainer(random_images(8), seed=seed)
        trainer.augment = lambda images, drawn, *_: (seeds.append(drawn), images)[1]
        trainer.fit(ignore)
        return seeds

    assert seeds_of_a_run(0) == seeds_of_a_run(0)
    assert len(set(seeds_of_a_run(0) + seeds_of_a_run(1))) == 8


@pytest.mark.parametrize(("rank", "images"), [(0, 110), (1, 10)])
def test_the_sums_of_a_resumed_epoch_count_once_over_the_ranks(
    rank: int, images: int, make_trainer: MakeTrainer, random_images: Images
) -> None:
    trainer = make_trainer(random_images(10), epochs=1)
    trainer.state.sums, trainer.state.seconds = Sums(images=100, loss=55.0), 1.0
    trainer.ranks = Ranks(rank, 2)
    trainer.ranks.gather = lambda item: [item]
    seen: list[int] = []
    trainer._close_epoch = lambda watch: (seen.append(trainer.state.sums.images), close(watch))
    close = partial(type(trainer)._close_epoch, trainer)
    trainer.fit(ignore)
    assert seen == [images]


# What goes in and what is compared with


def test_augmentation_changes_the_input_and_the_target_alike(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    images = random_images(4)
    inputs, targets = [], []
    trainer = make_trainer(images, epochs=1)
    objective = trainer.objective
    trainer.augment = lambda batch, *_: batch.flip(-1) * 0.5
    trainer.objective = lambda found, target: (targets.append(target), objective(found, target))[1]
    trainer.model.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    trainer.fit(ignore)
    assert torch.equal(inputs[0], targets[0])
    halves = sorted(float(image.sum()) / 255 / 2 for image in images)
    assert sorted(float(target.sum()) for target in targets[0]) == pytest.approx(halves)


def test_targets_stay_in_the_unit_range_while_the_input_is_normalised(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    inputs, targets = [], []
    trainer = make_trainer(random_images(4), validation=random_images(4), epochs=1)
    objective = trainer.objective
    trainer.prepare = Preparation((16, 16), 3, "imagenet", None).normalize
    trainer.objective = lambda found, target: (targets.append(target), objective(found, target))[1]
    trainer.model.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    trainer.fit(ignore)
    assert all(0 <= target.min() < target.max() <= 1 for target in targets)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    for given, target in zip(inputs, targets, strict=True):
        torch.testing.assert_close(given, (target - mean) / std)


def test_a_last_batch_of_one_image_does_not_crash(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    """Batch normalisation refuses one image whose latent is one pixel."""
    trainer = make_trainer(random_images(5, 32), model=AutoEncoder(), epochs=1)
    trainer.fit(ignore)
    assert trainer.state.history[0].images_per_second > 0


def test_one_image_with_a_latent_of_one_pixel_is_refused_in_words(
    train: Callable[..., Any], write_images: Callable[..., Path], tmp_path: Path
) -> None:
    write_images(tmp_path / "train", 3)
    with pytest.raises(UserError, match="raise tile_size or batch_size_train"):
        train(model=AutoEncoder, batch_size_train=1)


# Images that cannot be read


def test_unreadable_images_are_skipped_and_remembered_once(
    make_trainer: MakeTrainer, random_images: Images, caplog: pytest.LogCaptureFixture
) -> None:
    images = [*random_images(5), None]
    trainer = make_trainer(images, validation=[*random_images(1), None])
    trainer.fit(ignore)
    assert trainer.state.unreadable == {
        "image 5": "image 5: damaged",
        "image 1": "image 1: damaged",
    }
    assert caplog.text.count("Skipped: image 5: damaged") == 1


def test_unreadable_images_change_nothing_in_the_mean(make_trainer: MakeTrainer) -> None:
    images = [plain(0), None, plain(255), plain(51), None]
    trainer = make_trainer(images, model=HalfGrey(), batch_size=2, peak_learning_rate=0.0, epochs=1)
    trainer.fit(ignore)
    assert trainer.state.history[0].loss == pytest.approx((0.25 + 0.25 + 0.09) / 3, rel=1e-5)


def test_unreadable_images_stop_the_run_where_the_plan_says_so(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    trainer = make_trainer([*random_images(3), None], stop_at_unreadable=True)
    with pytest.raises(UserError, match="image 3: damaged"):
        trainer.fit(ignore)


def test_a_run_without_any_readable_image_stops(make_trainer: MakeTrainer) -> None:
    with pytest.raises(UserError, match="none of the 3 training images"):
        make_trainer([None] * 3).fit(ignore)


def test_a_run_without_any_readable_validation_image_stops(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    with pytest.raises(UserError, match="none of the validation images"):
        make_trainer(random_images(2), validation=[None]).fit(ignore)


# Numbers that are not finite


def spoil(trainer: Trainer, epoch: int, step: int) -> None:
    """Make the loss NaN there, both counted from 1."""

    def change(images: Tensor, *_: object) -> Tensor:
        here = (trainer.state.epoch + 1, trainer.state.step + 1) == (epoch, step)
        return images * math.nan if here else images

    trainer.augment = change


def test_a_loss_that_is_not_finite_stops_the_run_naming_epoch_and_step(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    trainer = make_trainer(random_images(12), epochs=3)
    spoil(trainer, 2, 3)
    with pytest.raises(UserError, match="epoch 2, step 3"):
        trainer.fit(ignore)


def test_the_last_checkpoint_outlives_a_loss_that_is_not_finite(
    make_trainer: MakeTrainer, random_images: Images, tmp_path: Path
) -> None:
    trainer = make_trainer(random_images(12), epochs=3)
    spoil(trainer, 2, 3)
    keeper = Keeper(tmp_path, tmp_path / "loss.csv", 5, 0, "MSE", {}, lambda *_: None)
    with pytest.raises(UserError):
        trainer.fit(keeper.keep)
    saved = torch.load(tmp_path / "Last_Model_AE.pth", weights_only=True)
    assert saved["epoch"] == 1
    assert all(value.isfinite().all() for value in saved["model_state_dict"].values())


def test_weights_that_are_not_finite_are_never_saved(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    saved: list[Trainer] = []
    trainer = make_trainer(random_images(12), optimizer=Poisoned, epochs=1)
    with pytest.raises(UserError, match="not finite in epoch 1, step 3"):
        trainer.fit(saved.append)
    assert not saved


def test_statistics_that_are_not_finite_are_never_saved(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    saved: list[Trainer] = []
    trainer = make_trainer(random_images(4), epochs=1)
    trainer.model.encoder[1].running_var.fill_(math.inf)
    with pytest.raises(UserError, match="not finite in epoch 1, step 1"):
        trainer.fit(saved.append)
    assert not saved


def test_weights_that_are_not_finite_are_not_saved_by_an_interruption_either(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    saved: list[Trainer] = []
    trainer = make_trainer(random_images(20), optimizer=Poisoned, epochs=1)

    def interrupt(images: Tensor, *_: object) -> Tensor:
        if trainer.state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return images

    trainer.augment = interrupt
    with pytest.raises((UserError, InterruptedRunError)):
        trainer.fit(saved.append)
    assert not saved


class Overflowing(HalfGrey):
    """Fails on white images alone, as half precision can."""

    def forward(self, images: Tensor) -> Tensor:
        white = images.flatten(1).mean(1)[:, None, None, None] > 0.99
        return torch.where(white, math.nan, super().forward(images))


def test_one_validation_image_without_a_finite_loss_ends_the_run(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    validation = [*random_images(3), plain(255)]
    trainer = make_trainer(random_images(4), validation=validation, model=Overflowing())
    with pytest.raises(UserError, match="not finite"):
        trainer.fit(ignore)


def test_what_a_network_draws_depends_on_the_place_in_the_run_alone(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    class Drawing(HalfGrey):
        def __init__(self) -> None:
            super().__init__()
            self.drawn: list[float] = []

        def forward(self, images: Tensor) -> Tensor:
            self.drawn.append(torch.rand(1).item())
            return super().forward(images)

    runs = []
    for start in (1, 2):
        torch.manual_seed(start)
        model = Drawing()
        make_trainer(random_images(8), model=model).fit(ignore)
        runs.append(model.drawn)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 4


def test_the_processes_that_validate_start_before_the_first_step(
    make_trainer: MakeTrainer, random_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, started = random_images(8), []
    trainer = make_trainer(images, validation=images[:2])
    monkeypatch.setattr(
        Loader,
        "start",
        lambda loader: started.append((loader, trainer.state.step, len(trainer.optimizer.state))),
    )
    trainer.fit(ignore)
    assert started == [(trainer.validation.loader, 0, 0)]
