"""Segments one volume: sliding window, post-processing and lesions, on the volume's own grid."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import attrs
import numpy as np
from tqdm import tqdm

from ahnet_tf.inference.lesion_nms import DetectionSettings, detect_lesions
from ahnet_tf.inference.postprocessing import (
    check_has_lesions,
    keep_largest_component,
    keep_lesions_in_organ,
    remove_small_lesions,
)
from ahnet_tf.inference.predictor import Predictor
from ahnet_tf.inference.sliding_window import check_overlap, most_probable, predict_slabs
from preprocessing.datasets.detection_table import Detection
from preprocessing.settings import Requirement, number, whole
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import (
    TargetGrid,
    Volume,
    check_size,
    from_target_grid,
    spacing_mm,
    to_target_grid,
)


@attrs.frozen
class PredictionSettings:
    """How the windows cover a volume, and the steps of post-processing, in their order."""

    # Share of a window covered by its neighbour along each axis, from 0 to below 1.
    overlap: float = attrs.field(default=0.25, validator=lambda *given: check_overlap(given[2]))
    batch_size: int = attrs.field(default=1, validator=whole(1))  # windows per call of the network
    largest_component: bool = False  # keep only the largest connected foreground region
    lesions_in_organ: bool = False  # keep only lesions that touch the organ
    # Remove smaller lesions; 0 keeps all.
    smallest_lesion_mm3: float = attrs.field(default=0.0, validator=number(0))
    probabilities: bool = False  # also return a probability map of each class
    # Which peaks become lesions where the task's target is a heat map.
    detection: DetectionSettings = attrs.field(
        factory=DetectionSettings,
        validator=Requirement("a DetectionSettings", lambda v: isinstance(v, DetectionSettings)),
    )


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A segmented volume, in the axis order of its file."""

    labels: np.ndarray  # label values uint8 [x, y, z]
    # A float32 map [x, y, z] of each class, not post-processed; empty unless requested.
    probabilities: tuple[np.ndarray, ...] = ()
    # Detected in the heat map, if the task's target is one; the highest score first.
    lesions: tuple[Detection, ...] = ()


def segment_volume(
    volume: Volume,
    predictor: Predictor,
    settings: PredictionSettings | None = None,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> Segmentation:
    """Segments a volume by overlapping windows.

    If the task resamples, probabilities are resampled to the volume's grid (linearly) before the
    most probable class is chosen, which gives smoother borders than resampled labels.

    The volume has raw intensities [x, y, z] as on disk; `progress` is as in `predict_slabs`. Raises
    ModelError if the output does not fit the task, SettingsError if a setting does not, and InputError
    as `to_target_grid`.
    """
    settings = settings or PredictionSettings()
    task = predictor.settings.task
    classes = len(task.class_names)
    check_postprocessing(settings, task)
    array, space = to_target_grid(volume, task)
    # Otherwise the task's grid is the input's, reoriented.
    resampled = tuple(space.input_shape[axis] for axis in space.axes[::-1]) != space.shape_zyx
    # Maps of the whole volume are kept only where something needs them.
    kept = range(1, 2) if task.target == "heat_map" else range(0)
    if resampled or settings.probabilities:
        kept = range(classes)
    if kept:
        check_size(array.shape, array.itemsize + 1 + 4 * len(kept))
    labels = np.empty(array.shape, np.uint8)
    maps = {value: np.empty(array.shape, np.float32) for value in kept}
    slabs = predict_slabs(
        array,
        predictor.predict,
        predictor.settings.window_shape_zyx,
        classes,
        overlap=settings.overlap,
        batch_size=settings.batch_size,
        outside_value=task.outside_value,
        in_flight=predictor.in_flight,
        progress=progress,
    )
    for z, probabilities in slabs:
        rows = slice(z, z + len(probabilities))
        labels[rows] = most_probable(probabilities)
        for value, one in maps.items():
            one[rows] = probabilities[..., value]
    if resampled:
        voxels = _most_probable_on_input_grid(list(maps.values()), space)
    else:
        voxels = from_target_grid(labels, space)
    voxel_mm = spacing_mm(volume.affine)
    voxels = _postprocessed(voxels, settings, classes, float(np.prod(voxel_mm)))
    lesions: Sequence[Detection] = ()
    if task.target == "heat_map":
        heat_map = from_target_grid(maps[1], space, label=False)
        lesions = detect_lesions(heat_map, voxel_mm, settings.detection)
    returned = maps.values() if settings.probabilities else ()
    on_input_grid = (from_target_grid(one, space, label=False) for one in returned)
    return Segmentation(voxels, tuple(on_input_grid), tuple(lesions))


def check_postprocessing(settings: PredictionSettings, task: Task) -> None:
    """Raises SettingsError if a step of post-processing does not fit the classes of a task."""
    check_has_lesions(
        task,
        lesions_in_organ=settings.lesions_in_organ,
        smallest_mm3=settings.smallest_lesion_mm3,
    )


@contextlib.contextmanager
def window_progress(title: str, shown: bool = True) -> Iterator[Callable[[int, int], object]]:
    """Yields the `progress` of `segment_volume` that moves a progress bar of windows."""
    with tqdm(desc=title, unit="window", leave=False, disable=not shown) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        yield advance


def _postprocessed(
    labels: np.ndarray, settings: PredictionSettings, classes: int, voxel_mm3: float
) -> np.ndarray:
    if settings.largest_component:
        labels = keep_largest_component(labels)
    if settings.lesions_in_organ:
        labels = keep_lesions_in_organ(labels)
    if settings.smallest_lesion_mm3 > 0:
        labels = remove_small_lesions(labels, classes, voxel_mm3, settings.smallest_lesion_mm3)
    return labels


def _most_probable_on_input_grid(maps: Sequence[np.ndarray], space: TargetGrid) -> np.ndarray:
    """Returns labels on the input's grid; holds at most two maps of its resolution."""
    best = from_target_grid(maps[0], space, label=False)
    labels = np.zeros(best.shape, np.uint8)
    for value, one in enumerate(maps[1:], start=1):
        probability = from_target_grid(one, space, label=False)
        better = probability > best
        labels[better] = value
        np.maximum(best, probability, out=best)
    return labels
