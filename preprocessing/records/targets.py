"""From a case's annotation to what its voxels teach: a label map, and a heat map where the task asks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocessing.datasets.case import Case, redact_case_path
from preprocessing.datasets.reading import read_case_label
from preprocessing.errors import InputError
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import TargetGrid, Volume, to_target_grid
from preprocessing.volumes.lesions import LESION_THRESHOLD, box_heat_map, mask_heat_map
from preprocessing.volumes.nifti import check_pair


@dataclass(frozen=True, eq=False)
class Target:
    """What is learned from a case, on its task's grid.

    Attributes:
      label_zyx: label values, uint8 [z, y, x]; with a heat map 1 where that is at least 1/2.
      heat_map_zyx: uint8 [z, y, x], 255 being 1; None where the task's target is labels.
      facts: what it comes from, for the manifest.
    """

    label_zyx: np.ndarray
    heat_map_zyx: np.ndarray | None
    facts: dict[str, str | int]


def read_target(
    case: Case, image: Volume, space: TargetGrid, task: Task, *, allow: Collection[str] = ()
) -> Target:
    """Returns the target of a case.

    A heat map comes from the case's boxes if it has any table of boxes, and else from its mask.
    Labels come from label maps alone: a box says where a lesion is and not which voxels it has.

    Args:
      case: its boxes or its label map.
      image: the volume as it was read.
      space: the grid that the image was taken to.
      task: classes and target.
      allow: names of `preprocessing.allowances.ALLOWANCES`.

    Raises:
      InputError: the annotation is missing, damaged, or doesn't fit the image.
    """
    if task.target == "heat_map" and case.boxes is not None:
        heat_map = box_heat_map(case.boxes, space)
        labels = np.greater_equal(heat_map, LESION_THRESHOLD).view(np.uint8)
        return Target(labels, heat_map, {"boxes": len(case.boxes)})
    if case.label_path is None:
        found = "none" if case.boxes is None else "boxes alone"
        where = redact_case_path(case, case.image_path)
        raise InputError(where, f"a label map for the task {task.name}", found)
    label = read_case_label(case, task, shape=image.voxels.shape, allow=allow)
    check_pair(image, label, redact_case_path(case, case.label_path))
    label_zyx, _ = to_target_grid(label, task, label=True)
    facts = {"label": Path(redact_case_path(case, case.label_path)).name}
    if task.target == "labels":
        return Target(label_zyx, None, facts)
    return Target(label_zyx, mask_heat_map(label_zyx, space.spacing_mm), facts)
