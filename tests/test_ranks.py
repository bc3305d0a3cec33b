"""Several processes do together what one does alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torchvision.utils import save_image

from recon.errors import UserError
from recon.pipeline.foresight import demand_agreement
from recon.ranks import Ranks, ranks_of_environment

ROOT = Path(__file__).parent.parent

# A run on the CPU with a network without batch normalisation, whose statistics each rank keeps.
PROGRAM = """
import atexit
import sys
import time
from pathlib import Path
from torch import nn

def count_threads():
    return len(list(Path("/proc/self/task").glob("*")))

def tell_threads():  # Registered first, so it comes last.
    patience = time.monotonic() + 10  # A thread that has ended is listed for a moment more.
    while count_threads() > before and time.monotonic() < patience:
        time.sleep(0.01)
    print("threads besides those at the start:", max(0, count_threads() - before))

atexit.register(tell_threads)
sys.path.insert(0, {root!r})
import Config
from datasets import ImageFolderDataset
from recon.command import run_command
from recon.pipeline import run_evaluation, run_training

class Plain(nn.Sequential):
    def __init__(self, channels):
        super().__init__(
            nn.Conv2d(channels, 8, 3, padding=1), nn.LeakyReLU(), nn.Conv2d(8, channels, 1),
            nn.Sigmoid(),
        )

def job(settings, asked):
    global before
    before = count_threads()
    run_training(settings, "mse", Plain, ImageFolderDataset, asked=asked)
    run_evaluation(settings, "mse", Plain, ImageFolderDataset, asked=asked)

sys.exit(run_command(Config, sys.argv[1:], job))
"""


def launch(tmp_path: Path, name: str, ranks: int, images: Path) -> Path:
    """Train and evaluate on so many processes; returns the folder of what they wrote."""
    out = tmp_path / name
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(root=str(ROOT)))
    flags = {
        "GPUs": "", "precision": "float32", "num_workers": "0", "tile_size": "16",
        "num_epochs": "2", "batch_size_train": "4", "batch_size_test": "3", "learning_rate": "0.01",
        "folder_path_train": str(images), "folder_path_test": str(images),
        "validation_group": "image", "validation_fraction": "0.3", "save_interval": "1",
        "model_saved_location_mse": str(out), "training_loss_file_mse": str(out / "loss.csv"),
        "model_path_mse": str(out / "Final_Model_AE_MSE.pth"),
        "recon_output_mse": str(out / "pictures"),
        "reconstruction_metrics_mse": str(out / "metrics.xlsx"),
    }  # fmt: skip
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command += [str(program), *(part for k, v in flags.items() for part in (f"--{k}", v))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (out / "stdout").write_text(done.stdout)
    return out


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, Path]:
    """The same run on one process and on two."""
    folder = tmp_path_factory.mktemp("ranks")
    images = folder / "images"
    generator = torch.Generator().manual_seed(0)
    for i in range(11):
        path = images / f"{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(torch.rand(3, 16, 16, generator=generator), path)
    (images / "a/damaged.png").write_bytes(b"no image")
    return {ranks: launch(folder, f"on{ranks}", ranks, images) for ranks in (1, 2)}


def columns(path: Path, names: tuple[str, ...]) -> list[list[float]]:
    return pd.read_csv(path)[list(names)].to_numpy().tolist()


def test_two_ranks_learn_the_same_weights_as_one_process(runs: dict[int, Path]) -> None:
    one, two = (torch.load(runs[n] / "Final_Model_AE_MSE.pth", weights_only=True) for n in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)


def test_two_ranks_log_the_losses_of_all_images(runs: dict[int, Path]) -> None:
    names = ("Loss", "Validation Loss", "Validation PSNR", "Validation SSIM")
    one, two = (columns(runs[n] / "loss.csv", names) for n in (1, 2))
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=1e-4, atol=1e-6)


def test_two_ranks_evaluate_every_image_once_and_in_order(runs: dict[int, Path]) -> None:
    one, two = (pd.read_csv(runs[n] / "metrics.csv") for n in (1, 2))
    assert list(two["Image Path"]) == list(one["Image Path"])
    assert len(two) == 11
    names = ["MSE", "PSNR", "SSIM"]
    torch.testing.assert_close(
        torch.tensor(two[names].to_numpy()),
        torch.tensor(one[names].to_numpy()),
        rtol=1e-3,
        atol=1e-6,
    )


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_no_thread_of_a_group_outlives_the_run(runs: dict[int, Path]) -> None:
    # One that frees a tensor while the interpreter is torn down aborts the process.
    assert (runs[2] / "stdout").read_text().count("those at the start: 0\n") == 2


def test_two_ranks_write_every_picture(runs: dict[int, Path]) -> None:
    one, two = (
        sorted(str(p.relative_to(runs[n])) for p in (runs[n] / "pictures").rglob("*.png"))
        for n in (1, 2)
    )
    assert two == one
    assert len(two) == 11


def test_an_unreadable_image_is_listed_once_whatever_rank_met_it(runs: dict[int, Path]) -> None:
    for ranks in (1, 2):
        text = (runs[ranks] / "stdout").read_text()
        assert text.count("Skipped 1 unreadable images") == 2  # after training, after evaluation
        record = json.loads((runs[ranks] / "Final_Model_AE_MSE.json").read_text())
        assert record["results"]["unreadable"] == 1


def test_only_the_first_rank_speaks(runs: dict[int, Path]) -> None:
    lines = (runs[2] / "stdout").read_text().splitlines()
    assert sum(line.startswith("Epoch 1/2, Average Loss: ") for line in lines) == 1
    assert sum(line.startswith("Workbook: ") for line in lines) == 1


def test_two_ranks_learn_one_codebook_in_uneven_pieces(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for i in range(11):
        path = tmp_path / f"images/{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(torch.rand(3, 32, 32, generator=generator), path)
    flags = {
        "GPUs": "", "precision": "float32", "num_workers": "0", "tile_size": "32",
        "num_epochs": "2", "batch_size_train": "5", "validation_group": "image",
        "validation_fraction": "0.1", "accumulation": "4", "codebook_size": "16", "code_dim": "4",
        "folder_path_train": str(tmp_path / "images"),
        "model_saved_location_vqvae": str(tmp_path / "out"),
        "training_loss_file_vqvae": str(tmp_path / "loss.csv"),
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", str(ROOT / "Training_VQVAE.py")]
    command += [part for name, value in flags.items() for part in (f"--{name}", value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    log = pd.read_csv(tmp_path / "loss.csv")
    assert log["Codes Used"].between(1, 16).all()
    assert log["Perplexity"].between(1, 16).all()
    weights = torch.load(tmp_path / "out/Final_Model_AE_VQVAE.pth", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())


class Beside(Ranks):
    """A rank that hears another one say something."""

    def __init__(self, said: object) -> None:
        super().__init__(0, 2)
        self.said = said

    def gather(self, item: Any) -> list[Any]:
        return [item, self.said]


def test_ranks_must_see_the_same_images_and_the_same_checkpoint() -> None:
    data = {"train": {"fingerprint": "a"}, "validation": {"images": 0}}
    with pytest.raises(UserError, match="must train on the same images"):
        demand_agreement(Beside(["b", None]), None, data)
    content = {"epoch": 3, "provenance": {"weights_sha256": "c"}}
    ranks = Beside(None)
    answers = iter([["a", None], None, ["a", None], (3, "c")])
    ranks.gather = lambda item: [item, next(answers)]  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"must go on from the same checkpoint.* resume = ''"):
        demand_agreement(ranks, (Path("m.pth"), content), data)
    demand_agreement(ranks, (Path("m.pth"), content), data)


def test_torchrun_tells_how_many_processes_share_a_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert vars(ranks_of_environment()) == {"rank": 5, "world": 8, "local": 1, "here": 4}
