"""Scores as people get them: a printed summary, `scores.csv` with a row a case, `scores.json`."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preprocessing.files import replacing, without_nan, write_json


def print_summary(heading: str, summary: Mapping[str, Mapping[str, float | int]]) -> None:
    """Prints each measure with its interval and how many values were undefined."""
    print(f"\n{heading}")
    width = max(map(len, summary))
    for name, entry in summary.items():
        line = f"  {name:<{width}}{entry['value']:>12.6f}"
        if not math.isnan(entry["low"]):
            line += f"  [{entry['low']:.6f}, {entry['high']:.6f}]"
        if entry.get("undefined"):
            line += f"  ({entry['undefined']} undefined)"
        print(line)


def write_scores(
    folder: Path, record: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]
) -> None:
    """Writes `scores.json` with null for NaN, which JSON doesn't know, and `scores.csv`.

    Args:
      folder: where they go; made if need be.
      record: all of `scores.json`.
      rows: the columns of `scores.csv` by case.
    """
    write_json(folder / "scores.json", without_nan(record))
    columns = list(next(iter(rows.values()), {}))
    with (
        replacing(folder / "scores.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["case_id", *columns])
        for case_id, row in rows.items():
            writer.writerow([case_id, *(row[column] for column in columns)])
