"""Scores as people get them: a printed summary, `scores.csv` with a row a case, `scores.json`."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preprocessing.files import atomic_write, without_nan, write_json

# Columns of the printed table: heading, column of `scores.csv`, format.
TABLE = (
    ("liver Dice", "liver_dice", ".4f"),
    ("surface Dice", "liver_surface_dice", ".4f"),
    ("HD95 mm", "liver_hd95_mm", ".2f"),
    ("ASSD mm", "liver_assd_mm", ".2f"),
    ("tumour Dice", "lesion_dice_per_case", ".4f"),
    ("lesions", "reference_lesions", "d"),
    ("predicted", "predicted_lesions", "d"),
    ("IoU>0.5", "detected_iou_over_0.5", "d"),
    ("IoU>0", "detected_iou_over_0", "d"),
    ("burden error", "tumour_burden_error", "+.4f"),
)


def print_table(rows: Mapping[str, Mapping[str, float | int]]) -> None:
    """Prints a line a case; `rows` are the lines of `scores.csv` by case."""
    width = max(len("case"), *(len(case_id) for case_id in rows))
    print("  ".join(["case".ljust(width)] + [heading for heading, _, _ in TABLE]))
    for case_id, row in rows.items():
        cells = [
            format(row[column], layout).rjust(len(heading)) for heading, column, layout in TABLE
        ]
        print("  ".join([case_id.ljust(width), *cells]))


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
        atomic_write(folder / "scores.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["case_id", *columns])
        for case_id, row in rows.items():
            writer.writerow([case_id, *(row[column] for column in columns)])
