"""Scores a table of detected lesions against BCS-DBT's tables by FROC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ahnet_tf.evaluation.bootstrap import bootstrap_intervals
from ahnet_tf.evaluation.froc import (
    Counts,
    ScoredVolume,
    count,
    curve,
    froc_scores,
    match_volume,
    score_names,
)
from preprocessing.datasets.bcs_dbt import Tables, VolumeKey, dbt_case_id, read_tables
from preprocessing.datasets.detection_table import Detection, read_detections
from preprocessing.errors import InputError, SettingsError
from preprocessing.volumes.lesions import LesionBox


@dataclass(frozen=True)
class MatchedTables:
    """Volumes of the reference tables with their detections.

    Attributes:
      volumes: by row of the tables.
      detections: of each volume, in the order of its `hits`.
      boxes: of each volume.
      tables: the reference tables themselves.
      problems: a line for every row that can't be scored; names no patient.
    """

    volumes: dict[VolumeKey, ScoredVolume]
    detections: dict[VolumeKey, list[Detection]]
    boxes: dict[VolumeKey, list[LesionBox]]
    tables: Tables
    problems: list[str]


def match_tables(inputs: Sequence[Path], references: Sequence[Path]) -> MatchedTables:
    """Matches detections with reference boxes, volume by volume.

    The volumes are those of the labels table and those with a box; a volume without detections is one
    where nothing was found. Without a labels table every volume that has detections counts as well.

    Args:
      inputs: one table of detections (`preprocessing.datasets.detection_table`).
      references: the folder of BCS-DBT's tables, or the tables themselves (boxes, labels).

    Raises:
      InputError: a table is missing or unreadable, or there are no volumes.
      SettingsError: several tables of detections, or several folders.
    """
    if len(inputs) != 1:
        raise SettingsError("--input", "one table of detections", len(inputs))
    detections, places = read_detections(inputs[0])
    tables = _reference_tables(references)
    keys = list(tables.rows)
    if tables.has_labels:
        keys = [key for key, row in tables.rows.items() if row.outcomes is not None or row.boxes]
        # A table of paths may name volumes of which nothing is known.
    else:
        keys += [key for key in detections if key not in tables.rows]
    problems, volumes, boxes = [], {}, {}
    for key in keys:
        row = tables.rows.get(key)
        if row is not None and row.problem:
            problems.append(row.problem)
        else:
            boxes[key] = row.boxes if row is not None else []
            volumes[key] = match_volume(detections.get(key, []), boxes[key])
    known = set(keys)
    problems += [
        f"{where}: expected a volume of the reference tables, found none with this row's names"
        for key, where in places.items()
        if key not in known
    ]
    if not volumes and not problems:
        raise InputError(tables.folder, "volumes in the reference tables", "none")
    own = {key: detections.get(key, []) for key in volumes}
    return MatchedTables(volumes, own, boxes, tables, problems)


def volume_rows(volumes: dict[VolumeKey, ScoredVolume]) -> dict[str, dict[str, int]]:
    """Returns a row of counts for each volume, by case id: the lines of `scores.csv`."""
    rows = {}
    for key, volume in volumes.items():
        hit = len(np.unique(volume.hits[volume.hits >= 0]))
        missed = int(np.count_nonzero(volume.hits < 0))
        rows[dbt_case_id(*key)] = {
            "boxes": volume.boxes,
            "boxes_hit": hit,
            "detections": len(volume.hits),
            "false_positives": missed,
            "further_hits": len(volume.hits) - missed - hit,
        }
    return rows


def summarise_detections(
    volumes: dict[VolumeKey, ScoredVolume], seed: int
) -> dict[str, dict[str, float]]:
    """Returns the FROC scores as {"value", "low", "high"}, with intervals by bootstrap over patients.

    The volumes of one patient are views of the same breasts, so they are drawn together.
    """
    counts = count(list(volumes.values()))
    patients, patient_of_volume = np.unique([key[0] for key in volumes], return_inverse=True)
    with_boxes = len(np.unique(patient_of_volume[counts.boxes > 0]))
    names = score_names()
    intervals = bootstrap_intervals(
        lambda weights: froc_scores(counts, weights[:, patient_of_volume]),
        np.full(len(names), with_boxes),
        len(patients),
        seed,
    )
    return {
        name: {"value": float(value), "low": float(low), "high": float(high)}
        for name, value, (low, high) in zip(names, froc_scores(counts)[0], intervals, strict=True)
    }


def froc_curves(volumes: dict[VolumeKey, ScoredVolume]) -> dict[str, dict[str, list[float]]]:
    """Returns the points of the curves of the volumes with boxes and of all volumes."""
    groups = {
        "volumes_with_boxes": [volume for volume in volumes.values() if volume.boxes],
        "all_volumes": list(volumes.values()),
    }
    return {name: _points(count(group)) for name, group in groups.items()}


def _points(counts: Counts) -> dict[str, list[float]]:
    false_positives, found = curve(counts)
    return {"false_positives_per_volume": false_positives.tolist(), "sensitivity": found.tolist()}


def _reference_tables(references: Sequence[Path]) -> Tables:
    for path in references:
        if not path.exists():
            raise InputError(path, "BCS-DBT's tables or their folder", "nothing there")
    folders = {path if path.is_dir() else path.parent for path in references}
    if len(folders) != 1:
        raise SettingsError("--reference", "tables of one folder", f"{len(folders)} folders")
    (folder,) = folders
    is_folder = references[0].is_dir()
    tables = read_tables(folder, None if is_folder else references)
    if tables is None:
        place = folder if is_folder else references[0]
        raise InputError(place, "a table of boxes whose name says so (boxes.csv)", "none")
    return tables
