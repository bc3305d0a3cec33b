"""The models that ship are what their records say."""

import json
from pathlib import Path

import pytest
import torch

from Auto_encoder import AutoEncoder
from recon.training.checkpoint import load_strictly, read_model_file

FOLDER = Path(__file__).parents[1] / "sample_models"
LARGEST = 16_000_000  # bytes
MODELS = [FOLDER / f"model_auto_encoder_reconstruction_{name}.pth" for name in ("mse", "ssim")]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_it_loads_strictly_and_reconstructs(path: Path) -> None:
    model = AutoEncoder().eval()
    load_strictly(model, read_model_file(path).weights, path)
    image = torch.full((1, 3, 64, 64), 0.5)
    with torch.no_grad():
        assert torch.isfinite(model(image)).all()


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_it_is_a_bare_state_dict_in_half_precision_and_small(path: Path) -> None:
    weights = torch.load(path, weights_only=True)
    assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float16}
    assert path.stat().st_size <= LARGEST


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_its_record_names_data_settings_and_figures_and_no_machine(path: Path) -> None:
    text = path.with_suffix(".json").read_text(encoding="utf-8")
    record = json.loads(text)
    assert record["objective"] == path.stem.rpartition("_")[2]
    assert record["data"]["train"]["images"] > 1000
    assert record["results"]["seconds"] > 0
    assert all(entry["images"] > 100 for entry in record["held_out"].values())
    assert len(record["held_out"]) == 2
    absolute = [v for v in record["settings"].values() if isinstance(v, str) and v[:1] == "/"]
    assert absolute == []


def test_the_two_are_different_models() -> None:
    one, other = (read_model_file(path) for path in MODELS)
    assert one.provenance["weights_sha256"] != other.provenance["weights_sha256"]
    name = "decoder.15.weight"
    assert not torch.equal(one.weights[name], other.weights[name])
