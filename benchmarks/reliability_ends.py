"""Runs that are ended from outside, at any moment, and resumed."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.reliability_runs import (
    LAST,
    Result,
    await_text,
    command,
    flags_for,
    fork,
    one_line,
    orphans,
    outcome,
    wait,
    write_images,
)

__all__ = ["kills", "signals"]

WORKERS = (0, 2)
STARTED = "starting anew"  # what a run says before its first step
TWICE = 4  # every so many runs are ended a second time


class Whole(NamedTuple):
    """The run in one go."""

    images: Path
    outcome: dict[str, Any]
    seconds: dict[int, float]  # of the whole run, by workers
    fitting: dict[int, float]  # of its training alone


MOST_TRIES = 8  # for a signal to arrive within the epochs


def kills(scratch: Path, count: int) -> Result:
    """SIGKILL at moments spread over the whole run, then `--resume auto`."""
    whole = _in_one_go(scratch)
    moments = _moments(count)
    alike, stages, failures = 0, Counter[str](), []
    sessions: set[int] = set()
    for number, workers in zip(range(count), cycle(WORKERS), strict=False):
        out = scratch / f"kill{number}"
        ends = 2 if number % TWICE == 0 else 1
        for again in range(ends):
            stages[
                _kill(whole, out, workers, moments, sessions, group=number % 3 == 0)
            ] += not again
        code = _resume(whole, out, workers)
        told = _difference(whole, out, code)
        alike += not told
        failures += [f"run {number}, {workers} workers: {told}"] if told else []
    left = orphans(sessions)
    failures += [f"processes left behind: {left}"] if left else []
    where = ", ".join(f"{n} {stage}" for stage, n in sorted(stages.items()))
    figure = f"{alike} of {count} end alike bit for bit; killed {where}; {len(left)} orphans"
    return Result("SIGKILL, then resume", figure, failures)


def _in_one_go(scratch: Path) -> Whole:
    images = write_images(scratch / "images", 18)
    seconds, fitting, outcomes = {}, {}, []
    wait(fork(scratch / "first.log", int))  # The server has to start once.
    for workers in WORKERS:
        out = scratch / f"whole{workers}"
        log = scratch / f"whole{workers}.log"
        started = time.monotonic()
        process = fork(log, command, flags_for(images, out, num_workers=workers, resume="auto"))
        await_text(log, STARTED, process)
        began = time.monotonic()
        if wait(process) != 0:
            raise RuntimeError(f"the run in one go fails: {log.with_suffix('.err').read_text()}")
        seconds[workers] = time.monotonic() - started
        fitting[workers] = time.monotonic() - began
        outcomes.append(outcome(out))
    if any(made != outcomes[0] for made in outcomes):
        raise RuntimeError("runs in one go differ from each other")
    return Whole(images, outcomes[0], seconds, fitting)


def _moments(count: int) -> Iterator[float]:
    """Parts of a duration in (0, 1), spread evenly, in random order, then purely random."""
    draw = np.random.default_rng(1)
    yield from draw.permutation((np.arange(count) + draw.random(count)) / count).tolist()
    while True:
        yield float(draw.random())


def _kill(
    whole: Whole,
    out: Path,
    workers: int,
    moments: Iterator[float],
    sessions: set[int],
    *,
    group: bool,
) -> str:
    """Kill a run, or a later one where it was too quick; returns the stage it was killed in."""
    while True:
        part = next(moments)
        flags = flags_for(whole.images, out, num_workers=workers, resume="auto")
        log = _begin_log(out)
        process = fork(log, command, flags)
        sessions.add(process.pid or 0)
        process.join(part * whole.seconds[workers])
        if process.is_alive():
            _send(process.pid or 0, signal.SIGKILL, group=group)
        if wait(process) == -signal.SIGKILL:
            return _stage(out, log)
        if process.exitcode != 0:
            return f"never: exit {process.exitcode}, {log.with_suffix('.err').read_text()!r}"
        _forget(out)


def _send(pid: int, signum: int, *, group: bool) -> None:
    try:
        (os.killpg if group else os.kill)(pid, signum)
    except ProcessLookupError:  # Not yet a leader, or gone.
        os.kill(pid, signum)


def _stage(out: Path, log: Path) -> str:
    if list(out.glob("**/*.partial")):
        return "while writing"
    said = log.read_text() if log.exists() else ""
    if STARTED not in said and "Resuming" not in said:
        return "at start-up"
    return "in the epochs" if (out / LAST).exists() else "in the first epoch"


def _begin_log(out: Path) -> Path:
    """The file for what a run says: of a run before it, nothing is left."""
    log = out.with_suffix(".log")
    for said in (log, log.with_suffix(".err")):
        said.unlink(missing_ok=True)
    return log


def _forget(out: Path) -> None:
    """Begin the run anew: it had ended before it was to be killed."""
    for path in sorted(out.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def _resume(whole: Whole, out: Path, workers: int) -> int | None:
    flags = flags_for(whole.images, out, num_workers=workers, resume="auto")
    return wait(fork(out.with_suffix(".resume"), command, flags))


def _difference(whole: Whole, out: Path, code: int | None) -> str:
    """What distinguishes a run from the one in one go; "" if nothing does."""
    if code != 0:
        log = out.with_suffix(".err")
        return f"resume ends with {code}: {log.read_text().strip()[-300:]}"
    made = outcome(out)
    parts = [name for name in made if made[name] != whole.outcome[name]]
    left = [path.name for path in out.rglob("*.partial")]
    return ", ".join(parts + left)


def signals(scratch: Path, count: int) -> Result:
    """SIGTERM, SIGINT and SIGHUP in the epochs: the run saves itself, says so, and is resumed."""
    whole = _in_one_go(scratch)
    moments, alike, failures = _moments(count), 0, []
    for number in range(count):
        out = scratch / f"signal{number}"
        workers = WORKERS[number % 2]
        signum = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[number // 2 % 3]
        told = _interrupt(whole, out, workers, signum, moments, group=number % 3 == 0)
        told = told or _difference(whole, out, _resume(whole, out, workers))
        alike += not told
        failures += [f"run {number}, {signum.name}, {workers} workers: {told}"] if told else []
    figure = f"{alike} of {count} exit 143, 130 or 129, have saved, and end alike bit for bit"
    return Result("SIGTERM, SIGINT or SIGHUP, then resume", figure, failures)


def _interrupt(
    whole: Whole,
    out: Path,
    workers: int,
    signum: signal.Signals,
    moments: Iterator[float],
    *,
    group: bool,
) -> str:
    """Signal a run between its first step and its last one; returns what is wrong."""
    for _ in range(MOST_TRIES):
        log = _begin_log(out)
        flags = flags_for(whole.images, out, num_workers=workers, resume="auto")
        process = fork(log, command, flags)
        await_text(log, STARTED, process)
        process.join(0.02 + 0.8 * next(moments) * whole.fitting[workers])
        if process.is_alive():
            _send(process.pid or 0, signum, group=group)
        code = wait(process)
        early = code == 128 + signum and not (out / LAST).exists()
        if code != 0 and not early:
            break
        _forget(out)  # Over already, or not yet in the first step.
    else:
        return "never ended in an epoch, or nothing saved"
    if code != 128 + signum or not one_line(log):
        return f"exit {code}, {log.with_suffix('.err').read_text()!r}"
    return ""
