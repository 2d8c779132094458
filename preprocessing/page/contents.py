"""Content of a page except its volumes, as data: tables, charts, notes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preprocessing.tasks import Task

# Okabe and Ito (2008): distinct with every kind of colour vision, and bright enough on black.
CLASS_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")

# Standard windows of radiology, in HU.
CT_WINDOWS = {
    "Soft tissue": (-160.0, 240.0),
    "Liver": (-15.0, 135.0),
    "Lung": (-1350.0, 150.0),
    "Bone": (-400.0, 1400.0),
}


def class_colour(value: int) -> str:
    """Returns the colour of a label value from 1 on, as `#RRGGBB`."""
    return CLASS_COLOURS[(value - 1) % len(CLASS_COLOURS)]


@dataclass(frozen=True)
class Column:
    """A column of texts, or of numbers if `digits` is given."""

    name: str
    digits: int | None = None  # after the decimal point
    help: str = ""  # tooltip of the header
    wide: bool = False  # whether the column is wide, for sentences


@dataclass(frozen=True)
class Table:
    """A table that sorts by its columns."""

    title: str
    columns: Sequence[Column]
    # The index of the row's case, or None, and a value per column; NaN is undefined.
    rows: Sequence[tuple[int | None, Sequence[Any]]]
    first: bool = False  # whether it stands above the charts
    note: str = ""  # a sentence below the heading


@dataclass(frozen=True)
class Axis:
    """An axis of a chart; without a range it spans the values."""

    title: str
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class BoxPlot:
    """A box plot of groups of (value, index of the case) without NaN, one colour per group."""

    title: str
    y: Axis
    groups: Mapping[str, Sequence[tuple[float, int]]]
    colours: Sequence[str]
    digits: int = 3
    kind: str = "box"


@dataclass(frozen=True)
class Curves:
    """Lines through (x, y) points, one colour per line; all but the first are dashed."""

    title: str
    x: Axis
    y: Axis
    series: Mapping[str, Sequence[tuple[float, float]]]
    colours: Sequence[str]
    legend_low: bool = False  # whether the legend is at the bottom
    note: str = ""
    kind: str = "lines"


@dataclass(frozen=True)
class Scatter:
    """A scatter plot of (x, y, index of the case) on equal axes with their diagonal."""

    title: str
    x: Axis
    y: Axis
    points: Sequence[tuple[float, float, int]]
    colour: str
    digits: int = 3
    note: str = ""
    kind: str = "scatter"


Chart = BoxPlot | Curves | Scatter


def page_content(
    task: Task,
    subtitle: str,
    cases: Sequence[Mapping[str, Any]],
    order: Sequence[int],
    *,
    tables: Sequence[Table] = (),
    charts: Sequence[Chart] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns the content of a page as JSON types.

    Each case has an `id` and `facts`, pairs of a name and a value shown above its volume. `order`
    has the indices of the cases as they are offered, the worst first; notes stand at the end.
    """
    is_ct = task.image_dtype == "int16"
    windows = {"Task's own": task.intensity_window} | (CT_WINDOWS if is_ct else {})
    return {
        "subtitle": subtitle,
        "task": {
            "name": task.name,
            "classes": task.class_names,
            "colours": ["", *(class_colour(value) for value in range(1, len(task.class_names)))],
            "window": task.intensity_window,
            "windows": windows,
        },
        # CT is projected from the front, tomosynthesis across its slices.
        "projection_axis": 1 if is_ct else 0,
        "projection_kind": "mean" if is_ct else "max",
        "cases": cases,
        "order": list(order),
        "tables": list(map(asdict, tables)),
        "charts": list(map(asdict, charts)),
        "notes": list(notes),
    }


def without_folders(text: str, folders: Iterable[str | Path] = ()) -> str:
    """Returns a message with file names instead of paths, because pages are passed on.

    Folders whose names hold spaces are only recognized if they are among `folders`.
    """
    for folder in sorted(map(str, folders), key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
    return re.sub(r"(?<![^\s'\"(])(?:~|\.{1,2})?/(?:[^\s'\"]*/)?(?=[^\s/])", "", text)
