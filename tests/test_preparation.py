import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import zscore
from torchvision.transforms.functional import normalize

from recon.models.preparation import Preparation

RECORD = {
    "tile_size": (64, 32),
    "channels": 3,
    "input_normalization": "imagenet",
    "intensity_range": (0.0, 4095.0),
}


def prepare(normalization: str, channels: int = 3) -> Preparation:
    return Preparation((64, 32), channels, normalization, None)


# Normalisation


def test_imagenet_normalisation_is_torchvisions() -> None:
    images = torch.rand(2, 3, 8, 6)
    expected = normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose(prepare("imagenet").normalize(images), expected, atol=1e-6)


def test_grey_images_take_the_mean_of_the_imagenet_figures() -> None:
    images = torch.rand(2, 1, 8, 6)
    expected = normalize(images, [0.449], [0.226])
    prepared = prepare("imagenet", channels=1).normalize(images)
    assert prepared.shape == images.shape
    assert torch.allclose(prepared, expected, atol=1e-5)


def test_no_normalisation_leaves_the_images_alone() -> None:
    images = torch.rand(2, 3, 8, 6)
    assert torch.equal(prepare("none").normalize(images), images)


@pytest.mark.parametrize("normalization", ["imagenet", "zscore", "none"])
def test_the_images_themselves_which_are_the_target_do_not_change(normalization: str) -> None:
    images = torch.rand(2, 3, 8, 6)
    before = images.clone()
    prepare(normalization).normalize(images)
    assert torch.equal(images, before)


def test_the_type_of_the_images_is_kept() -> None:
    images = torch.rand(2, 3, 8, 6, dtype=torch.float64)
    for normalization in ("imagenet", "zscore"):
        assert prepare(normalization).normalize(images).dtype == torch.float64


# Z-scores


def test_every_image_is_scored_by_its_own_mean_and_deviation() -> None:
    images = torch.rand(3, 3, 8, 6) * torch.tensor([0.01, 0.5, 1]).view(3, 1, 1, 1)
    scored = prepare("zscore").normalize(images)
    expected = np.stack([zscore(image, axis=None) for image in images.double().numpy()])
    np.testing.assert_allclose(scored.numpy(), expected, atol=1e-3, rtol=1e-4)
    for index in range(3):
        alone = prepare("zscore").normalize(images[index : index + 1])
        torch.testing.assert_close(alone[0], scored[index])


def test_scores_do_not_depend_on_scale_and_offset() -> None:
    images = torch.rand(2, 1, 8, 6, dtype=torch.float64)
    score = prepare("zscore", channels=1).normalize
    torch.testing.assert_close(score(images * 0.3 + 0.2), score(images))


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_among_others_becomes_nearly_0_and_harms_none(value: float) -> None:
    images = torch.rand(3, 3, 16, 16)
    expected = prepare("zscore").normalize(images)
    images[1] = value
    scored = prepare("zscore").normalize(images)
    assert scored[1].abs().max() < 0.2
    torch.testing.assert_close(scored[[0, 2]], expected[[0, 2]])


def test_only_z_scores_refuse_constants() -> None:
    assert [prepare(n).refuses_constants for n in ("imagenet", "zscore", "none")] == [
        False,
        True,
        False,
    ]


# Records


@pytest.mark.parametrize("intensity_range", [None, (0.0, 4095.0), "image"])
@pytest.mark.parametrize("normalization", ["imagenet", "zscore", "none"])
@pytest.mark.parametrize("slice_axis", [0, 2])
def test_a_preparation_comes_back_from_its_record_through_json_or_not(
    normalization: str, intensity_range: Any, slice_axis: int
) -> None:
    preparation = Preparation((64, 32), 1, normalization, intensity_range, slice_axis)
    record = preparation._asdict()
    assert Preparation.from_record(record) == preparation
    back = Preparation.from_record(json.loads(json.dumps(record)))
    assert back == preparation
    assert isinstance(back.tile_size, tuple)


def test_a_record_from_before_there_were_volumes_has_the_last_axis() -> None:
    assert Preparation.from_record(RECORD).slice_axis == 2


def test_a_record_may_say_more() -> None:
    assert Preparation.from_record(RECORD | {"date": "today"}) == Preparation(**RECORD)


@pytest.mark.parametrize("name", RECORD)
def test_a_record_that_lacks_a_name_is_an_error(name: str) -> None:
    record = {key: value for key, value in RECORD.items() if key != name}
    with pytest.raises(ValueError, match=f"not a record of an input preparation.*{name}"):
        Preparation.from_record(record)


@pytest.mark.parametrize(
    "change",
    [
        {"tile_size": 64},
        {"tile_size": [64]},
        {"tile_size": ["a", "b"]},
        {"channels": None},
        {"channels": "three"},
        {"input_normalization": "z-score"},
        {"input_normalization": None},
        {"intensity_range": 4095},
        {"intensity_range": "own"},
        {"slice_axis": 3},
        {"slice_axis": None},
        {"intensity_range": [0.0]},
        {"intensity_range": ["low", "high"]},
        {"intensity_range": [0.0, math.inf]},
        {"intensity_range": [math.nan, 1.0]},
        {"intensity_range": [9.0, 1.0]},
        {"intensity_range": [1.0, 1.0]},
        {"tile_size": [0, 64]},
        {"tile_size": [64, 200_000]},
        {"tile_size": [64, math.inf]},
        {"channels": math.inf},
        {"channels": 0},
    ],
    ids=str,
)
def test_a_record_of_something_else_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a record of an input preparation"):
        Preparation.from_record(RECORD | change)


@pytest.mark.parametrize("record", [None, [], "imagenet", 3], ids=repr)
def test_what_is_no_record_at_all_is_an_error(record: Any) -> None:
    with pytest.raises(ValueError, match="not a record of an input preparation"):
        Preparation.from_record(record)
