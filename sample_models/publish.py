r"""Store a trained model as a sample model: in half precision, with its record and its figures.

    python sample_models/publish.py FINAL_MODEL SAMPLE_MODEL --root DATA \
        --held_out "patient B=evaluation/patient_B.csv"

The record names folders relative to DATA, as another machine would have them. Figures are the means
over the rows of csv files that Evaluation_*.py wrote of the sample model itself, so the command
runs twice: before that evaluation, and after it with `--held_out`.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from recon.training.checkpoint import read_model_file, save_final

METRICS = ("MSE", "PSNR", "SSIM")


def relative(value: Any, root: Path) -> Any:
    """A record whose paths below a folder are relative to it."""
    if isinstance(value, Mapping):
        return {name: relative(entry, root) for name, entry in value.items()}
    if isinstance(value, str) and Path(value).is_absolute():
        path = Path(value)
        return str(path.relative_to(root)) if path.is_relative_to(root) else path.name
    return value


def figures(path: Path) -> dict[str, float]:
    """The means of an evaluation, and how many images it had."""
    rows = pd.read_csv(path)
    means = {name: round(float(rows[name].mean()), 6) for name in METRICS}
    return {"images": len(rows), **means}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the sample model and its record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("model", type=Path)
    parser.add_argument("sample", type=Path)
    parser.add_argument("--root", type=Path, required=True, help="folder of the data")
    parser.add_argument("--held_out", action="append", default=[], metavar="NAME=CSV")
    args = parser.parse_args(argv)
    weights, provenance = read_model_file(args.model)
    halves = {n: w.half() if w.is_floating_point() else w for n, w in weights.items()}
    evaluations = dict(entry.rsplit("=", 1) for entry in args.held_out)
    record = relative({n: v for n, v in provenance.items() if n != "weights_sha256"}, args.root)
    record["held_out"] = {name: figures(Path(path)) for name, path in evaluations.items()}
    save_final(args.sample, halves, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
