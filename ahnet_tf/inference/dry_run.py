"""What a prediction will take, before it is made: windows, time and memory of each case."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Collection, Sequence

import numpy as np
from tqdm import tqdm

from ahnet_tf.inference.predictor import Predictor
from ahnet_tf.inference.segment import PredictionSettings, is_resampled, kept_maps
from ahnet_tf.inference.sliding_window import plan_windows
from preprocessing.datasets.case import Case
from preprocessing.datasets.reading import read_case_image
from preprocessing.errors import InputError
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import TargetGrid, Volume, target_grid
from preprocessing.volumes.resampling import SLAB_VOXELS

_FLOAT = 4


def print_expectations(
    cases: Sequence[Case],
    predictor: Predictor,
    settings: PredictionSettings,
    allow: Collection[str] = (),
) -> int:
    """Prints the windows, time and memory to expect for each case; returns an exit code.

    Time is that of reading the volume, and of one batch on this machine times the number of batches; writing
    the label map comes on top, and once what the first batch takes longer, which sets the network up. Memory
    is what this process took at most for a batch, which is the network's own, and what a volume's
    arrays will take beside it.
    """
    seconds_of_first, seconds_a_batch = batch_seconds(predictor, settings.batch_size)
    set_up = max(0.0, seconds_of_first - seconds_a_batch)
    own_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"the network takes {set_up:.1f} s to set up, {seconds_a_batch:.2f} s a batch of windows, and "
        f"{own_mib:,.0f} MiB"
    )
    total, failed = set_up, 0
    for case in tqdm(cases, "looking at volumes", unit="case", leave=False):
        start = time.perf_counter()
        try:
            volume = read_case_image(case, allow=allow)
        except InputError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        task = predictor.settings.task
        space = target_grid(volume.voxels.shape, volume.affine, task)
        window = predictor.settings.window_shape_zyx
        windows = plan_windows(space.shape_zyx, window, settings.overlap).count
        seconds = time.perf_counter() - start
        seconds += math.ceil(windows / settings.batch_size) * seconds_a_batch
        total += seconds
        mib = own_mib + expected_bytes(volume, space, task, window, settings) / 2**20
        size = " x ".join(map(str, volume.voxels.shape))
        tqdm.write(
            f"{case.case_id}: {size} voxels, {windows} windows, {seconds:.1f} s, {mib:,.0f} MiB"
        )
    print(f"{len(cases) - failed} cases, {total:.1f} s in all; nothing was written")
    return 1 if failed else 0


def batch_seconds(predictor: Predictor, batch_size: int) -> tuple[float, float]:
    """Returns how long a network's first batch of windows takes, and any other one."""
    task = predictor.settings.task
    shape = (batch_size, *predictor.settings.window_shape_zyx, predictor.settings.model.channels)
    windows = np.full(shape, task.outside_value, task.image_dtype)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        predictor.predict(windows)
        seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1]


def expected_bytes(
    volume: Volume,
    space: TargetGrid,
    task: Task,
    window_zyx: tuple[int, int, int],
    settings: PredictionSettings,
) -> int:
    """Returns the most bytes that arrays take at a time in `segment_volume`, the volume included.

    That is while the volume is resampled, while windows are blended, or while their result is taken back to
    the input's grid, whichever is most. The network's own memory isn't in it.

    Args:
      volume: as it is read.
      space: its grid in the task.
      task: classes, and what is kept of the probabilities.
      window_zyx: size of a window in voxels.
      settings: overlap, batch size, post-processing.
    """
    item = np.dtype(task.image_dtype).itemsize
    voxels, resampled = math.prod(space.shape_zyx), is_resampled(space)
    copied = resampled or volume.voxels.dtype != np.dtype(task.image_dtype)
    held = volume.voxels.nbytes + (voxels * item if copied else 0)
    turned_shape = tuple(space.input_shape[axis] for axis in reversed(space.axes))
    there = _resampling_bytes(turned_shape, space.shape_zyx) if resampled else 0
    results = voxels * (1 + _FLOAT * len(kept_maps(task, space, settings)))
    blending = _blending_bytes(space.shape_zyx, len(task.class_names), window_zyx, item, settings)
    back = _resampling_bytes(space.shape_zyx, turned_shape) if resampled else 0
    finishing = _finishing_bytes(space, task, settings) + back
    return held + max(there, results + max(blending, finishing))


def _resampling_bytes(old_zyx: Sequence[int], new_zyx: Sequence[int]) -> int:
    """Returns what a slab of slices takes while it is resampled: in the plane, gathered, across, rounded."""
    plane = new_zyx[1] * new_zyx[2]
    slices = min(new_zyx[0], SLAB_VOXELS // plane + 1)
    sources = min(old_zyx[0], math.ceil(slices * old_zyx[0] / new_zyx[0]) + 2)
    return plane * _FLOAT * (2 * sources + 2 * slices)


def _blending_bytes(
    shape_zyx: tuple[int, int, int],
    classes: int,
    window_zyx: tuple[int, int, int],
    item: int,
    settings: PredictionSettings,
) -> int:
    """Returns the slab, and two batches: one is blended, one computed, one cut out."""
    depth = min(window_zyx[0], shape_zyx[0])
    slab = shape_zyx[1] * shape_zyx[2] * depth * classes * _FLOAT
    a_window = math.prod(window_zyx) * (2 * item + classes * 2 * _FLOAT)
    return slab + settings.batch_size * a_window


def _finishing_bytes(space: TargetGrid, task: Task, settings: PredictionSettings) -> int:
    """Returns what comes on the input's grid, beside the results on the task's."""
    copied = is_resampled(space) or any(space.flipped) or space.axes != (0, 1, 2)
    labels, a_map = 1, _FLOAT if copied else 0
    most = 0
    if is_resampled(space):
        # Two classes that are compared, and where the second is likelier.
        most = 2 * _FLOAT + 1
    if settings.lesions_in_organ:
        # Numbers of regions as int32, and masks.
        most = max(most, 4 + 5)
    if settings.largest_component or settings.smallest_lesion_mm3:
        # Regions are counted as int64 too.
        most = max(most, 4 + 3 + 8)
    if task.target == "heat_map":
        most = max(most, a_map + 1 + 4)
    if settings.probabilities:
        most = max(most, a_map * len(task.class_names))
    return math.prod(space.input_shape) * (labels * copied + most)
