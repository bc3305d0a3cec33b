"""Rates as pure functions of the step: nothing to save, nothing to lose on resume."""

import math

__all__ = ["learning_rate", "rising"]


def learning_rate(
    step: int, steps: int, *, peak: float, schedule: str, warmup_fraction: float
) -> float:
    """Learning rate of a step.

    Args:
        step: From 0.
        steps: Of the whole run.
        peak: Largest learning rate.
        schedule: "cosine" to zero after the warm-up (arXiv:1608.03983, without restarts), or
            "constant".
        warmup_fraction: Part of the steps in which the rate rises linearly.
    """
    warmup = max(1, round(warmup_fraction * steps)) if warmup_fraction > 0 else 0
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    done = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def rising(step: int, steps: int, *, full: float, warmup: float) -> float:
    """A weight that rises linearly from 0 to its full value.

    Args:
        step: From 0.
        steps: Of the whole run.
        full: Weight after the warm-up.
        warmup: Part of the steps in which it rises; 0: full from the start.
    """
    return full if step >= warmup * steps else full * step / (warmup * steps)
