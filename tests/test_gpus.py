import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from recon.errors import UserError
from recon.gpus import count_machine_gpus, select_gpus

ROOT = Path(__file__).parents[1]
LIGHT = ["Config", "recon.settings", "recon.sources", "recon.gpus", "recon.command"]
LIGHT += ["recon.errors", "recon.files", "recon.provenance"]
SCRIPTS = sorted(path.stem for p in ("Training", "Evaluation") for path in ROOT.glob(f"{p}_*.py"))
IMPORT = """
import json, os, sys
before = dict(os.environ)
import {module}
print(json.dumps(["torch" in sys.modules, dict(os.environ) == before]))
"""


def pretend(monkeypatch: pytest.MonkeyPatch, *, awake: bool) -> None:
    """Have torch imported, with CUDA initialised or not."""
    torch = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: awake))
    monkeypatch.setitem(sys.modules, "torch", torch)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    pretend(monkeypatch, awake=False)
    return monkeypatch


@pytest.mark.parametrize("gpus", ["0", "0,1", "3", ""])
def test_the_chosen_gpus_are_made_visible_in_the_order_of_nvidia_smi(
    environment: pytest.MonkeyPatch, gpus: str
) -> None:
    select_gpus(gpus)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == gpus
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_the_choice_wins_over_the_environment_and_says_so(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment.setenv("CUDA_VISIBLE_DEVICES", "5")
    environment.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    select_gpus("1")
    select_gpus("1")
    assert [record.getMessage() for record in caplog.records] == [
        "GPUs = '1' replaces CUDA_VISIBLE_DEVICES = '5'; GPUs = 'all' would keep that"
    ]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_the_cpu_is_chosen_without_a_word(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment.setenv("CUDA_VISIBLE_DEVICES", "5")
    select_gpus("")
    assert not caplog.records


def test_the_order_is_set_where_the_environment_names_the_same_gpus(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("CUDA_VISIBLE_DEVICES", "1")
    select_gpus("1")
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize("visible", [None, "", "2,3"])
def test_all_leaves_the_environment_alone(
    environment: pytest.MonkeyPatch, visible: str | None
) -> None:
    if visible is not None:
        environment.setenv("CUDA_VISIBLE_DEVICES", visible)
    before = dict(os.environ)
    select_gpus("all")
    assert dict(os.environ) == before


def test_gpus_are_chosen_where_torch_was_never_imported(environment: pytest.MonkeyPatch) -> None:
    environment.delitem(sys.modules, "torch")
    select_gpus("2")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"


def test_another_choice_is_refused_once_cuda_is_awake(environment: pytest.MonkeyPatch) -> None:
    pretend(environment, awake=True)
    environment.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match=r"GPUs = '1' .*CUDA_VISIBLE_DEVICES='0'") as caught:
        select_gpus("1")
    assert "\n" not in str(caught.value)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert "CUDA_DEVICE_ORDER" not in os.environ


@pytest.mark.parametrize("gpus", ["0", "all"])
def test_the_choice_in_use_may_be_asked_for_again(
    environment: pytest.MonkeyPatch, gpus: str
) -> None:
    select_gpus("0")
    pretend(environment, awake=True)
    select_gpus(gpus)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_the_machines_gpus_are_counted_by_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: One'\necho '  MIG'\necho 'GPU 1: Two'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert count_machine_gpus() == 2


def test_a_machine_without_nvidia_smi_has_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert count_machine_gpus() == 0


@pytest.mark.parametrize("module", LIGHT + SCRIPTS)
def test_importing_loads_no_torch_and_changes_no_environment_variable(module: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT.format(module=module)],
        cwd=ROOT,
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(answer.stdout) == [False, True]


def test_there_are_scripts_to_import() -> None:
    assert {"Training_MSE", "Training_SSIM", "Evaluation_MSE", "Evaluation_SSIM"} <= set(SCRIPTS)
