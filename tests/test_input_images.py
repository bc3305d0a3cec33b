import hashlib
import importlib.util
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import skimage
from PIL import Image

FOLDER = Path(__file__).parents[1] / "input_images"
FILES = sorted(FOLDER.rglob("*.png"))
SOURCES = {
    "ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    "retina.jpg": "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
}


@pytest.fixture(scope="module")
def cutter() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cut_images", FOLDER / "cut_images.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(path: Path) -> set[bytes]:
    """Every row of 256 pixels, except those of one colour (the black surround)."""
    tile = np.asarray(Image.open(path))
    return {row.tobytes() for row in tile if np.ptp(row, axis=0).any()}


def test_every_folder_holds_the_number_of_tiles_that_the_readme_states() -> None:
    counts: dict[str, int] = {}
    for path in FILES:
        folder = path.parent.relative_to(FOLDER).as_posix()
        counts[folder] = counts.get(folder, 0) + 1
    assert counts == {
        "train/ihc": 9,
        "train/retina_left": 8,
        "train/retina_middle": 5,
        "test/ihc": 3,
        "test/retina": 8,
    }
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{folder}` | {count} |" in readme for folder, count in counts.items())


def test_every_tile_is_an_rgb_png_of_256_pixels() -> None:
    for path in FILES:
        with Image.open(path) as tile:
            assert (tile.format, tile.mode, tile.size) == ("PNG", "RGB", (256, 256))


def test_all_tiles_together_stay_below_six_megabytes() -> None:
    assert sum(path.stat().st_size for path in FILES) < 6_000_000


def test_no_two_folders_share_a_row_of_pixels() -> None:
    rows: dict[Path, set[bytes]] = {}
    for path in FILES:
        rows.setdefault(path.parent, set()).update(rows_of(path))
    for one, other in combinations(rows, 2):
        assert not rows[one] & rows[other], f"{one} and {other}"


def test_no_two_folders_overlap_in_their_source(cutter: ModuleType) -> None:
    cut = cutter.regions()
    for one, other in combinations(cut, 2):
        if one.source == other.source and one.folder != other.folder:
            assert abs(one.x - other.x) >= 256 or abs(one.y - other.y) >= 256


def test_shipped_tiles_equal_what_the_script_cuts(cutter: ModuleType) -> None:
    folder = Path(skimage.__file__).parent / "data"
    for name, digest in SOURCES.items():
        source = folder / name
        if not source.is_file() or hashlib.sha256(source.read_bytes()).hexdigest() != digest:
            pytest.skip(f"this scikit-image has another {name}")
    cut = {FOLDER / region.file: tile for region, tile in cutter.tiles()}
    assert sorted(cut) == FILES
    for path, tile in cut.items():
        # JPEG decoders may differ in the last level; PNG is exact.
        tolerance = 2 if "retina" in path.name else 0
        np.testing.assert_allclose(np.asarray(Image.open(path)), tile, rtol=0, atol=tolerance)
