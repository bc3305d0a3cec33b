import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import nn

from recon.errors import UserError
from recon.training import runtime
from recon.training.runtime import Runtime, start_runtime, unwrap

CPU = torch.device("cpu")


def start(gpus: str = "", precision: str = "float32", *, deterministic: bool = False) -> Runtime:
    return start_runtime(gpus, precision, seed=0, deterministic=deterministic)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(runtime, "count_machine_gpus", lambda: 0)


# Device


def test_an_empty_setting_is_the_cpu_even_where_there_are_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert start("").device == CPU


@pytest.mark.parametrize("gpus", ["0", "0,1", "all"])
def test_a_machine_without_gpu_says_so_and_uses_the_cpu(
    gpus: str, no_gpu: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "recon")
    assert start(gpus).device == CPU
    assert f"GPUs = {gpus!r}, but no GPU is at hand: running on the CPU" in caplog.text


def test_a_gpu_that_the_machine_lacks_is_refused_naming_those_it_has(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "count_machine_gpus", lambda: 2)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UserError, match="GPUs = '7' names a GPU that this machine lacks: it has 2"):
        start("7")


def test_a_pytorch_without_cuda_is_named_where_the_machine_has_gpus(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "count_machine_gpus", lambda: 1)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match="needs a CUDA build of PyTorch"):
        start("0")


def test_the_device_is_announced_once_with_its_precision(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "recon")
    start("")
    (line,) = caplog.messages
    assert line.startswith("Device: CPU (")
    assert line.endswith("float32")


# Precision


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({"avx512_bf16"}, "bfloat16"), ({"amx_bf16"}, "bfloat16"), ({"avx2"}, "float32")],
)
def test_auto_is_bfloat16_only_where_the_cpu_computes_it(
    flags: set[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_cpu_flags", lambda: flags)
    assert start(precision="auto").precision == expected


@pytest.mark.parametrize("precision", ["float16", "tf32"])
def test_a_precision_that_a_cpu_lacks_is_refused(precision: str) -> None:
    with pytest.raises(UserError, match=f"bfloat16 or float32 on a CPU, got '{precision}'"):
        start(precision=precision)


def test_emulated_bfloat16_is_allowed_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runtime, "_cpu_flags", set)
    assert start(precision="bfloat16").precision == "bfloat16"
    assert [r.levelno for r in caplog.records if "emulation" in r.message] == [logging.WARNING]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_autocast_runs_the_network_in_the_precision(precision: str, dtype: torch.dtype) -> None:
    images = torch.rand(1, 3, 16, 16)
    with Runtime(CPU, 1, precision).autocast():
        assert nn.Conv2d(3, 2, 3)(images).dtype == dtype


def test_the_loss_is_scaled_for_float16_alone() -> None:
    enabled = {p: Runtime(CPU, 1, p).scaler().is_enabled() for p in runtime.DTYPES}
    assert [name for name, on in enabled.items() if on] == ["float16"]


def test_tf32_is_off_unless_asked_for() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    start(precision="float32")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


# Networks and their wrappers


def test_unwrap_takes_the_network_out_of_all_wrappers(network: Callable[[], nn.Module]) -> None:
    class Compiled(nn.Module):
        """Names the network as torch.compile does."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self._orig_mod = model

    model = network()
    names = list(model.state_dict())
    for wrapped in (
        model,
        nn.DataParallel(model),
        Compiled(model),
        nn.DataParallel(Compiled(model)),
        Compiled(nn.DataParallel(model)),
    ):
        assert unwrap(wrapped) is model
        assert list(unwrap(wrapped).state_dict()) == names


def test_unwrap_leaves_attributes_that_are_no_networks_alone(
    network: Callable[[], nn.Module],
) -> None:
    model = network()
    model.module = "of a house"
    assert unwrap(model) is model


def test_several_gpus_share_a_batch_and_one_needs_no_wrapper(
    network: Callable[[], nn.Module],
) -> None:
    model = network()
    assert Runtime(CPU, 1, "float32").spread(model) is model
    assert isinstance(Runtime(CPU, 2, "float32").spread(model), nn.DataParallel)


def test_a_placed_network_has_its_channels_innermost(network: Callable[[], nn.Module]) -> None:
    weight = Runtime(CPU, 1, "float32").place(network()).encoder[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


# State of the process


def test_starting_seeds_all_generators() -> None:
    import random

    import numpy as np

    draws = []
    for _ in range(2):
        start()
        draws.append((random.random(), np.random.rand(), float(torch.rand(1))))  # noqa: NPY002
    assert draws[0] == draws[1]


def test_deterministic_is_switched_on_and_off_again() -> None:
    start(deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    start()
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


def test_a_deterministic_training_runs(
    train: Callable[..., object], write_images: Callable[..., Path], tmp_path: Path
) -> None:
    write_images(tmp_path / "train", 4)
    train(deterministic=True, num_epochs=1)


def test_keeping_freed_memory_harms_neither_this_nor_another_c_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime._keep_freed_memory()
    assert float(torch.ones(1 << 20).sum()) == 1 << 20
    monkeypatch.setattr(runtime.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(runtime.ctypes, "CDLL", None)
    runtime._keep_freed_memory()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_the_memory_of_an_earlier_run_is_given_back() -> None:
    def resident() -> int:  # pages
        return int(Path("/proc/self/statm").read_text().split()[1])

    size = 256 * 2**20
    start()
    torch.ones(size // 4)  # of float32, and let go at once
    kept = resident()
    start()
    assert (kept - resident()) * os.sysconf("SC_PAGE_SIZE") > size // 2


def test_the_room_of_training_wakes_no_gpu_when_it_is_imported() -> None:
    code = "import torch, recon.pipeline; print(torch.cuda.is_initialized())"
    root = Path(runtime.__file__).parents[2]
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"


@pytest.mark.parametrize("enabled", [True, False])
def test_replicas_compute_in_the_precision_of_their_caller(
    monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    found = []

    def in_threads(replicas: Any, inputs: Any, _named: Any, _devices: Any) -> None:
        def run(replica: Any, images: Any) -> None:  # As torch does it: without a dtype.
            with torch.autocast("cpu", enabled=enabled):
                found.append(replica(*images).dtype)

        threads = [Thread(target=run, args=pair) for pair in zip(replicas, inputs, strict=True)]
        for thread in threads:
            thread.start()
            thread.join()

    module = sys.modules["torch.nn.parallel.data_parallel"]
    monkeypatch.setattr(module, "parallel_apply", in_threads)
    spread = runtime.DataParallel(nn.Conv2d(1, 1, 1))
    spread.src_device_obj, spread.device_ids = CPU, [0, 1]
    with torch.autocast("cpu", torch.float16, enabled=enabled):
        spread.parallel_apply([spread.module] * 2, [(torch.ones(1, 1, 2, 2),)] * 2, [{}] * 2)
    assert found == [torch.float16 if enabled else torch.float32] * 2


def test_a_network_is_not_compiled_for_several_gpus_of_one_process(
    network: Callable[[], nn.Module],
) -> None:
    with pytest.raises(UserError, match=r"compile_model = True does not go with the 2 GPUs"):
        Runtime(CPU, 2, "float32").spread(network(), compile_model=True)
