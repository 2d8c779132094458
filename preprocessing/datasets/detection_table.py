"""Reads and writes tables of detected lesions in the prediction columns of BCS-DBT."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from preprocessing.datasets.bcs_dbt import VOLUME_COLUMNS, VolumeKey, read_rows, volume_key
from preprocessing.errors import InputError
from preprocessing.files import write_csv

_BOX_COLUMNS = ("Score", "Z", "X", "Y", "Depth", "Width", "Height")
DETECTION_COLUMNS = (*VOLUME_COLUMNS, *_BOX_COLUMNS)


@dataclass(frozen=True)
class Detection:
    """A box around a detected lesion, in voxels of the volume in file order."""

    score: float  # confidence; higher is more certain
    x: float  # first column (file axis 0)
    y: float  # first row (file axis 1)
    z: float  # first slice (file axis 2)
    width: float  # columns
    height: float  # rows
    depth: float  # slices


def read_detections(path: Path) -> tuple[dict[VolumeKey, list[Detection]], dict[VolumeKey, str]]:
    """Reads a table of detected lesions.

    Returns the detections of each volume, in the table's order, and the location of its first row,
    for messages: "predictions.csv, row 2". Raises InputError, with file and row but no patient,
    unless it is CSV with all columns, finite numbers and sizes of at least 0.
    """
    detections: dict[VolumeKey, list[Detection]] = defaultdict(list)
    places: dict[VolumeKey, str] = {}
    for where, line in read_rows(path, DETECTION_COLUMNS):
        key = volume_key(line, where)
        numbers = {column.lower(): _number(line, column, where) for column in _BOX_COLUMNS}
        for size in ("Depth", "Width", "Height"):
            if numbers[size.lower()] < 0:
                raise InputError(where, f"a {size} of at least 0", line[size])
        detections[key].append(Detection(**numbers))
        places.setdefault(key, where)
    return dict(detections), places


def write_detections(path: Path, rows: Iterable[tuple[VolumeKey, Detection]]) -> None:
    """Writes a table of detected lesions, each with its volume, atomically."""
    lines: list[dict[str, object]] = []
    for volume, found in rows:
        box = (found.z, found.x, found.y, found.depth, found.width, found.height)
        values = (*volume, f"{found.score:.6g}", *box)
        lines.append(dict(zip(DETECTION_COLUMNS, values, strict=True)))
    write_csv(path, DETECTION_COLUMNS, lines)


def _number(line: dict[str, str], column: str, where: str) -> float:
    try:
        number = float(line[column])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(where, f"a finite number in {column}", repr(line[column]))
    return number
