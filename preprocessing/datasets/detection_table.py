"""Tables of detected lesions in the prediction columns of BCS-DBT: boxes with a depth and a score."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from preprocessing.datasets.bcs_dbt import VOLUME_COLUMNS, VolumeKey, read_rows
from preprocessing.errors import InputError
from preprocessing.files import atomic_write

DETECTION_COLUMNS = (*VOLUME_COLUMNS, "Score", "Z", "X", "Y", "Depth", "Width", "Height")


@dataclass(frozen=True)
class Detection:
    """A box that a detector drew around a lesion, in voxels of the volume as it is read.

    Attributes:
      score: the higher, the surer.
      x: first column (file axis 0).
      y: first row (file axis 1).
      z: first slice (file axis 2).
      width: columns.
      height: rows.
      depth: slices.
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

    Returns:
      The detections of each volume that the table names, in its order, and the row that names the
      volume first, for messages: "predictions.csv, row 2".

    Raises:
      InputError: no CSV, a column missing, or a value that is no finite number or no size; names
        file and row, and nothing of whose volume it is.
    """
    detections: dict[VolumeKey, list[Detection]] = defaultdict(list)
    places: dict[VolumeKey, str] = {}
    for where, line in read_rows(path, DETECTION_COLUMNS):
        empty = [column for column in VOLUME_COLUMNS if not line[column]]
        if empty:
            raise InputError(where, f"a {' and a '.join(VOLUME_COLUMNS)}", f"no {', '.join(empty)}")
        numbers = {
            column.lower(): _number(line, column, where)
            for column in DETECTION_COLUMNS[len(VOLUME_COLUMNS) :]
        }
        for size in ("Depth", "Width", "Height"):
            if numbers[size.lower()] < 0:
                raise InputError(where, f"a {size} of at least 0", line[size])
        key = (line["PatientID"], line["StudyUID"], line["View"].lower())
        detections[key].append(Detection(**numbers))
        places.setdefault(key, where)
    return dict(detections), places


def write_detections(path: Path, rows: Iterable[tuple[VolumeKey, Detection]]) -> None:
    """Writes a table of detected lesions; the file appears whole or not at all.

    Args:
      path: of the table.
      rows: each lesion with the PatientID, StudyUID and View of its volume.
    """
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
