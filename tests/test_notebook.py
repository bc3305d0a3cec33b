"""The notebook runs from top to bottom as a user would run it."""

import shutil
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from Auto_encoder import AutoEncoder
from recon.training.logs import COLUMNS

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "visualize.ipynb"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What the notebook needs, with an untrained model in the place of the sample model."""
    for name in ("Config.py", "Auto_encoder.py", "datasets.py", "visualize.ipynb"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("recon", "input_images"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "sample_models").mkdir()
    model = tmp_path / "sample_models/model_auto_encoder_reconstruction_ssim.pth"
    torch.save(AutoEncoder().state_dict(), model)
    (tmp_path / "training_loss_ssim.csv").write_text(
        f"{','.join(COLUMNS)}\n1,0.5,0.4,20.0,0.6,0.001,1.0,10.0\n2,0.3,0.3,22.0,0.7,0.001,1.0,10.0\n"
    )
    return tmp_path


# nbclient and the kernel's own libraries, not this project, warn in these ways.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning:zmq")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_it_runs_headless_and_shows_pictures_table_and_curve(clone: Path) -> None:
    notebook = nbformat.read(clone / "visualize.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(clone)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    tables = [o for o in outputs if "text/html" in o.get("data", {})]
    text = "".join(o.get("text", "") for o in outputs)
    assert len(pictures) == 5
    assert len(tables) == 2
    assert "11 images below input_images/test" in text
    assert "Traceback" not in text


def test_it_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_every_code_cell_follows_a_sentence_of_explanation() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    kinds = [cell.cell_type for cell in cells]
    assert kinds[0] == "markdown"
    assert all(before == "markdown" for before, kind in pairwise(kinds) if kind == "code")


def test_it_defines_nothing_of_its_own() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert "def " not in source
    assert "class " not in source
