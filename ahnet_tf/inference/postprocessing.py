"""Post-processing of label maps: removes stray regions, lesions outside the organ, small lesions.

Of three classes, class 1 is the organ and class 2 its lesions; with two classes only, class 1 is the
lesion. Tasks of other classes have no lesions (`check_has_lesions`). Regions are 6-connected, as in
the LiTS scorer.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from preprocessing.datasets.label_names import is_organ_with_lesions
from preprocessing.errors import SettingsError
from preprocessing.tasks import Task

ORGAN = 1


def keep_largest_component(labels: np.ndarray) -> np.ndarray:
    """Returns a label map [any axes] with the largest 6-connected foreground region only.

    All values above 0 are one foreground, so tumours that touch the largest organ region are kept.
    """
    regions, count = ndimage.label(labels > 0)
    if count < 2:
        return labels
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    return np.where(regions == sizes.argmax(), labels, 0).astype(labels.dtype)


def keep_lesions_in_organ(labels: np.ndarray) -> np.ndarray:
    """Returns a label map [x, y, z] without the lesions that have no 6-neighbour in the organ."""
    regions, count = ndimage.label(labels > ORGAN)
    return _without(labels, regions, ~_touches(regions, count, labels == ORGAN), 0)


def remove_small_lesions(
    labels: np.ndarray, classes: int, voxel_mm3: float, smallest_mm3: float
) -> np.ndarray:
    """Returns a label map [x, y, z] without the lesions below the volume `smallest_mm3`.

    A removed lesion becomes organ if it touches the organ, which leaves no holes in it, and
    background otherwise. The number of classes includes the background.
    """
    organ = classes > 2
    regions, count = ndimage.label(labels > ORGAN if organ else labels > 0)
    # The small term allows for rounding: 10 voxels of 0.1 mm3 are not below 1 mm3.
    small = np.bincount(regions.ravel(), minlength=count + 1) * voxel_mm3 < smallest_mm3 - 1e-9
    if not organ:
        return _without(labels, regions, small, 0)
    touching = _touches(regions, count, labels == ORGAN)
    labels = _without(labels, regions, small & touching, ORGAN)
    return _without(labels, regions, small & ~touching, 0)


def check_has_lesions(task: Task, *, lesions_in_organ: bool, smallest_mm3: float) -> None:
    """Raises SettingsError if a step that is asked for would take a task's organs for lesions."""
    if is_organ_with_lesions(task):
        return
    expected, found = (
        "a task of an organ and its tumours",
        f"the classes {', '.join(task.class_names)}",
    )
    if lesions_in_organ:
        raise SettingsError("lesions_in_organ", expected, found)
    if smallest_mm3 > 0 and len(task.class_names) > 2:
        raise SettingsError("smallest_lesion_mm3", f"{expected}, or of two classes", found)


def _touches(regions: np.ndarray, count: int, organ: np.ndarray) -> np.ndarray:
    """Returns for each region number, 0 included, whether it has a 6-neighbour in the organ."""
    touching = np.zeros(count + 1, bool)
    touching[regions[ndimage.binary_dilation(organ)]] = True
    return touching


def _without(
    labels: np.ndarray, regions: np.ndarray, removed: np.ndarray, value: int
) -> np.ndarray:
    """Returns labels with `value` in the regions whose entry in `removed` is True."""
    removed = removed & (np.arange(len(removed)) > 0)
    if not removed.any():
        return labels
    return np.where(removed[regions], value, labels).astype(labels.dtype)
