"""What the machine refuses is told in one line that names what to change."""

import pytest
import torch

from recon.errors import UserError
from recon.pipeline.explaining import BatchSize, explained
from recon.settings import Settings

SETTINGS = Settings(batch_size_train=8, batch_size_test=6)
ALLOCATOR = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory\nat c10"


def said(error: Exception, batch_size: BatchSize, settings: Settings = SETTINGS) -> str:
    with pytest.raises(UserError) as caught, explained(settings, batch_size):
        raise error
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_smaller_batch_is_recommended_where_the_gpu_is_too_small() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory.\nTried to")
    assert said(error, "batch_size_train").endswith("try --batch_size_train 4")
    assert said(error, "batch_size_test").endswith("try --batch_size_test 3")
    smallest = said(error, "batch_size_test", Settings(batch_size_test=1))
    assert "take a larger GPU or smaller images" in smallest


def test_what_takes_the_memory_of_the_host_is_named() -> None:
    assert "lower tile_size" in said(RuntimeError(ALLOCATOR), "batch_size_train")
    assert "lower batch_size_test" in said(RuntimeError(ALLOCATOR), "batch_size_test")


def test_the_death_of_a_reading_process_is_told() -> None:
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \nmore")
    assert "cache_limit_gb" in said(error, "batch_size_train")
    assert said(error, "batch_size_test").endswith("lower num_workers")
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")
    assert "memory" not in said(error, "batch_size_test")


def test_the_end_of_another_rank_is_told() -> None:
    error = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:5")
    assert said(error, "batch_size_train").startswith(
        "another process of this run has ended; its own"
    )


def test_shared_memory_that_runs_out_is_told() -> None:
    error = RuntimeError(
        "Caught RuntimeError in DataLoader worker process 0.\nunable to allocate shared "
        "memory(shm) for file </torch_1_2_3>: No space left on device (28)"
    )
    assert "docker run --shm-size" in said(error, "batch_size_train")


@pytest.mark.parametrize(
    "what",
    [
        "CUDA error: out of memory\nSearch for",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling",
    ],
)
def test_a_gpu_that_others_fill_is_told(what: str) -> None:
    told = said(RuntimeError(what), "batch_size_train")
    assert "try --batch_size_train 4" in told
    assert "nvidia-smi" in told


OF_A_DATASET = RuntimeError(
    "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback"
)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), RuntimeError(), KeyError("x"), OF_A_DATASET]
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explained(SETTINGS, "batch_size_test"):
        raise error
    assert caught.value is error
