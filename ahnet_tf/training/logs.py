"""Records of a training: history.csv, and the same numbers and pictures for TensorBoard."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tensorflow as tf

from ahnet_tf.training.detection_score import FROC
from ahnet_tf.training.validation import MEAN_DICE
from preprocessing.files import write_csv

# Columns of history.csv and their names in TensorBoard, where the part before "/" makes a group.
COLUMNS = {
    "step": "",
    "seconds": "",
    "learning_rate": "training/learning_rate",
    "loss": "training/loss",
    "gradient_norm": "training/gradient_norm",
    "patches_per_second": "speed/patches_per_second",
    "voxels_per_second": "speed/voxels_per_second",
    "waiting_share": "speed/waiting_share",
    "loss_scale": "training/loss_scale",
    "skipped_steps": "training/skipped_steps",
    MEAN_DICE: "dice/mean",
    FROC: "froc/mean_sensitivity",
}


class History:
    """Appends rows to `history.csv`, which begins with the rows `kept` of an earlier process.

    Those are the rows up to `last_step` of the file `resumed`, if that is another one; later ones
    will be written again. Each of `dice_names` has a column `dice_NAME` and `undefined_NAME`, empty
    for steps that were not evaluated.
    """

    def __init__(
        self, path: Path, dice_names: Sequence[str], last_step: int, resumed: Path | None = None
    ):
        self._path = path
        self._columns = [*COLUMNS]
        self._columns += [f"{kind}_{name}" for name in dice_names for kind in ("dice", "undefined")]
        self.kept = [row for row in read_history(resumed or path) if row["step"] <= last_step]
        lines = ({n: _text(row.get(n, math.nan)) for n in self._columns} for row in self.kept)
        write_csv(path, self._columns, lines)

    def add(self, row: Mapping[str, float]) -> None:
        """Appends one row."""
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, restval="", lineterminator="\n")
            writer.writerow({name: _text(value) for name, value in row.items()})


def read_history(path: Path) -> list[dict[str, float]]:
    """Returns the rows of a history.csv as numbers, NaN for empty cells; none if there is no file.

    An incomplete last line, which a killed run may leave, is dropped.
    """
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        lines = file.read().split("\n")
    return [
        {name: float(value) if value else math.nan for name, value in row.items()}
        for row in csv.DictReader(lines[:-1])
    ]


class Summaries:
    """TensorBoard's event files: history rows as scalars, and pictures.

    The scalars of earlier rows are written again, so that a resumed run shows each step once.
    """

    def __init__(self, folder: Path, rows: Iterable[Mapping[str, float]]):
        shutil.rmtree(folder / "scalars", ignore_errors=True)
        self._scalars = tf.summary.create_file_writer(str(folder / "scalars"))
        self._pictures = tf.summary.create_file_writer(str(folder / "pictures"))
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, float]) -> None:
        """Writes one row of the history; Dice as `dice/CLASS`."""
        with self._scalars.as_default(step=int(row["step"])):
            for column, value in row.items():
                name = COLUMNS.get(column, "")
                if column.startswith("dice_"):
                    name = f"dice/{column.removeprefix('dice_')}"
                if name and not math.isnan(value):
                    tf.summary.scalar(name, value)
        self._scalars.flush()

    def add_picture(self, png: Path, name: str, step: int) -> None:
        """Adds a PNG file."""
        with self._pictures.as_default(step=step):
            tf.summary.image(name, tf.io.decode_png(png.read_bytes(), channels=3)[None])
        self._pictures.flush()


def _text(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"
