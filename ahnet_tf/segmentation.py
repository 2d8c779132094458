"""From a volume to its label map: windows, blending, the way back to the volume's own grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ahnet_tf.predictors import Predictor
from ahnet_tf.windows import most_probable, plan_windows, predict_slabs
from preprocessing.volume import TaskSpace, Volume, from_task_space, to_task_space


@dataclass(frozen=True)
class PredictionSettings:
    """How windows are laid over a volume, and what becomes of the labels.

    Attributes:
      overlap: share of a window covered by its neighbour along each axis, from 0 to below 1.
      blend: "gaussian" or "constant" weights where windows overlap.
      batch_size: windows a call of the network.
      largest_component: keep only the largest connected foreground region; with CT that is the
        liver with the tumours in it. Off by default: what is written is the network's own answer.
      probabilities: return a probability map for each class too.
    """

    overlap: float = 0.25
    blend: str = "gaussian"
    batch_size: int = 1
    largest_component: bool = False
    probabilities: bool = False


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A segmented volume, in the order of the volume's file.

    Attributes:
      labels: label values uint8 [x, y, z].
      probabilities: a float32 map [x, y, z] for each class, background first; empty unless asked
        for. Post-processing changes labels alone.
    """

    labels: np.ndarray
    probabilities: tuple[np.ndarray, ...] = ()


def segment_volume(
    volume: Volume,
    predictor: Predictor,
    settings: PredictionSettings | None = None,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> Segmentation:
    """Segments a volume by overlapping windows.

    Where the task resamples, probabilities are brought back to the volume's grid (linearly) before
    the most probable class is taken, which leaves smoother borders than resampling labels.

    Args:
      volume: raw intensities [x, y, z] as on disk, and affine.
      predictor: the network, and the task it was trained for.
      settings: overlap, blending and so on; the defaults if None.
      progress: called after each batch with (windows just done, windows in all).

    Raises:
      ModelError: the network's answer doesn't fit its task.
    """
    settings = settings or PredictionSettings()
    task, window = predictor.settings.task, predictor.settings.window_shape_zyx
    array, space = to_task_space(volume, task)
    windows = plan_windows(array.shape, window, settings.overlap).count
    turned_shape = tuple(space.input_shape[axis] for axis in reversed(space.axes))
    resampled = turned_shape != space.shape_zyx
    labels = np.empty(array.shape, np.uint8)
    maps = None
    if resampled or settings.probabilities:
        maps = np.empty((len(task.class_names), *array.shape), np.float32)
    slabs = predict_slabs(
        array,
        predictor.predict,
        window,
        len(task.class_names),
        overlap=settings.overlap,
        blend=settings.blend,
        batch_size=settings.batch_size,
        outside_value=task.outside_value,
        progress=None if progress is None else lambda done: progress(done, windows),
    )
    for z, probabilities in slabs:
        rows = slice(z, z + len(probabilities))
        labels[rows] = most_probable(probabilities)
        if maps is not None:
            maps[:, rows] = np.moveaxis(probabilities, -1, 0)
    voxels = (
        _most_probable_on_input_grid(maps, space) if resampled else from_task_space(labels, space)
    )
    if settings.largest_component:
        voxels = keep_largest_component(voxels)
    if not settings.probabilities:
        return Segmentation(voxels)
    return Segmentation(voxels, tuple(from_task_space(one, space, label=False) for one in maps))


def keep_largest_component(labels: np.ndarray) -> np.ndarray:
    """Returns a label map without the foreground outside its largest 6-connected region.

    Args:
      labels: label values [any axes]; all values above 0 count as one foreground, so that tumours
        stay where they touch the largest organ region, and only there.
    """
    regions, count = ndimage.label(labels > 0)
    if count < 2:
        return labels
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    return np.where(regions == sizes.argmax(), labels, 0).astype(labels.dtype)


def _most_probable_on_input_grid(maps: np.ndarray, space: TaskSpace) -> np.ndarray:
    """Resamples one class at a time, so that two maps in the input's resolution are enough."""
    best = from_task_space(maps[0], space, label=False)
    labels = np.zeros(best.shape, np.uint8)
    for value, one in enumerate(maps[1:], start=1):
        probability = from_task_space(one, space, label=False)
        better = probability > best
        labels[better] = value
        np.maximum(best, probability, out=best)
    return labels
