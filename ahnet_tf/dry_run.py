"""What a prediction will take, before it is made: windows, time and memory of each case."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Collection, Sequence

import numpy as np
from tqdm import tqdm

from ahnet_tf.predictors import Predictor
from ahnet_tf.segmentation import PredictionSettings, is_resampled, kept_maps
from ahnet_tf.windows import plan_windows
from preprocessing.case import Case
from preprocessing.errors import InputError
from preprocessing.reading import read_image_of
from preprocessing.tasks import Task
from preprocessing.volume import TaskSpace, Volume, task_space

_FLOAT = 4


def print_expectations(
    cases: Sequence[Case],
    predictor: Predictor,
    settings: PredictionSettings,
    allow: Collection[str] = (),
) -> int:
    """Prints the windows, time and memory to expect for each case; returns an exit code.

    Time is that of one batch on this machine times the number of batches; reading a volume and writing
    its label map come on top. Memory is what arrays take; the network's own comes on top.
    """
    seconds_a_batch = batch_seconds(predictor, settings.batch_size)
    total, failed = 0.0, 0
    for case in tqdm(cases, "looking at volumes", unit="case", leave=False):
        try:
            volume = read_image_of(case, allow=allow)
        except InputError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        task = predictor.settings.task
        space = task_space(volume.voxels.shape, volume.affine, task)
        window = predictor.settings.window_shape_zyx
        windows = plan_windows(space.shape_zyx, window, settings.overlap).count
        seconds = math.ceil(windows / settings.batch_size) * seconds_a_batch
        total += seconds
        mib = expected_bytes(volume, space, task, window, settings) / 2**20
        size = " x ".join(map(str, volume.voxels.shape))
        tqdm.write(
            f"{case.case_id}: {size} voxels, {windows} windows, {seconds:.1f} s, {mib:,.0f} MiB"
        )
    print(f"{len(cases) - failed} cases, {total:.1f} s in all; nothing was written")
    return 1 if failed else 0


def batch_seconds(predictor: Predictor, batch_size: int) -> float:
    """Returns how long a batch of windows takes; the first one, which sets the network up, isn't counted."""
    task = predictor.settings.task
    shape = (batch_size, *predictor.settings.window_shape_zyx, predictor.settings.model.channels)
    windows = np.full(shape, task.outside_value, task.image_dtype)
    predictor.predict(windows)
    start = time.perf_counter()
    predictor.predict(windows)
    return time.perf_counter() - start


def expected_bytes(
    volume: Volume,
    space: TaskSpace,
    task: Task,
    window_zyx: tuple[int, int, int],
    settings: PredictionSettings,
) -> int:
    """Returns the most bytes that arrays take at a time in `segment_volume`, its result included.

    That is while windows are blended, or when their result is taken back to the input's grid. The network's
    own memory isn't in it.

    Args:
      volume: as it is read.
      space: its grid in the task.
      task: classes, and what is kept of the probabilities.
      window_zyx: size of a window in voxels.
      settings: overlap, batch size, post-processing.
    """
    classes = len(task.class_names)
    voxels, input_voxels = math.prod(space.shape_zyx), math.prod(space.input_shape)
    item = np.dtype(task.image_dtype).itemsize
    copied = is_resampled(space) or volume.voxels.dtype != np.dtype(task.image_dtype)
    held = volume.voxels.nbytes + (voxels * item if copied else 0)
    kept = len(kept_maps(task, space, settings))
    held += voxels + kept * voxels * _FLOAT
    # The slab, the slices of it that are done, a batch in and out, and one window weighted.
    plane = math.prod(space.shape_zyx[1:]) * classes * _FLOAT
    starts = plan_windows(space.shape_zyx, window_zyx, settings.overlap).starts_zyx[0]
    step = max(np.diff(starts), default=0)
    window = math.prod(window_zyx)
    blending = (min(window_zyx[0], space.shape_zyx[0]) + int(step)) * plane
    blending += window * (settings.batch_size * (item + classes * _FLOAT) + (classes + 1) * _FLOAT)
    # Labels on the input's grid; two maps while classes are compared, or the maps that are returned.
    maps = 2 if is_resampled(space) else 0
    maps = max(maps, classes if settings.probabilities else 0, int(task.target == "heat_map"))
    finishing = input_voxels * (1 + maps * _FLOAT)
    if settings.largest_component or settings.lesions_in_organ or settings.smallest_lesion_mm3:
        # Numbers of regions (int32), their flattened copy for counting as int64, a mask, labels.
        finishing = max(finishing, input_voxels * (1 + 4 + 8 + 2))
    return int(held + max(blending, finishing))
