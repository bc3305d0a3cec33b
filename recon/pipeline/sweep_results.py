"""What a sweep leaves behind, written anew after every trial."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from optuna.study import Study
from optuna.trial import FrozenTrial

from recon.analysis.sweep import CONTINUES, ERROR, FOLDER, LOG, Dimension, importances, values_of
from recon.evaluation.sweep_figures import (
    Scale,
    plot_importances,
    plot_loss_curves,
    plot_parallel,
)
from recon.evaluation.sweep_table import TrialRow, write_trials
from recon.files import replacing

__all__ = ["BEST", "IMPORTANCE", "Results"]

BEST = "best_settings.py"
IMPORTANCE = "importance.png"
LOCK = ".results.lock"
STATES = {"FAIL": "failed"}  # others by Optuna's own word


@dataclass(frozen=True)
class Results:
    """Writes tables, pictures and the best settings.

    Args:
        study: Of the sweep.
        dimensions: What is swept.
        folder: Of the sweep.
        run: Names and values of the sheet "Run".
        others: Settings that were asked for and are the same in all trials.
    """

    study: Study
    dimensions: Mapping[str, Dimension]
    folder: Path
    run: Mapping[str, str]
    others: Mapping[str, object]

    def rows(self) -> list[TrialRow]:
        """Every trial, in the order of their numbers."""
        trials = self.study.get_trials(deepcopy=False)
        followers = {t.user_attrs[CONTINUES]: t.number for t in trials if CONTINUES in t.user_attrs}
        return [self._row(trial, followers.get(trial.number)) for trial in trials]

    def write(self) -> TrialRow | None:
        """Write everything; return the best trial, if any is completed."""
        # Processes on one machine share the folder.
        with FileLock(self.folder / LOCK):
            rows = self.rows()
            completed = [row for row in rows if row.state == "complete"]
            best = min(completed, key=_loss, default=None)
            write_trials(self.folder / "trials.xlsx", rows, list(self.dimensions), self.run)
            if best is not None:
                self._draw_curves(completed)
                self._draw_parallel(completed)
                self._draw_importances()
                self._write_best(best)
        return best

    def _row(self, trial: FrozenTrial, follower: int | None) -> TrialRow:
        noted = trial.user_attrs
        losses, seconds = noted.get(LOG, ([], None))
        note = noted.get(ERROR, "")
        if CONTINUES in noted:
            note = f"goes on with trial {noted[CONTINUES]}; {note}".removesuffix("; ")
        if follower is not None:
            note = f"was ended; trial {follower} goes on with it"
        state = STATES.get(trial.state.name, trial.state.name.lower())
        return TrialRow(
            trial.number,
            state if follower is None else "ended",
            min(losses, default=None),
            losses.index(min(losses)) + 1 if losses else None,
            values_of(trial.params, self.dimensions),
            seconds,
            str(self.folder / noted[FOLDER]) if FOLDER in noted else "",
            note,
        )

    def _draw_curves(self, rows: list[TrialRow]) -> None:
        trials = self.study.get_trials(deepcopy=False)
        curves = {
            f"trial {row.number}": trials[row.number].user_attrs[LOG][0]
            for row in sorted(rows, key=_loss)
        }
        plot_loss_curves(curves, self.folder / "loss_curves.png")

    def _draw_parallel(self, rows: list[TrialRow]) -> None:
        scales = [
            Scale(
                name,
                [row.parameters[name] for row in rows],
                _sorted(dimension.choices) or None,
                getattr(dimension.distribution, "log", False),
            )
            for name, dimension in self.dimensions.items()
        ]
        path = self.folder / "parallel_coordinates.png"
        plot_parallel(scales, [_loss(row) for row in rows], path)

    def _draw_importances(self) -> None:
        shares = importances(self.study)
        if shares:
            plot_importances(shares, self.folder / IMPORTANCE)

    def _write_best(self, best: TrialRow) -> None:
        lines = [
            f"# Trial {best.number}: validation loss {best.loss!r} after epoch {best.best_epoch}"
        ]
        values = {**best.parameters, **self.others}
        lines += [f"{name} = {value!r}" for name, value in values.items()]
        with replacing(self.folder / BEST) as partial:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _loss(row: TrialRow) -> float:
    return float("inf") if row.loss is None else row.loss


def _sorted(choices: tuple[object, ...]) -> list[object]:
    """Numbers by size; all else as it was given."""
    numbers = [choice for choice in choices if type(choice) in (int, float)]
    return sorted(numbers) if len(numbers) == len(choices) else list(choices)  # type: ignore[type-var]
