"""What a model's record says is held against the rules of the settings."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recon.errors import UserError
from recon.models.registry import Form, Options, build_model
from recon.pipeline.models import LoadedModel, load_model
from recon.training.checkpoint import save_final
from recon.training.runtime import Runtime

PREPARATION = {
    "tile_size": [32, 32], "channels": 3, "input_normalization": "imagenet",
    "intensity_range": None, "slice_axis": 2,
}  # fmt: skip
RECORD: dict[str, Any] = {
    "architecture": "residual",
    "network": {"residual_blocks": 1},
    "preparation": PREPARATION,
}


@pytest.fixture
def load(
    tmp_path: Path, make_settings: Callable[..., Any], network: Callable[[int], Any]
) -> Callable[[dict[str, Any]], LoadedModel]:
    """Write a small residual network with a record, and load it."""

    def run(record: dict[str, Any]) -> LoadedModel:
        model = build_model("residual", Form(3, (32, 32)), Options(residual_blocks=1), network)
        path = tmp_path / "a.pth"
        save_final(path, model.state_dict(), record)
        return load_model(
            path, make_settings(), network, Runtime(torch.device("cpu"), 1, "float32")
        )

    return run


def test_a_network_is_built_as_its_record_says(
    load: Callable[[dict[str, Any]], LoadedModel],
) -> None:
    loaded = load(RECORD)
    assert loaded.preparation.tile_size == (32, 32)


@pytest.mark.parametrize(
    "change",
    [
        {"tile_size": [0, 32]}, {"tile_size": [5, 5]}, {"tile_size": [200_000, 32]},
        {"tile_size": 32}, {"tile_size": [math.inf, 32]}, {"tile_size": ["32", "32"]},
        {"intensity_range": [0.0, math.inf]}, {"intensity_range": [9.0, 1.0]},
        {"intensity_range": [1.0]}, {"channels": 2}, {"channels": math.inf},
        {"slice_axis": 1.5}, {"input_normalization": ["none"]},
    ],
    ids=str,
)  # fmt: skip
def test_a_preparation_that_no_settings_give_is_refused(
    change: dict[str, Any], load: Callable[[dict[str, Any]], LoadedModel]
) -> None:
    with pytest.raises(UserError, match=r"a\.pth") as caught:
        load(RECORD | {"preparation": PREPARATION | change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("noise", [-0.1, math.inf, math.nan])
def test_a_noise_that_no_settings_give_is_refused(
    noise: float, load: Callable[[dict[str, Any]], LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(RECORD | {"settings": {"noise_std": 1}}).provenance["settings"] == {"noise_std": 1}
    # Spelled as a hand or another program may spell it.
    monkeypatch.setattr("recon.training.checkpoint.spell_json", json.dumps)
    with pytest.raises(UserError, match=r"noise_std must be .*a\.pth") as caught:
        load(RECORD | {"settings": {"noise_std": noise}})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"network": {"residual_blocks": 10**9}}, {"network": {"residual_blocks": "1"}},
        {"network": {"latent_dim": -1}}, {"network": {"code_dim": 10**9}},
        {"network": {"latent_channels": math.inf}}, {"network": {"activation": 3}},
        {"network": {"depth": 3}}, {"network": {"seed": 3}},
        {"architecture": 3}, {"architecture": "none"}, {"architecture": None},
        {"architecture": "dense", "network": {"latent_dim": 2**24},
         "preparation": PREPARATION | {"tile_size": [65504, 65504]}},
    ],
    ids=str,
)  # fmt: skip
def test_a_network_that_no_settings_give_is_refused(
    change: dict[str, Any], load: Callable[[dict[str, Any]], LoadedModel]
) -> None:
    with pytest.raises(UserError, match=r"a\.pth") as caught:
        load(RECORD | change)
    assert "\n" not in str(caught.value)
