import re
import shlex
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from recon.errors import UserError
from recon.settings import SECTIONS, Settings, load
from recon.sources import as_flags, read_module, read_settings_file

NAMES = list(Settings.model_fields)
# Where a setting has a rule of its own, or no type that tells what else it could be.
OTHERS: dict[str, Any] = {
    "GPUs": "0,1",
    "reconstruction_metrics_mse": 'my results/it\'s "mine".xlsx',
    "reconstruction_metrics_ssim": "$HOME/*.xlsx",
    "reconstruction_metrics_vae": "a b.xlsx",
    "reconstruction_metrics_vqvae": "c.xlsx",
    "latents_file": "my latents.parquet",
    "slice_axis": 1,
    "noise_std_test": 0.25,
    "tracking": "tensorboard,wandb",
    "image_check_file": "=check it.XLSX",
    "validation_group": r"-(\d+)-",
    "intensity_range": (-1.5, 4095.0),
    "crop_size": (64, 32),
    "resume": "--odd",
    "save_images": "none",
}


def other_value(name: str) -> Any:
    """A valid value that is not the default."""
    field = Settings.model_fields[name]
    default = field.default
    if name in OTHERS:
        return OTHERS[name]
    if get_origin(field.annotation) is Literal:
        return [choice for choice in get_args(field.annotation) if choice != default][-1]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 2
    if isinstance(default, float):
        return default / 2 or 0.25
    if isinstance(default, tuple):
        return (0.3, 1 / 3)
    if isinstance(default, dict):
        return {"l1": 1e-05, "ssim": 0.85}
    return f"a {name}'s \\ värde{'.csv' if str(default).endswith('.csv') else ''}"


def refusal_of(config: dict[str, Any], *argv: str) -> str:
    with pytest.raises(UserError) as caught:
        load(config, list(argv))
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(folder: Path, text: str) -> str:
    path = folder / "settings.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


# Unknown names


def test_a_typo_in_config_py_is_refused_with_the_nearest_name() -> None:
    message = refusal_of({"num_epoch": 3})
    assert message == "unknown setting 'num_epoch' in Config.py; did you mean 'num_epochs'?"


def test_a_typo_in_a_settings_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    path = write(tmp_path, "batchsize_train = 3")
    message = refusal_of({}, "--config", path)
    assert f"unknown setting 'batchsize_train' in {path}" in message
    assert message.endswith("did you mean 'batch_size_train'?")


def test_capitals_do_not_hide_the_nearest_name() -> None:
    assert refusal_of({"TILE_SIZE": 64}).endswith("did you mean 'tile_size'?")


@pytest.mark.parametrize("argv", [["--gpu", "0"], ["--gpu=0"]])
def test_a_typo_in_a_flag_is_refused_with_the_nearest_name(argv: list[str]) -> None:
    message = refusal_of({}, *argv)
    assert message == "unknown setting 'gpu' in the command line; did you mean 'GPUs'?"


def test_the_beginning_of_a_name_is_not_taken_for_the_name() -> None:
    assert "did you mean 'num_epochs'" in refusal_of({}, "--num_e", "3")


def test_a_name_like_no_other_is_sent_to_the_help() -> None:
    assert refusal_of({"zzzzzzz": 1}).endswith("--help lists every setting")


@pytest.mark.parametrize("argument", ["train.py", "-n", "3"])
def test_an_argument_that_is_no_flag_is_refused(argument: str) -> None:
    assert repr(argument) in refusal_of({}, argument)


@pytest.mark.parametrize("flag", ["--num_epochs", "--config"])
def test_a_flag_without_its_value_is_refused(flag: str) -> None:
    assert flag in refusal_of({}, flag)


# Config.py


def test_private_names_modules_functions_and_classes_of_config_py_are_no_settings() -> None:
    config = {"_root": "x", "__doc__": "x", "re": re, "f": lambda: 3, "Path": Path, "seed": 3}
    source = read_module(config)
    assert source.values == {"seed": 3}
    assert source.place == "Config.py"


# Settings files


def test_a_settings_file_holds_literals_comments_and_docstrings(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '"""What it is for."""\n# why\nseed = 3  # three\nlearning_rate = 1e-4\n'
        'intensity_range = (-1.0, 4095)\ncrop_size = None\nloss_weights_mse = {"mse": 1}\n',
    )
    assert read_settings_file(Path(path)).values == {
        "seed": 3,
        "learning_rate": 1e-4,
        "intensity_range": (-1.0, 4095),
        "crop_size": None,
        "loss_weights_mse": {"mse": 1},
    }


@pytest.mark.parametrize(
    "text",
    [
        "import pathlib\npathlib.Path({mark!r}).touch()",
        "seed = __import__('pathlib').Path({mark!r}).touch()",
        "seed = open({mark!r}, 'w').write('x')",
        "open({mark!r}, 'w')",
        "if open({mark!r}, 'w'):\n    seed = 3",
        "def seed(x=open({mark!r}, 'w')):\n    pass",
        "seed = [x for x in [open({mark!r}, 'w')]]",
        "seed = f\"{{open({mark!r}, 'w')}}\"",
        "seed = {{[]: open({mark!r}, 'w')}}",
    ],
)
def test_a_settings_file_is_never_run(tmp_path: Path, text: str) -> None:
    mark = tmp_path / "ran"
    path = write(tmp_path, text.format(mark=str(mark)))
    message = refusal_of({}, "--config", path)
    assert message.startswith(f"{path}:1 must be ")
    assert not mark.exists()


@pytest.mark.parametrize(
    "text", ["a = b = 3", "seed += 3", "seed, num_epochs = 3, 4", "x[0] = 3", "seed = num_epochs"]
)
def test_a_line_that_is_not_name_and_literal_is_refused_with_its_number(
    tmp_path: Path, text: str
) -> None:
    path = write(tmp_path, f"num_epochs = 3\n{text}")
    assert refusal_of({}, "--config", path).startswith(f"{path}:2 must be ")


def test_a_settings_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.py"
    assert refusal_of({}, "--config", str(path)).startswith(f"--config {path} cannot be read: ")


@pytest.mark.parametrize("content", [b"seed = (", b"seed = 'x", b"\xff\xfe\x00", b"seed = 3\x00"])
def test_a_settings_file_that_is_no_python_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.py"
    path.write_bytes(content)
    assert f"--config {path} cannot be read: " in refusal_of({}, "--config", str(path))


# Flags


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("augmentation", "False", False),
        ("augmentation", "false", False),
        ("augmentation", "TRUE", True),
        ("crop_size", "None", None),
        ("crop_size", "none", None),
        ("crop_size", "64", 64),
        ("tile_size", "(64, 32)", (64, 32)),
        ("tile_size", "64,32", (64, 32)),
        ("tile_size", "[64, 32]", (64, 32)),
        ("intensity_range", "-1,4095", (-1.0, 4095.0)),
        ("loss_weights_ssim", "{'ssim': 0.85, 'l1': 0.15}", {"ssim": 0.85, "l1": 0.15}),
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", "1", 1.0),
        ("input_normalization", "none", "none"),
        ("save_images", "all", "all"),
        ("save_images", "none", "none"),
        ("save_images", "5", 5),
        ("folder_path_train", "3", "3"),
        ("folder_path_train", "None", "None"),
        ("folder_path_train", "my images", "my images"),
        ("GPUs", "0", "0"),
        ("GPUs", "0,1", "0,1"),
        ("GPUs", "", ""),
        ("resume", "", ""),
    ],
)
def test_a_flag_is_read_as_its_setting_needs_it(name: str, text: str, value: Any) -> None:
    for argv in ([f"--{name}={text}"], [] if text.startswith("-") else [f"--{name}", text]):
        settings, asked = load({name: other_value(name)}, argv)
        assert getattr(settings, name) == (value if argv else other_value(name))
        assert asked == ({name} if argv else set())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("num_epochs", "three"),
        ("num_epochs", "3.0"),
        ("num_epochs", ""),
        ("num_epochs", "(" * 300),
        ("augmentation", "yes"),
        ("augmentation", "0"),
        ("precision", "32"),
        ("tile_size", "64x32"),
    ],
)
def test_a_flag_that_cannot_be_read_is_refused_by_name(name: str, text: str) -> None:
    assert refusal_of({}, f"--{name}", text).startswith(f"{name} must be ")


def test_every_setting_is_a_flag_of_the_same_spelling() -> None:
    flags = shlex.split(as_flags(Settings(), NAMES))
    assert {flag[2:] for flag in flags if flag.startswith("--")} == set(NAMES)
    assert load({}, flags) == (Settings(), frozenset(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_flags_give_the_settings_again_that_they_spell(name: str) -> None:
    settings = Settings(**{name: other_value(name)})
    assert settings != Settings()
    loaded, asked = load({}, shlex.split(as_flags(settings, [name])))
    assert loaded == settings
    assert asked == {name}


def test_the_settings_tried_here_are_of_every_kind_there_is() -> None:
    kinds = {type(other_value(name)) for name in NAMES}
    assert kinds >= {bool, int, float, str, tuple, dict}
    assert any(Settings.model_fields[name].default is None for name in NAMES)


# Help


def help_text(
    config: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit) as caught:
        load(config, ["--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_lists_every_setting_with_its_description_and_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_text({}, monkeypatch, capsys)
    for name, field in Settings.model_fields.items():
        line = re.search(rf"^ *--{name} X\s+(.*)$", text, re.MULTILINE)
        assert line is not None, name
        assert line[1].startswith(str(field.description))
        assert line[1].endswith(f"[default: {field.default!r}]")
    assert all(section.title in text for section in SECTIONS)


def test_help_gives_choices_and_bounds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_text({}, monkeypatch, capsys)
    assert re.search(r"--optimizer X\s+.*\[one of adam, adamw, muon\]", text)
    assert re.search(r"--validation_fraction X\s+.*\[at least 0, below 1\]", text)
    assert re.search(r"--learning_rate X\s+.*\[above 0, at most 1e\+30\]", text)


def test_help_shows_what_config_py_says_instead_of_a_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_text({"seed": 7, "num_epochs": 100}, monkeypatch, capsys)
    assert re.search(r"--seed X .*\[default: 0\] \[Config.py: 7\]$", text, re.MULTILINE)
    assert text.count("[Config.py: ") == 1


def test_help_survives_a_percent_sign_in_config_py(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_text({"folder_path_train": "100%_tiles"}, monkeypatch, capsys)
    assert "[Config.py: '100%_tiles']" in text


def test_a_settings_file_of_a_windows_editor_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("num_epochs = 3\n", encoding="utf-8-sig")
    assert read_settings_file(path).values == {"num_epochs": 3}
