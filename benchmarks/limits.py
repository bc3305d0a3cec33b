"""What a machine could do at best: matrix products and copies, and what a step asks of it."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["copy_rate", "flops_of", "matrix_rate", "median_seconds"]


def median_seconds(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median duration of some work, repeated for about so many seconds, after two warm-ups."""
    for _ in range(2):
        work()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, device, 2)


def copy_rate(device: torch.device) -> float:
    """Bytes read and written per second by a large copy."""
    source = torch.empty(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source), device, 1)


def flops_of(model: nn.Module, images: Tensor, *, backward: bool) -> float:
    """Floating-point operations for each image, counted operator by operator."""
    with FlopCounterMode(display=False) as counter:
        output = model(images)
        if backward:
            output.sum().backward()
    return counter.get_total_flops() / len(images)
