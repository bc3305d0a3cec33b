"""Every recipe is a settings file that its own command takes."""

import re
from pathlib import Path

import pytest

import Config
from recon.settings import load

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_loads_over_the_configuration(path: Path) -> None:
    settings, asked = load(Config, ["--config", str(path)])
    assert asked
    assert settings != load(Config, [])[0]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_its_command_names_it_and_a_script_that_exists(path: Path) -> None:
    commands = re.findall(r"^    python (\w+\.py) --config (\S+)", path.read_text(), re.M)
    assert len(commands) == 2, "one to train, one to evaluate"
    assert {recipe for _, recipe in commands} == {f"recipes/{path.name}"}
    assert all((ROOT / script).is_file() for script, _ in commands)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_evaluates_what_it_trains(path: Path) -> None:
    objective = re.findall(r"Training_(\w+)\.py", path.read_text())[0].lower()
    settings, _ = load(Config, ["--config", str(path)])
    trained = Path(settings.of("model_saved_location", objective))
    assert Path(settings.of("model_path", objective)).parent == trained
