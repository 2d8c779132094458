"""Sliding-window prediction: overlapping windows, predicted in batches and blended slab by slab.

The windows form a regular grid, so the Gaussian weight of a window is a product of one weight per
axis. On each axis the weights of all windows over a voxel sum to one, so the weighted sum is the mean
and no volume of weights is needed.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from preprocessing.errors import ModelError, SettingsError

# Standard deviation of the Gaussian weights, as a fraction of the window's size (nnU-Net, MONAI).
GAUSSIAN_SIGMA = 0.125

_Corners = list[tuple[int, ...]]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def check_overlap(overlap: float) -> None:
    """Raises SettingsError if the overlap of neighbouring windows is not in [0, 1)."""
    if not 0 <= overlap < 1:
        raise SettingsError("overlap", "a fraction from 0 to below 1", overlap)


def window_starts(
    shape_zyx: tuple[int, ...], window_zyx: tuple[int, ...], overlap: float = 0.25
) -> list[tuple[int, ...]]:
    """Returns the first voxel of each window along z, y and x; the windows are their product.

    These are the fewest windows that cover the volume and overlap by at least the fraction
    `overlap`, evenly spaced from the first voxel to the last. An axis shorter than the window gets
    one window, which extends beyond the end of the volume. All sizes are in voxels. Raises
    SettingsError for an overlap outside [0, 1) or a size below 1.
    """
    check_overlap(overlap)
    for name, sizes in (("volume shape", shape_zyx), ("window shape", window_zyx)):
        if len(sizes) != 3 or min(sizes) < 1:
            raise SettingsError(name, "three sizes (z, y, x) of at least 1 voxel", sizes)
    return [
        _axis_starts(size, window, overlap)
        for size, window in zip(shape_zyx, window_zyx, strict=True)
    ]


def predict_slabs(
    array_zyx: np.ndarray,
    predict: Callable[[np.ndarray], np.ndarray],
    window_shape_zyx: tuple[int, int, int],
    classes: int,
    *,
    overlap: float = 0.25,
    batch_size: int = 1,
    outside_value: float = -1024,
    in_flight: int = 1,
    progress: Callable[[int, int], object] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Predicts a volume by overlapping windows and yields it slab by slab along z.

    Memory is one slab (window z, volume y, volume x, class) and two batches, whatever the number of
    slices: while one batch is computed in a thread, the next one is cut out and the previous one is
    blended. Each additional call in flight adds a batch.

    Yields (z_start, probabilities float32 [z, y, x, class]): adjacent slabs in order, each valid
    until the next one is requested. Raises SettingsError for an overlap, batch size or shape out of
    range, ModelError if `predict` returns another shape than expected, or NaN or infinite values.

    Args:
      array_zyx: raw intensities [z, y, x] or [z, y, x, channel], any dtype and size.
      predict: maps windows [batch, z, y, x, channel] of the volume's dtype to probabilities
        [batch, z, y, x, class].
      window_shape_zyx: size of a window in voxels.
      overlap: share of a window covered by its neighbour along each axis, from 0 to below 1.
      batch_size: windows per call of `predict`; the last call may have fewer.
      outside_value: intensity of voxels beyond the edge of the volume.
      in_flight: concurrent calls of `predict` in threads; more than one needs a thread-safe one.
      progress: called after each batch with (windows in the batch, windows in total).
    """
    if batch_size < 1:
        raise SettingsError("batch size", "at least 1", batch_size)
    array = array_zyx[..., np.newaxis] if array_zyx.ndim == 3 else array_zyx
    starts = window_starts(array.shape[:3], window_shape_zyx, overlap)
    weights_z, weights_y, weights_x = (
        _axis_weights(*axis) for axis in zip(starts, array.shape[:3], window_shape_zyx, strict=True)
    )
    grid = itertools.product(*starts)
    batches = (
        (corners, _cut_out(array, corners, window_shape_zyx, outside_value))
        for corners in iter(lambda: list(itertools.islice(grid, batch_size)), [])
    )

    def compute(batch: tuple[_Corners, np.ndarray]) -> tuple[_Corners, np.ndarray]:
        corners, windows = batch
        return corners, _checked(predict(windows), (*windows.shape[:-1], classes))

    # A volume with fewer slices than a window gives a slab smaller than the window.
    depth = min(window_shape_zyx[0], len(array))
    slab = np.zeros((depth, *array.shape[1:3], classes), np.float32)
    z_start = 0
    for corners, batch in _ahead(compute, batches, in_flight):
        for (z, y, x), probabilities in zip(corners, batch, strict=True):
            if z > z_start:
                # No later window reaches the slices before z: they are complete.
                step = z - z_start
                yield z_start, slab[:step]
                slab[: depth - step] = slab[step:]
                slab[depth - step :] = 0
                z_start = z
            in_plane = np.outer(weights_y[y], weights_x[x])[..., np.newaxis]
            h, w, _ = in_plane.shape
            # Slice by slice, so that the operands stay in the processor's cache.
            for target, answer, weight in zip(slab, probabilities, weights_z[z], strict=False):
                target[y : y + h, x : x + w] += answer[:h, :w] * (in_plane * weight)
        if progress is not None:
            progress(len(corners), math.prod(map(len, starts)))
    yield z_start, slab


def most_probable(probabilities: np.ndarray) -> np.ndarray:
    """Returns label values uint8 [z, y, x] from probabilities [z, y, x, class]; ties take the lower."""
    labels = np.empty(probabilities.shape[:-1], np.uint8)
    # Slice by slice, because NumPy's indices take eight bytes per voxel.
    for target, one in zip(labels, probabilities, strict=True):
        target[...] = np.argmax(one, axis=-1)
    return labels


def _axis_starts(size: int, window: int, overlap: float) -> tuple[int, ...]:
    if size <= window:
        return (0,)
    # The small term makes int() return 3 for 10 * (1 - 0.7), which is slightly less in floating point.
    step = max(1, int(window * (1 - overlap) + 1e-9))
    count = -(-(size - window) // step) + 1
    return tuple(int(start) for start in np.round(np.linspace(0, size - window, count)))


def _axis_weights(starts: tuple[int, ...], size: int, window: int) -> dict[int, np.ndarray]:
    """Returns the weights of each window by its start, cut at the volume's end; they sum to 1."""
    distance = np.arange(window) - (window - 1) / 2
    weight = np.exp(-0.5 * (distance / (GAUSSIAN_SIGMA * window)) ** 2)
    total = np.zeros(size)
    for start in starts:
        total[start : start + window] += weight[: size - start]
    return {
        start: (weight[: size - start] / total[start : start + window]).astype(np.float32)
        for start in starts
    }


def _ahead(
    compute: Callable[[_Item], _Result], items: Iterable[_Item], in_flight: int
) -> Iterator[_Result]:
    """Yields `compute(item)` of each item in order; fetches the next one and yields meanwhile."""
    items = iter(items)
    # No more items are submitted than run at once, so nothing is computed after a failure.
    with ThreadPoolExecutor(in_flight, "windows") as threads:
        first = itertools.islice(items, in_flight)
        running = deque(threads.submit(compute, item) for item in first)
        for item in items:
            result = running.popleft().result()
            running.append(threads.submit(compute, item))
            yield result
        while running:
            yield running.popleft().result()


def _cut_out(
    array: np.ndarray, corners: _Corners, window_zyx: tuple[int, int, int], outside_value: float
) -> np.ndarray:
    """Returns windows [batch, z, y, x, channel] with their first voxels at `corners`."""
    d, h, w = window_zyx
    batch = np.full((len(corners), d, h, w, array.shape[-1]), outside_value, array.dtype)
    for window, (z, y, x) in zip(batch, corners, strict=True):
        inside = array[z : z + d, y : y + h, x : x + w]
        window[: inside.shape[0], : inside.shape[1], : inside.shape[2]] = inside
    return batch


def _checked(probabilities: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    where, probabilities = "the network's output", np.asarray(probabilities)
    if probabilities.shape != shape:
        remedy = "Is this the network for this task?"
        raise ModelError(where, f"probabilities of shape {shape}", probabilities.shape, remedy)
    # A sum reveals NaN and infinite values without a temporary array.
    if not np.isfinite(probabilities.sum(dtype=np.float64)):
        remedy = "Its weights are damaged or its training diverged."
        raise ModelError(where, "finite probabilities", "NaN or infinite values", remedy)
    return probabilities
