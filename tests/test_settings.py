import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from recon.errors import UserError
from recon.settings import SECTIONS, Settings, load

ROOT = Path(__file__).parents[1]
NAMES = list(Settings.model_fields)
DEFAULTS = Settings().model_dump()

# The configuration that the reference publishes, name by name.
REFERENCE = """
GPUs = "2"
num_workers = 4
folder_path_train = '/data_64T_1/Raja/DEEP_CLUSTER++/DeepCluster++/Test_samples_1/WSI_1/Part1'
tile_size = 256
num_epochs = 100
batch_size_train = 64
model_saved_location_mse = "checkpoints/MSE"
model_saved_location_ssim = "checkpoints/SSIM"
save_interval = 5
training_loss_file_mse = "training_loss_mse.csv"
training_loss_file_ssim = "training_loss_ssim.csv"
folder_path_test = 'input_images'
batch_size_test = 32
model_path_mse = "sample_models/model_auto_encoder_reconstruction_mse.pth"
model_path_ssim = "sample_models/model_auto_encoder_reconstruction_ssim.pth"
recon_output_mse = "reconstructed_images/MSE/"
recon_output_ssim = "reconstructed_images/SSIM/"
reconstruction_metrics_mse = "reconstructed_images/validation_reconstruction_metrics_mse.xlsx"
reconstruction_metrics_ssim = "reconstructed_images/validation_reconstruction_metrics_ssim.xlsx"
"""


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("Config_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings_of(**config: Any) -> Settings:
    return load(config, [])[0]


def refusal_of(config: dict[str, Any], *argv: str) -> str:
    with pytest.raises(UserError) as caught:
        load(config, list(argv))
    message = str(caught.value)
    assert "\n" not in message
    return message


# Config.py


def test_the_configuration_of_the_reference_works_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "Config.py"
    path.write_text(REFERENCE, encoding="utf-8")
    module = module_of(path)
    published = {n: v for n, v in vars(module).items() if not n.startswith("_")}
    settings, asked = load(module, [])
    assert len(published) == 19
    assert settings.model_dump() == DEFAULTS | published
    assert asked == frozenset()


def test_config_py_holds_every_setting_at_its_default() -> None:
    module = module_of(ROOT / "Config.py")
    assert {n: v for n, v in vars(module).items() if not n.startswith("_")} == DEFAULTS


def test_config_py_is_literals_and_comments_alone() -> None:
    settings, asked = load({}, ["--config", str(ROOT / "Config.py")])
    assert settings == Settings()
    assert asked == set(NAMES)


def test_every_setting_stands_in_one_section_and_has_a_default_and_a_description() -> None:
    listed = [name for section in SECTIONS for name in section.model_fields]
    assert sorted(listed) == sorted(NAMES)
    fields = Settings.model_fields
    assert [n for n in NAMES if fields[n].is_required() or not fields[n].description] == []


# Precedence


def test_flags_win_over_later_files_over_earlier_ones_over_config_over_defaults(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text("batch_size_train = 13\nsave_interval = 13\nseed = 13\n", encoding="utf-8")
    second.write_text("save_interval = 14\nseed = 14\n", encoding="utf-8")
    config = {"num_epochs": 12, "batch_size_train": 12, "save_interval": 12, "seed": 12}
    argv = ["--seed", "15", "--config", str(first), "--config", str(second)]
    settings, asked = load(config, argv)
    assert settings.batch_size_test == DEFAULTS["batch_size_test"]
    assert settings.num_epochs == 12
    assert settings.batch_size_train == 13
    assert settings.save_interval == 14
    assert settings.seed == 15
    assert asked == {"batch_size_train", "save_interval", "seed"}


def test_the_order_of_the_files_decides_between_them(tmp_path: Path) -> None:
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("seed = 1", encoding="utf-8")
    two.write_text("seed = 2", encoding="utf-8")
    assert load({}, ["--config", str(one), "--config", str(two)])[0].seed == 2
    assert load({}, ["--config", str(two), "--config", str(one)])[0].seed == 1


def test_the_last_of_two_equal_flags_wins() -> None:
    assert load({}, ["--seed", "1", "--seed", "2"])[0].seed == 2


def test_a_wrong_value_that_a_flag_puts_right_is_no_error() -> None:
    assert load({"num_epochs": 0}, ["--num_epochs", "3"])[0].num_epochs == 3


# Types


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_type_is_refused_by_every_setting(name: str) -> None:
    message = refusal_of({name: {3}})
    assert message.startswith(f"{name} must ")
    assert message.endswith(", got {3} in Config.py")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_epochs", "3"),
        ("num_epochs", 3.0),
        ("num_epochs", True),
        ("tile_size", "256"),
        ("tile_size", (256.0, 256.0)),
        ("tile_size", (1, 2, 3)),
        ("tile_size", None),
        ("GPUs", 0),
        ("GPUs", None),
        ("learning_rate", "1e-3"),
        ("learning_rate", True),
        ("augmentation", 1),
        ("augmentation", "yes"),
        ("augment_scale", 1.0),
        ("augment_scale", ("0.9", "1.1")),
        ("augment_scale", (0.9, 1.0, 1.1)),
        ("augment_scale", (0.9,)),
        ("augment_scale", {0.9, 1.1}),
        ("tile_size", {64, 32}),
        ("loss_weights_mse", "mse"),
        ("loss_weights_mse", {"mse": "1"}),
        ("loss_weights_mse", {1: 1.0}),
        ("folder_path_train", Path("images")),
    ],
)
def test_nothing_is_converted_in_silence(name: str, value: Any) -> None:
    message = refusal_of({name: value})
    assert message.startswith(f"{name} must ")
    assert repr(value) in message


def test_a_list_is_as_good_as_a_tuple() -> None:
    settings = settings_of(tile_size=[64, 32], augment_scale=[0.5, 2.0])
    assert settings.tile_size == (64, 32)
    assert settings.augment_scale == (0.5, 2.0)


def test_a_whole_number_serves_where_a_real_one_is_asked_for() -> None:
    assert settings_of(learning_rate=1).learning_rate == 1.0


# Ranges and rules


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("num_workers", -1, "greater than or equal to 0"),
        ("num_epochs", 0, "greater than or equal to 1"),
        ("batch_size_train", 0, "greater than or equal to 1"),
        ("batch_size_test", 0, "greater than or equal to 1"),
        ("save_interval", 0, "greater than or equal to 1"),
        ("tile_size", 10, "at least 11 pixels"),
        ("tile_size", (64, 10), "at least 11 pixels"),
        ("tile_size", (10, 64), "at least 11 pixels"),
        ("crop_size", 10, "at least 11 pixels"),
        ("GPUs", "0,", '"" for the CPU'),
        ("GPUs", "0, 1", '"" for the CPU'),
        ("GPUs", "cuda:0", '"" for the CPU'),
        ("GPUs", "0\n", '"" for the CPU'),
        ("folder_path_train", "", "at least 1 character"),
        ("model_path_ssim", "", "at least 1 character"),
        ("reconstruction_metrics_mse", "metrics.xls", "end in .xlsx"),
        ("reconstruction_metrics_ssim", "", "end in .xlsx"),
        ("image_check_file", "check.csv", "end in .xlsx"),
        ("save_images", 0, "a number above 0"),
        ("save_images", "some", "a number above 0"),
        ("color_mode", "gray", "'rgb' or 'grey'"),
        ("intensity_range", (5.0, 1.0), "(lowest, highest)"),
        ("intensity_range", (5.0, 5.0), "span more than one value"),
        ("intensity_range", (0.0, float("inf")), "finite"),
        ("unreadable_images", "ignore", "'skip' or 'stop'"),
        ("validation_fraction", 1.0, "less than 1"),
        ("validation_fraction", -0.1, "greater than or equal to 0"),
        ("validation_group", "(", "valid regular expression"),
        ("validation_group", "a{99999999999}", "valid regular expression"),
        ("optimizer", "sgd", "'adam', 'adamw' or 'muon'"),
        ("learning_rate", 0.0, "greater than 0"),
        ("learning_rate", float("nan"), "finite"),
        ("weight_decay", -1e-5, "greater than or equal to 0"),
        ("warmup_fraction", 1.0, "less than 1"),
        ("gradient_clip", -1.0, "greater than or equal to 0"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**31, "less than 2147483648"),
        ("loss_weights_mse", {}, "sum is above 0"),
        ("loss_weights_ssim", {"ssim": 0.0}, "sum is above 0"),
        ("loss_weights_ssim", {"ssim": 1.0, "l1": -0.5}, "at least 0"),
        ("precision", "fp16", "'bfloat16'"),
        ("augment_rotation", 181.0, "less than or equal to 180"),
        ("augment_horizontal_flip", 1.5, "less than or equal to 1"),
        ("augment_scale", (1.1, 0.9), "(lowest, highest)"),
        ("augment_scale", (0.0, 1.0), "above 0"),
        ("augment_shear", 90.0, "less than or equal to 89"),
        ("augment_hue", 0.6, "less than or equal to 0.5"),
        ("augment_blur_kernel", 4, "odd"),
        ("augment_blur_sigma", (0.0, 2.0), "above 0"),
        ("augment_blur_sigma", (-1.0, 2.0), "above 0"),
    ],
)
def test_a_value_outside_its_range_is_refused_by_its_rule(name: str, value: Any, rule: str) -> None:
    message = refusal_of({name: value})
    assert message.startswith(f"{name} must ")
    assert rule in message
    assert message.endswith(f", got {value!r} in Config.py")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_workers", 0),
        ("num_epochs", 1),
        ("tile_size", 11),
        ("tile_size", (11, 300)),
        ("crop_size", None),
        ("crop_size", (11, 300)),
        ("GPUs", ""),
        ("GPUs", "0,1,12"),
        ("GPUs", "all"),
        ("intensity_range", (-1.0, 4095.0)),
        ("validation_fraction", 0.0),
        ("validation_group", r"(slide_\d+)"),
        ("seed", 2**31 - 1),
        ("loss_weights_ssim", {"ssim": 0.85, "l1": 0.0}),
        ("gradient_clip", 0.0),
        ("augment_scale", (1.0, 1.0)),
        ("augment_blur_sigma", (0.0, 0.0)),
        ("augment_shear", 89.0),
        ("reconstruction_metrics_mse", "METRICS.XLSX"),
    ],
)
def test_the_ends_of_a_range_belong_to_it(name: str, value: Any) -> None:
    assert getattr(settings_of(**{name: value}), name) == value


def test_the_place_that_gave_the_value_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("num_epochs = 0", encoding="utf-8")
    assert refusal_of({}, "--config", str(path)).endswith(f"got 0 in {path}")
    assert refusal_of({"num_epochs": 3}, "--num_epochs", "0").endswith("got 0 in the command line")
    assert refusal_of({"num_epochs": 0}).endswith("got 0 in Config.py")


# Settings that were loaded


def test_settings_do_not_change_after_loading() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.num_epochs = 3  # type: ignore[misc]
    assert settings.num_epochs == DEFAULTS["num_epochs"]


def test_one_run_does_not_change_the_defaults_of_the_next() -> None:
    Settings().loss_weights_mse["l1"] = 1.0
    assert Settings().loss_weights_mse == {"mse": 1.0}


def test_settings_come_back_from_json() -> None:
    settings = settings_of(tile_size=(64, 32), intensity_range=(0.0, 4095.0))
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_a_setting_of_one_objective_is_found_by_the_objective() -> None:
    settings = settings_of(model_path_mse="a.pth", model_path_ssim="b.pth")
    assert settings.of("model_path", "mse") == "a.pth"
    assert settings.of("model_path", "ssim") == "b.pth"


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("training_loss_file_mse", "log.png", "must be a file name that ends in .csv"),
        ("latents_file", "folder/.csv", "must be a file name that ends in"),
        ("unet_width", 10**20, "must be at most 9007199254740992"),
        ("images_per_epoch", 10**20, "must be at most 9007199254740992"),
        ("tile_size", (64, 10**20), "must be at most 9007199254740992"),
    ],
)
def test_what_would_end_badly_later_is_refused_at_once(name: str, value: Any, rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        load({name: value}, [])


def test_a_settings_file_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.py"
    path.write_text(f"seed = {'-' * 50_000}1")
    with pytest.raises(UserError, match=r"deep\.py"):
        load({}, ["--config", str(path)])


def test_a_number_of_more_digits_than_python_spells_is_refused_in_one_line() -> None:
    for flags in (["--num_epochs", "0x" + "f" * 5000], ["--learning_rate", "0x" + "f" * 5000]):
        with pytest.raises(UserError, match=r"must be .*too long to spell in the command line"):
            load({}, flags)


@pytest.mark.parametrize("name", ["folder_path_train", "resume", "sweep_storage"])
def test_a_text_with_a_nul_byte_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} must hold no NUL character, got 'a\\x00b'"):
        load({name: "a\0b"}, [])


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_a_rate_that_no_number_of_a_network_holds_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be less than or equal to 1"):
        load({name: 1e300}, [])


def test_a_long_value_is_cut_short() -> None:
    with pytest.raises(UserError) as caught:
        load({"optimizer": "x" * 100_000}, [])
    assert len(str(caught.value)) < 400
