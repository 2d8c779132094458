"""What a page says beside its volumes: tables, charts and the frame around them, as plain data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocessing.page.colours import class_colour
from preprocessing.tasks import Task

# Windows that radiologists call by name, in HU.
CT_WINDOWS = {
    "Soft tissue": (-160.0, 240.0),
    "Liver": (-15.0, 135.0),
    "Lung": (-1350.0, 150.0),
    "Bone": (-400.0, 1400.0),
}


def page_content(
    task: Task,
    subtitle: str,
    cases: Sequence[Mapping[str, Any]],
    order: Sequence[int],
    *,
    tables: Sequence[Mapping[str, Any]] = (),
    charts: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns the content of a page.

    Args:
      task: gives class names and the intensity window.
      subtitle: one line below the title.
      cases: of each case `id` and `facts`, pairs of a name and a value shown above its volume.
      order: numbers of the cases in the order in which they are offered, the worst first.
      tables: see `table`.
      charts: see `box_plot`, `curves` and `scatter`.
      notes: sentences at the end.
    """
    is_ct = task.image_dtype == "int16"
    windows = {"Task's own": task.intensity_window} | (CT_WINDOWS if is_ct else {})
    return {
        "subtitle": subtitle,
        "task": {
            "name": task.name,
            "classes": list(task.class_names),
            "colours": ["", *(class_colour(value) for value in range(1, len(task.class_names)))],
            "window": list(task.intensity_window),
            "windows": [{"name": name, "range": list(each)} for name, each in windows.items()],
        },
        # Patients in CT are looked at from the front, breasts across their slices.
        "projection_axis": 1 if is_ct else 0,
        "projection_kind": "mean" if is_ct else "max",
        "cases": [dict(case) for case in cases],
        "order": list(order),
        "tables": list(tables),
        "charts": list(charts),
        "notes": list(notes),
    }


def table(
    title: str,
    columns: Sequence[Mapping[str, Any]],
    rows: Sequence[tuple[int | None, Sequence[Any]]],
    *,
    first: bool = False,
    note: str = "",
) -> dict[str, Any]:
    """Returns a table.

    Args:
      title: its heading.
      columns: see `column`.
      rows: each with the number of its case, or None, and a value a column; NaN is undefined.
      first: whether it stands above the charts.
      note: a sentence below the heading.
    """
    return {
        "id": "table-" + "-".join(title.lower().split()),
        "title": title,
        "note": note,
        "first": first,
        "columns": list(columns),
        "rows": [{"case": case, "cells": list(cells)} for case, cells in rows],
    }


def column(
    name: str, digits: int | None = None, *, help: str = "", wide: bool = False
) -> dict[str, Any]:
    """Returns a column: of texts, or of numbers with so many digits after the point."""
    return {"name": name, "digits": digits, "help": help, "wide": wide}


def axis(title: str, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    """Returns an axis of a chart; its range is that of the values unless it is given."""
    return {"title": title, "range": None if low is None else [low, high]}


def box_plot(
    title: str,
    y: Mapping[str, Any],
    groups: Mapping[str, Sequence[tuple[float, int]]],
    colours: Sequence[str],
    *,
    digits: int = 3,
) -> dict[str, Any]:
    """Returns a box plot: of each group the defined values, each with the number of its case."""
    return {
        "kind": "box",
        "title": title,
        "y": y,
        "digits": digits,
        "groups": [
            {"name": name, "values": [list(pair) for pair in values], "colour": colour}
            for (name, values), colour in zip(groups.items(), colours, strict=True)
        ],
    }


def curves(
    title: str,
    x: Mapping[str, Any],
    y: Mapping[str, Any],
    series: Mapping[str, Sequence[tuple[float, float]]],
    colours: Sequence[str],
    *,
    legend_low: bool = False,
    note: str = "",
) -> dict[str, Any]:
    """Returns a chart of lines through (x, y) points; the second and later ones are dashed."""
    return {
        "kind": "lines",
        "title": title,
        "x": x,
        "y": y,
        "note": note,
        "legend_low": legend_low,
        "series": [
            {
                "name": name,
                "points": [list(point) for point in points],
                "colour": colour,
                "dash": "7 4" if number else "",
            }
            for number, ((name, points), colour) in enumerate(
                zip(series.items(), colours, strict=True)
            )
        ],
    }


def scatter(
    title: str,
    x: Mapping[str, Any],
    y: Mapping[str, Any],
    points: Sequence[tuple[float, float, int]],
    colour: str,
    *,
    digits: int = 3,
    note: str = "",
) -> dict[str, Any]:
    """Returns a scatter plot of (x, y, number of the case) on equal axes, with their diagonal."""
    return {
        "kind": "scatter",
        "title": title,
        "x": x,
        "y": y,
        "points": [list(point) for point in points],
        "colour": colour,
        "digits": digits,
        "note": note,
    }


def without_folders(text: str, folders: Iterable[str | Path] = ()) -> str:
    """Returns a message in which files are named without their folders: a page may travel.

    Args:
      text: the message.
      folders: those that are known; needed where their names hold spaces.
    """
    for folder in sorted(map(str, folders), key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
    return re.sub(r"(?<![^\s'\"(])(?:~|\.{1,2})?/(?:[^\s'\"]*/)?(?=[^\s/])", "", text)
