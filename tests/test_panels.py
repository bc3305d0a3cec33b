from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recon.data.noise import add_noise
from recon.models.output import Output
from recon.training.averaging import WeightAverage
from recon.training.panels import compose_panel, fixed_images, panel_of, reconstructions
from recon.training.state import get_random_state
from recon.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]
Images = Callable[..., list[Tensor]]


class Restless(nn.Module):
    """Draws random numbers in every mode, and would learn statistics in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.BatchNorm2d(3).eval()

    def forward(self, images: Tensor) -> Output:
        decoded = torch.sigmoid(self.norm(images) + torch.rand(()))
        return Output(decoded, decoded.flatten(1), decoded.new_zeros(len(images)))


# The picture


def test_originals_lie_over_their_reconstructions_with_white_gaps() -> None:
    originals, others = torch.rand(3, 3, 5, 4), torch.rand(3, 3, 5, 4)
    expected = np.full((2 * 5 + 6, 3 * 6 + 2, 3), 255, np.uint8)
    for row, images in enumerate((originals, others)):
        for column, image in enumerate(images):
            top, left = 2 + row * 7, 2 + column * 6
            levels = np.rint(image.numpy() * np.float32(255)).astype(np.uint8)
            expected[top : top + 5, left : left + 4] = levels.transpose(1, 2, 0)
    picture = compose_panel(originals, others)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, expected)


def test_grey_images_become_grey_pictures_of_three_channels() -> None:
    picture = compose_panel(torch.full((1, 1, 4, 4), 0.2), torch.full((1, 1, 4, 4), 0.6))
    assert picture.shape == (14, 8, 3)
    assert picture[3, 3].tolist() == [51, 51, 51]
    assert picture[9, 3].tolist() == [153, 153, 153]


def test_values_outside_of_the_range_are_clipped_and_half_precision_is_understood() -> None:
    wild = torch.tensor([-3.0, 7.0]).view(1, 1, 1, 2).bfloat16()
    assert compose_panel(torch.zeros(1, 1, 1, 2), wild)[5, 2:4, 0].tolist() == [0, 255]


def test_reconstructions_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rows must have .*\(2, 3, 4, 4\), got \(1,"):
        compose_panel(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))


# The images


def test_the_first_validation_images_that_can_be_read_are_taken(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    one, two, three = random_images(3, seed=1)
    trainer = make_trainer(random_images(4), validation=[None, one, None, two, three])
    expected = torch.stack([one, two]).float() / 255
    assert torch.equal(fixed_images(trainer, 2), expected)
    assert trainer.state.unreadable == {}


def test_training_images_stand_in_without_augmentation_and_each_once(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    images = random_images(4)
    trainer = make_trainer(images)
    trainer.augment = lambda images, _seed, _places: torch.zeros_like(images)
    taken = (fixed_images(trainer, 9) * 255).byte()
    assert sorted(image.sum().item() for image in taken) == sorted(i.sum().item() for i in images)


def test_there_is_no_panel_where_there_are_no_images(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    assert panel_of(make_trainer(random_images(4)), 0) is None
    assert panel_of(make_trainer(random_images(4), validation=[None]), 3) is None


def test_a_panel_shows_the_same_images_in_every_epoch(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    trainer = make_trainer(random_images(4), validation=random_images(3, seed=1), epochs=1)
    panel = panel_of(trainer, 2)
    assert panel is not None
    before = panel()
    trainer.fit(lambda _: None)
    after = panel()
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_a_denoising_run_shows_what_the_network_is_fed_the_same_in_every_epoch(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    trainer = make_trainer(random_images(4), epochs=1)
    trainer.corrupt = lambda images, seeds: add_noise(images, 0.3, seeds)
    panel = panel_of(trainer, 2)
    assert panel is not None
    originals, noisy, made = panel()
    assert 0.1 < float((noisy - originals).std()) < 0.3
    assert not torch.equal(noisy[0] - originals[0], noisy[1] - originals[1])
    torch.testing.assert_close(made, reconstructions(trainer, noisy))
    assert compose_panel(originals, noisy, made).shape[0] == 3 * (originals.shape[-2] + 2) + 2
    assert torch.equal(panel()[1], noisy)


# Reconstructions


@pytest.mark.parametrize("averaged", [False, True])
def test_the_network_that_would_be_saved_reconstructs_prepared_images_in_evaluation_mode(
    make_trainer: MakeTrainer, random_images: Images, averaged: bool
) -> None:
    trainer = make_trainer(random_images(4), epochs=1)
    trainer.prepare = lambda images: images * 2 - 1
    if averaged:
        trainer.average = WeightAverage(trainer.model, 0.9)
    trainer.fit(lambda _: None)
    images = fixed_images(trainer, 3)
    model = trainer.model if trainer.average is None else trainer.average.module
    made = reconstructions(trainer, images)
    with torch.no_grad():
        expected = model.eval()(images * 2 - 1)
        other = trainer.model.eval()(images * 2 - 1)
    torch.testing.assert_close(made, expected)
    assert torch.allclose(made, other) is not averaged


def test_the_precision_of_the_run_is_used_and_the_result_is_float32(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    seen: list[torch.dtype] = []
    trainer = make_trainer(random_images(4), precision="bfloat16")
    convolution = trainer.model.get_submodule("encoder.0")
    convolution.register_forward_hook(lambda *parts: seen.append(parts[-1].dtype))
    assert reconstructions(trainer, fixed_images(trainer, 1)).dtype == torch.float32
    assert seen == [torch.bfloat16]


def test_neither_modes_nor_statistics_nor_random_state_are_touched(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    network = Restless()
    trainer = make_trainer(random_images(4), model=network)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    before = get_random_state()
    made = reconstructions(trainer, fixed_images(trainer, 2))
    assert not made.requires_grad
    assert [network.training, network.norm.training, network.frozen.training] == [True, True, False]
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    after = get_random_state()
    assert torch.equal(after["torch"], before["torch"])
    assert (after["python"], after["numpy"]) == (before["python"], before["numpy"])


def test_modes_are_put_back_when_a_network_fails(
    make_trainer: MakeTrainer, random_images: Images
) -> None:
    trainer = make_trainer(random_images(4))
    trainer.model.train()
    with pytest.raises(RuntimeError):
        reconstructions(trainer, torch.zeros(1, 7, 16, 16))
    assert trainer.model.training
    assert trainer.model.get_submodule("encoder.1").training
