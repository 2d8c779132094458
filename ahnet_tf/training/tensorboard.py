"""The course of a training for TensorBoard: the history's rows as scalars, and pictures."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import tensorflow as tf

# Columns of the history and their names in TensorBoard, whose part before "/" makes a group.
_GROUPS = {
    "loss": "training/loss",
    "gradient_norm": "training/gradient_norm",
    "learning_rate": "training/learning_rate",
    "patches_per_second": "speed/patches_per_second",
    "voxels_per_second": "speed/voxels_per_second",
    "waiting_share": "speed/waiting_share",
    "loss_scale": "training/loss_scale",
    "skipped_steps": "training/skipped_steps",
}


class Summaries:
    """Writes event files; the scalars of rows that are already there are written anew.

    So a run that goes on after a kill shows each step once.

    Args:
      folder: for TensorBoard's `--logdir`; holds `scalars/` and `pictures/`.
      rows: the history so far.
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
            for name, value in row.items():
                if name.startswith("dice_"):
                    name = f"dice/{name.removeprefix('dice_')}"
                elif name in _GROUPS:
                    name = _GROUPS[name]
                else:
                    continue
                if not math.isnan(value):
                    tf.summary.scalar(name, value)
        self._scalars.flush()

    def picture(self, png: Path, name: str, step: int) -> None:
        """Adds a PNG file as it is at `step`."""
        with self._pictures.as_default(step=step):
            tf.summary.image(name, tf.io.decode_png(png.read_bytes(), channels=3)[None])
        self._pictures.flush()
