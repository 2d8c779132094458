"""The course of a training, one row a logged step, in a CSV file that a killed run goes on with."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from preprocessing.files import atomic_write

COLUMNS = (
    "step",
    "seconds",
    "learning_rate",
    "loss",
    "gradient_norm",
    "patches_per_second",
    "voxels_per_second",
    "waiting_share",
    "loss_scale",
    "skipped_steps",
)


class History:
    """Appends rows to `history.csv`; an existing file is cut back to the step to go on from.

    Args:
      path: the file.
      dice_names: names with a column `dice_NAME` and `undefined_NAME` each; empty cells in rows
        of steps that were not evaluated.
      last_step: rows after this step are dropped, since they will be written again.
      begun_with: the file to go on from, if that is another one.

    Attributes:
      kept: the rows that were kept.
    """

    def __init__(
        self,
        path: Path,
        dice_names: Sequence[str],
        last_step: int,
        begun_with: Path | None = None,
    ):
        self._path = path
        self._columns = [*COLUMNS]
        self._columns += [f"{kind}_{name}" for name in dice_names for kind in ("dice", "undefined")]
        self.kept = [row for row in read_history(begun_with or path) if row["step"] <= last_step]
        with (
            atomic_write(path) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(
                {name: _text(row[name]) for name in self._columns} for row in self.kept
            )

    def add(self, row: Mapping[str, float]) -> None:
        """Appends one row."""
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writerow({name: _text(value) for name, value in row.items()})


def read_history(path: Path) -> list[dict[str, float]]:
    """Returns the rows of a history.csv as numbers, NaN for empty cells; none if there is no file.

    A last line that a killed run left unfinished is dropped.
    """
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        lines = file.read().split("\n")
    rows = csv.DictReader(lines[:-1])
    return [
        {name: float(value) if value else math.nan for name, value in row.items()} for row in rows
    ]


def _text(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"
