"""What a run survives: hard trials with fixed seeds, as one markdown table.

    python -m benchmarks.reliability
    python -m benchmarks.reliability --only kills images --quick

Runs are killed, interrupted and resumed; images and model files are damaged; every step of
writing fails; runs are repeated. Exit code 1 if anything goes wrong.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.reliability_ends import kills, signals
from benchmarks.reliability_images import images
from benchmarks.reliability_models import models
from benchmarks.reliability_runs import Result
from benchmarks.reliability_steady import determinism, flatness
from benchmarks.reliability_writes import writes

__all__ = ["TRIALS", "Trial", "main"]

SHOWN = 20  # failures of a trial that are listed


class Trial(NamedTuple):
    """A trial in a folder of its own, and its size: of the real thing, and of a quick look."""

    run: Callable[[Path, int], Result]
    full: int
    quick: int


TRIALS = {
    "kills": Trial(kills, 100, 3),
    "signals": Trial(signals, 20, 2),
    "images": Trial(images, 2700, 60),
    "models": Trial(models, 400, 130),
    "writes": Trial(writes, 1, 12),
    "flatness": Trial(flatness, 300, 20),
    "determinism": Trial(determinism, 26, 1),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trials and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr, unused-ignore]
    parser.add_argument("--only", nargs="+", choices=TRIALS, default=list(TRIALS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="small trials, in a minute")
    args = parser.parse_args(argv)
    failures: list[str] = []
    sys.stdout.write("| what | figure | seconds |\n| --- | --- | --- |\n")
    for name in args.only:
        trial, started = TRIALS[name], time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            result = trial.run(Path(scratch), trial.quick if args.quick else trial.full)
        verdict = f"**{len(result.failures)} failures**: " if result.failures else ""
        seconds = time.monotonic() - started
        sys.stdout.write(f"| {result.what} | {verdict}{result.figure} | {seconds:.0f} |\n")
        sys.stdout.flush()
        failures += [f"{name}: {failure}" for failure in result.failures[:SHOWN]]
    if failures:
        sys.stderr.write("\n".join(failures) + "\n")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
