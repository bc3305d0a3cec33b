"""The machine a run has: device, ranks, precision, and how a network is spread over it."""

import ctypes
import logging
import os
import platform
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from recon.errors import UserError
from recon.gpus import count_machine_gpus
from recon.ranks import ALONE, Ranks, ranks_of_environment
from recon.training.convolutions import add_biases_apart

__all__ = ["Runtime", "start_runtime", "unwrap"]

logger = logging.getLogger("recon")

# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
NEVER_TRIM = 2**31 - 1  # bytes

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "tf32": torch.float32,
    "float32": torch.float32,
}


class DataParallel(nn.DataParallel):  # type: ignore[type-arg, unused-ignore]
    """The plain one, whose replicas compute in the precision of its caller.

    Each runs in a thread of its own, where torch switches autocast on, but not to the dtype that
    it has here: bfloat16 would become float16, without the scaling of losses that this needs.
    """

    def parallel_apply(self, replicas: Any, inputs: Any, kwargs: Any) -> list[Any]:
        """Feed each replica its part of the batch."""
        kind = self.src_device_obj.type
        dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

        def cast(replica: nn.Module) -> Callable[..., Any]:
            def run(*args: Any, **named: Any) -> Any:
                with torch.autocast(kind, dtype, enabled=enabled):
                    return replica(*args, **named)

            return run

        return super().parallel_apply([cast(replica) for replica in replicas], inputs, kwargs)


class Runtime(NamedTuple):
    """Where and how a network runs."""

    device: torch.device
    devices: int  # GPUs that DataParallel spreads a batch over; 1 on a CPU
    precision: str  # a key of DTYPES
    ranks: Ranks = ALONE

    @property
    def name(self) -> str:
        """The device in words, for a person and for the record of a run."""
        if self.device.type == "cpu":
            return f"CPU ({torch.get_num_threads()} threads)"
        count = max(self.devices, self.ranks.world)
        return f"{count} x {torch.cuda.get_device_name(self.device)}"

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run the network inside in this runtime's precision."""
        dtype = DTYPES[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
            yield

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, which float16 alone needs."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "float16")

    def place(self, model: nn.Module) -> nn.Module:
        """Move a network to the device, as its convolutions are fastest there."""
        if self.device.type == "cpu":
            add_biases_apart(model)
        # torch accepts memory_format here; its type stubs do not say so for every overload.
        return model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def spread(
        self, model: nn.Module, *, compile_model: bool = False, learns: bool = True
    ) -> nn.Module:
        """Wrap a placed network for several GPUs or processes, and compile it if wanted.

        Args:
            model: The plain network.
            compile_model: Whether to compile it.
            learns: Whether gradients are to be exchanged between processes.

        Raises:
            UserError: If it is to be compiled for several GPUs of one process.
        """
        if compile_model and self.devices > 1:
            raise UserError(
                f"compile_model = True does not go with the {self.devices} GPUs of one process: "
                f"choose one in GPUs, or start torchrun, whose processes take one each"
            )
        if compile_model:
            model = torch.compile(model)  # type: ignore[assignment]
        if self.ranks.world > 1 and learns:
            return nn.parallel.DistributedDataParallel(
                model, device_ids=[self.device] if self.device.type == "cuda" else None
            )
        return DataParallel(model) if self.devices > 1 else model

    def send(self, images: Tensor) -> Tensor:
        """Copy a batch to the device, without waiting where memory is pinned."""
        return images.to(self.device, non_blocking=True)


def start_runtime(gpus: str, precision: str, *, seed: int, deterministic: bool) -> Runtime:
    """Settle device, precision, random state and allocator for this process.

    Args:
        gpus: The setting, already applied to the environment.
        precision: The setting.
        seed: Of Python, NumPy and torch.
        deterministic: Use deterministic algorithms alone.

    Raises:
        UserError: If GPUs are asked for that the machine lacks, or a precision that the device
            does not compute.
    """
    ranks = ranks_of_environment()
    if not ranks.first:  # One process speaks for all.
        logger.setLevel(logging.ERROR)
    device, devices = _find_device(gpus, ranks)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the libraries that read it know no other
    torch.manual_seed(seed)
    _be_deterministic(deterministic)
    precision = _choose_precision(precision, device)
    # Chosen, not left to a default that differs between versions: TF32 only where asked for.
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = not deterministic
    if device.type == "cpu":
        _keep_freed_memory()
    runtime = Runtime(device, devices, precision, ranks)
    logger.info("Device: %s, %s", runtime.name, precision)
    return runtime


def unwrap(model: nn.Module) -> nn.Module:
    """Take the network out of DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        inner = getattr(model, "module", getattr(model, "_orig_mod", None))
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _find_device(gpus: str, ranks: Ranks) -> tuple[torch.device, int]:
    if gpus == "":
        return torch.device("cpu"), 1
    visible = torch.cuda.device_count()
    asked = visible if gpus == "all" else len(gpus.split(","))
    if visible >= asked > 0 and ranks.world == 1:
        return torch.device("cuda", 0), asked
    if visible >= asked > ranks.local:
        torch.cuda.set_device(ranks.local)
        return torch.device("cuda", ranks.local), 1
    if visible >= asked > 0:
        raise UserError(f"torchrun starts more processes here than GPUs = {gpus!r} has GPUs")
    machine = count_machine_gpus()
    if machine == 0 or gpus == "all":
        logger.info("GPUs = %r, but no GPU is at hand: running on the CPU", gpus)
        return torch.device("cpu"), 1
    if torch.version.cuda is None:
        raise UserError(
            f"GPUs = {gpus!r} needs a CUDA build of PyTorch, and {torch.__version__} is none; "
            f'install one, or set GPUs = "" for the CPU'
        )
    raise UserError(
        f"GPUs = {gpus!r} names a GPU that this machine lacks: it has {machine}, numbered from 0"
    )


def _be_deterministic(deterministic: bool) -> None:
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():  # It imports a compiler.
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic


def _choose_precision(precision: str, device: torch.device) -> str:
    native = _native_precision(device)
    if precision == "auto":
        return native
    if precision in ("float16", "tf32") and device.type == "cpu":
        raise UserError(f"precision must be bfloat16 or float32 on a CPU, got {precision!r}")
    if precision == "bfloat16" and native != "bfloat16":
        logger.warning("This device computes bfloat16 by emulation: expect it to be slow")
    return precision


def _native_precision(device: torch.device) -> str:
    """The fastest precision that the device computes in hardware."""
    if device.type == "cuda":
        capable = torch.cuda.get_device_capability(device) >= (8, 0)
        return "bfloat16" if capable else "float16"
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & _cpu_flags() else "float32"


def _cpu_flags() -> set[str]:
    """Instruction sets of this CPU, where Linux tells them; else none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    for line in text.splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def _keep_freed_memory() -> None:
    """Tell glibc to keep what is freed: a training step asks for the same memory again.

    Otherwise large blocks go back to the kernel after each step, and a third of the CPU time of
    the next one is spent zeroing their pages. What an earlier run of this process has left goes
    back: worker processes would share it, and have it copied. Does nothing where the C library is
    another.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.malloc_trim(0)
    mallopt = library.mallopt
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, NEVER_TRIM)
    mallopt(M_ARENA_MAX, 1)
