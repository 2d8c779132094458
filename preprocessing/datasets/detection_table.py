"""Reads and writes tables of detected lesions in the prediction columns of BCS-DBT."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from preprocessing.datasets.bcs_dbt import VOLUME_COLUMNS, VolumeKey, read_rows, volume_key
from preprocessing.errors import InputError
from preprocessing.files import atomic_write

_BOX_COLUMNS = ("Score", "Z", "X", "Y", "Depth", "Width", "Height")
DETECTION_COLUMNS = (*VOLUME_COLUMNS, *_BOX_COLUMNS)


@dataclass(frozen=True)
class Detection:
    """A box that a detector drew around a lesion, in voxels of the volume in file order.

    Attributes:
      score: confidence; higher is more certain.
      x: first column (file axis 0).
      y: first row (file axis 1).
      z: first slice (file axis 2).
      width: number of columns.
      height: number of rows.
      depth: number of slices.
    """

    score: float
    x: float
    y: float
    z: float
    width: float
    height: float
    depth: float


def read_detections(path: Path) -> tuple[dict[VolumeKey, list[Detection]], dict[VolumeKey, str]]:
    """Reads a table of detected lesions.

    Returns the detections of each volume, in the order of the table, and the location of each
    volume's first row, for messages: "predictions.csv, row 2".

    Raises:
      InputError: not CSV, a missing column, a value that is not finite, or a negative size; names
        file and row, but not the patient.
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
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(DETECTION_COLUMNS)
        for volume, found in rows:
            box = (found.z, found.x, found.y, found.depth, found.width, found.height)
            writer.writerow((*volume, f"{found.score:.6g}", *box))


def _number(line: dict[str, str], column: str, where: str) -> float:
    try:
        number = float(line[column])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(where, f"a finite number in {column}", repr(line[column]))
    return number
