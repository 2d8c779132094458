"""A training's course as a picture: loss, Dice, learning rate and throughput over the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from preprocessing.files import atomic_write
from preprocessing.page.colours import CLASS_COLOURS

SIZE_INCHES, DPI = (11.0, 7.0), 110
MAIN, SECOND = "#0072B2", "#D55E00"


def curves_png(path: str | Path, rows: Sequence[Mapping[str, float]], title: str) -> None:
    """Draws the rows of a history.csv as a PNG, which appears whole or not at all.

    Args:
      path: output.
      rows: see `ahnet_tf.training.history.read_history`; NaN where there is no value.
      title: headline of the picture.
    """
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
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
    axes.plot(
        *zip(*found, strict=True) if found else ([], []),
        color=colour,
        marker=marker,
        clip_on=not marker,
    )
