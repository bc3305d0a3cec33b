from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from recon.errors import UserError
from recon.pipeline.sweep_space import SWEPT, read_space
from recon.settings import Settings


def test_a_list_is_a_choice_and_a_pair_a_range() -> None:
    space = {
        "optimizer": ["adam", "adamw"],
        "num_epochs": (5, 20),
        "weight_decay": (0.0, 0.1),
        "learning_rate": (1e-4, 1e-2, "log"),
    }
    read = {name: d.distribution for name, d in read_space(space, "mse").items()}
    assert read == {
        "optimizer": CategoricalDistribution(["adam", "adamw"]),
        "num_epochs": IntDistribution(5, 20),
        "weight_decay": FloatDistribution(0.0, 0.1),
        "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    }


def test_the_default_space_can_be_swept() -> None:
    assert read_space(Settings().sweep_space, "mse").keys() == Settings().sweep_space.keys()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("augment_scale", [(0.9, 1.1), (0.5, 2.0)]),
        ("crop_size", [None, 16, (16, 32)]),
        ("augmentation", [True, False]),
        ("learning_rate", [1e-3, 1e-4]),
    ],
)
def test_every_choice_comes_back_as_the_value_it_was(name: str, values: list[Any]) -> None:
    dimension = read_space({name: values}, "mse")[name]
    spelt = dimension.distribution.choices  # type: ignore[union-attr]
    assert [dimension.value(choice) for choice in spelt] == values


def test_choices_that_a_database_cannot_hold_are_drawn(tmp_path: Any) -> None:
    values = [(0.9, 1.1), (0.5, 2.0)]
    dimension = read_space({"augment_scale": values}, "mse")["augment_scale"]
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")
    dimension.suggest(study.ask(), "augment_scale")
    assert dimension.value(study.trials[0].params["augment_scale"]) in values


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learnin_rate": [1.0]}, "unknown setting 'learnin_rate'.*did you mean 'learning_rate'"),
        ({"learning_rate": [1e-3, -1.0]}, "learning_rate must be greater than 0, got -1.0 in swee"),
        ({"learning_rate": ["fast"]}, "learning_rate must be a valid number"),
        ({"learning_rate": (-1.0, 1.0)}, "learning_rate must be greater than 0"),
        ({"num_epochs": (1.5, 3.0)}, "num_epochs must be a valid integer"),
        ({"num_epochs": (20, 10)}, r"sweep_space\['num_epochs'\] must be \(low, high\) with low b"),
        ({"num_epochs": (10, 10)}, "with low below high"),
        ({"weight_decay": (0.0, 0.1, "log")}, "with low above 0"),
        ({"weight_decay": (0.1, 0.2, "lin")}, 'or, with low above 0, .low, high, "log"'),
        ({"augmentation": (False, True)}, "of numbers, or a list of values"),
        ({"optimizer": ("adam", "adamw")}, "of numbers, or a list of values"),
        ({"num_epochs": []}, "one or more values"),
        ({"num_epochs": [5, 5]}, "each of them once"),
        ({"num_epochs": 5}, "must be a list of values"),
        ({"num_epochs": (5,)}, "must be a list of values"),
        ({"learning_rate": (1e-3, float("inf"))}, "learning_rate must be a finite number"),
    ],
)
def test_a_space_that_cannot_be_tried_is_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_space(space, "mse")


@pytest.mark.parametrize(
    "name",
    ["folder_path_train", "GPUs", "sweep_trials", "resume", "seed", "beta", "loss_weights_mse",
     "tile_size", "noise_std", "commitment", "codebook"],
)  # fmt: skip
def test_what_would_make_losses_incomparable_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="not what the validation loss of 'mse' measures"):
        read_space({name: [getattr(Settings(), name)]}, "mse")


def test_the_network_of_a_vae_is_not_swept() -> None:
    with pytest.raises(UserError, match="'architecture'"):
        read_space({"architecture": ["dense", "unet"]}, "vae")
    assert read_space({"architecture": ["dense", "unet"]}, "ssim")


def test_every_name_that_can_be_swept_is_a_setting() -> None:
    assert set(Settings.model_fields) >= SWEPT


def test_whole_bounds_of_a_setting_of_fractions_hold_all_between_them() -> None:
    space = read_space({"weight_decay": (0, 1)}, "mse")
    assert isinstance(space["weight_decay"].distribution, FloatDistribution)
