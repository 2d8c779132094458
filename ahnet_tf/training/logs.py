"""Records of a training: history.csv, the same numbers for TensorBoard, and curves as a picture."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tensorflow as tf
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from preprocessing.files import atomic_write
from preprocessing.page.contents import CLASS_COLOURS

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
}

MAIN, SECOND = "#0072B2", "#D55E00"


class History:
    """Appends rows to `history.csv`; an existing file is cut back to the step to resume from.

    Args:
      path: the file.
      dice_names: names with a column `dice_NAME` and `undefined_NAME` each; empty cells in rows
        of steps that were not evaluated.
      last_step: rows after this step are dropped, since they will be written again.
      resumed: the file to resume from, if that is another one.

    Attributes:
      kept: the rows that were kept.
    """

    def __init__(
        self, path: Path, dice_names: Sequence[str], last_step: int, resumed: Path | None = None
    ):
        self._path = path
        self._columns = [*COLUMNS]
        self._columns += [f"{kind}_{name}" for name in dice_names for kind in ("dice", "undefined")]
        self.kept = [row for row in read_history(resumed or path) if row["step"] <= last_step]
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

    The scalars of earlier rows are written anew, so that a resumed run shows each step once.

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


def curves_png(path: str | Path, rows: Sequence[Mapping[str, float]], title: str) -> None:
    """Draws loss, Dice, learning rate and throughput over the steps as a PNG.

    Args:
      path: output, written atomically.
      rows: see `read_history`.
      title: headline of the picture.
    """
    figure = Figure(figsize=(11.0, 7.0), dpi=110, layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(2, 2, sharex=True).ravel()
    _line(panels[0], rows, "loss", MAIN)
    panels[0].set(yscale="log", ylabel="loss")
    names = [name for name in rows[0] if name.startswith("dice_")]
    for name, colour in zip(names, CLASS_COLOURS, strict=False):
        _line(panels[1], rows, name, colour, marker="o")
    panels[1].set(ylim=(0, 1), ylabel="mean Dice per evaluation case")
    panels[1].legend([name.removeprefix("dice_") for name in names], loc="lower right")
    _line(panels[2], rows, "learning_rate", MAIN)
    panels[2].set(ylabel="learning rate", xlabel="step", ylim=(0, None))
    _line(panels[3], rows, "patches_per_second", MAIN)
    panels[3].set(xlabel="step", ylim=(0, None))
    panels[3].set_ylabel("patches a second", color=MAIN)
    waiting = panels[3].twinx()
    _line(waiting, rows, "waiting_share", SECOND)
    waiting.set(ylim=(0, 1))
    waiting.set_ylabel("share of time waiting for data", color=SECOND)
    for axes in panels:
        axes.grid(alpha=0.3)
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


def _line(
    axes: Axes, rows: Sequence[Mapping[str, float]], name: str, colour: str, marker: str = ""
) -> None:
    found = [(row["step"], row[name]) for row in rows if not math.isnan(row[name])]
    steps, values = zip(*found, strict=True) if found else ((), ())
    axes.plot(steps, values, color=colour, marker=marker, clip_on=not marker)


def _text(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"
