"""A case on its task's grid: image, label map, and heat map if the task asks for one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.datasets.case import Case, redact_case_path
from preprocessing.datasets.reading import read_case_label
from preprocessing.errors import InputError
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import TargetGrid, Volume, to_target_grid
from preprocessing.volumes.lesions import LESION_THRESHOLD, box_heat_map, mask_heat_map
from preprocessing.volumes.quality_checks import Finding, check_labels


@dataclass(frozen=True, eq=False)
class CaseVolume:
    """A case on its task's grid."""

    case_id: str
    source: str
    image_zyx: np.ndarray  # raw intensities [z, y, x] in the task's `image_dtype`
    label_zyx: np.ndarray  # uint8 [z, y, x]: label values, or 1 where a heat map is at least 1/2
    heat_map_zyx: np.ndarray | None  # uint8 [z, y, x], 255 for 1; None if the target is labels
    label_counts: np.ndarray  # voxels [slice, class] of the label map
    grid: TargetGrid  # where the voxels lie, and the way back to the file


def read_case_volume(
    case: Case, image: Volume, task: Task, *, allow: Collection[str] = ()
) -> tuple[CaseVolume, dict[str, Any], tuple[Finding, ...]]:
    """Reads and checks a case's annotation and takes it to the task's grid, with its image.

    A heat map is made from the case's boxes if its data set has a table of boxes, otherwise from its
    mask. Labels are read from label maps only: a box does not say which voxels belong to a lesion.

    Takes the image as read from the case's file. Returns the volume, facts for the manifest (the
    annotation and its voxels per class), and findings. Raises InputError if the annotation is
    missing, damaged, or does not match the image.
    """
    image_zyx, grid = to_target_grid(image, task)
    facts: dict[str, Any]
    heat_map = None
    if task.target == "heat_map" and case.boxes is not None:
        facts = {"boxes": len(case.boxes)}
        heat_map = box_heat_map(case.boxes, grid)
        label_zyx = np.greater_equal(heat_map, LESION_THRESHOLD).view(np.uint8)
    elif case.label_path is None:
        where = redact_case_path(case, case.image_path)
        found = "none" if case.boxes is None else "boxes alone"
        raise InputError(where, f"a label map for the task {task.name}", found)
    else:
        facts = {"label": Path(redact_case_path(case, case.label_path)).name}
        label = read_case_label(case, task, image, allow=allow)
        label_zyx, _ = to_target_grid(label, task, label=True)
        if task.target == "heat_map":
            heat_map = mask_heat_map(label_zyx, grid.spacing_mm)
    counts, findings = check_labels(image_zyx, label_zyx, task)
    facts["label_voxels"] = dict(zip(task.class_names, map(int, counts.sum(axis=0)), strict=True))
    volume = CaseVolume(case.case_id, case.source, image_zyx, label_zyx, heat_map, counts, grid)
    return volume, facts, findings
