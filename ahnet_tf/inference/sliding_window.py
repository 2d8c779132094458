"""Sliding windows over a volume: planned, predicted in batches, blended slab by slab.

The predictor is handed in, so this module is NumPy alone. Windows form a full grid, hence their
blending weights are a product of one weight per axis. Each axis is normalised by itself beforehand
(at every voxel the weights of all windows that cover it sum to one), which makes the cover exact
and needs no volume of weights.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from preprocessing.errors import ModelError, SettingsError

BLENDS = ("gaussian", "constant")

# Standard deviation of the Gaussian weights, as a fraction of the window's size (nnU-Net, MONAI).
GAUSSIAN_SIGMA = 0.125

_Positions = list[tuple[int, int, int]]
_Item, _Result = TypeVar("_Item"), TypeVar("_Result")


@dataclass(frozen=True)
class WindowPlan:
    """Where the windows over one volume lie.

    Attributes:
      shape_zyx: size of the volume in voxels.
      window_zyx: size of every window in voxels.
      starts_zyx: first voxels of the windows along z, y and x; the windows are their product.
    """

    shape_zyx: tuple[int, int, int]
    window_zyx: tuple[int, int, int]
    starts_zyx: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    @property
    def count(self) -> int:
        """Number of windows."""
        return len(self.starts_zyx[0]) * len(self.starts_zyx[1]) * len(self.starts_zyx[2])


def plan_windows(
    shape_zyx: tuple[int, int, int], window_zyx: tuple[int, int, int], overlap: float = 0.25
) -> WindowPlan:
    """Plans the fewest windows that cover a volume and overlap by at least `overlap`.

    Along each axis the windows are spread evenly from the first voxel to the last. An axis shorter
    than the window gets one window, which reaches beyond the volume's end.

    Args:
      shape_zyx: size of the volume in voxels.
      window_zyx: size of a window in voxels.
      overlap: share of a window covered by its neighbour along each axis, from 0 to below 1.

    Raises:
      SettingsError: an overlap outside [0, 1) or a size below 1.
    """
    if not 0 <= overlap < 1:
        raise SettingsError("overlap", "a fraction from 0 to below 1", overlap)
    for name, sizes in (("volume shape", shape_zyx), ("window shape", window_zyx)):
        if len(sizes) != 3 or min(sizes) < 1:
            raise SettingsError(name, "three sizes (z, y, x) of at least 1 voxel", sizes)
    starts = tuple(
        _starts(size, window, overlap) for size, window in zip(shape_zyx, window_zyx, strict=True)
    )
    return WindowPlan(tuple(shape_zyx), tuple(window_zyx), starts)


def predict_slabs(
    array_zyx: np.ndarray,
    predict: Callable[[np.ndarray], np.ndarray],
    window_shape_zyx: tuple[int, int, int],
    classes: int,
    *,
    overlap: float = 0.25,
    blend: str = "gaussian",
    batch_size: int = 1,
    outside_value: float = -1024,
    in_flight: int = 1,
    progress: Callable[[int], object] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Predicts a volume by overlapping windows and yields it slab by slab along z.

    Memory is one slab of windows (window z, volume y, volume x, class) and two batches, whatever the
    number of slices: while one is computed, in a thread, the next one is cut out and the one before is
    blended. Each call more in flight adds a batch.

    Args:
      array_zyx: raw intensities [z, y, x] or [z, y, x, channel], any dtype and size.
      predict: maps windows [batch, z, y, x, channel] of the volume's dtype to probabilities
        [batch, z, y, x, class].
      window_shape_zyx: size of a window in voxels.
      classes: number of classes that `predict` returns.
      overlap: share of a window covered by its neighbour along each axis, from 0 to below 1.
      blend: "gaussian" weighs a window's centre more than its border, "constant" does not.
      batch_size: windows a call of `predict`; the last call may have fewer.
      outside_value: intensity of voxels beyond the volume's edge.
      in_flight: calls of `predict` at the same time, each in a thread and with a batch of its own; for
        predictors that bear it, such as servers. The answer does not depend on it.
      progress: called after each batch with the number of windows it held.

    Yields:
      (z_start, probabilities float32 [z, y, x, class]): slabs in order that meet without overlap, each
      valid until the next one is asked for.

    Raises:
      SettingsError: an overlap, blend, batch size or shape that is not possible.
      ModelError: `predict` returned another shape than expected, or NaN or infinite values.
    """
    if blend not in BLENDS:
        raise SettingsError("blend", f"one of {', '.join(BLENDS)}", repr(blend))
    if batch_size < 1:
        raise SettingsError("batch size", "at least 1", batch_size)
    array = array_zyx[..., np.newaxis] if array_zyx.ndim == 3 else array_zyx
    plan = plan_windows(array.shape[:3], window_shape_zyx, overlap)
    weights = [
        _axis_weights(starts, size, window, blend)
        for starts, size, window in zip(
            plan.starts_zyx, plan.shape_zyx, plan.window_zyx, strict=True
        )
    ]
    # The slab may be smaller than a window, which then reaches beyond the volume.
    depth = min(plan.window_zyx[0], plan.shape_zyx[0])
    slab = np.zeros((depth, *plan.shape_zyx[1:], classes), np.float32)
    z_start = 0
    predicted = _predicted_windows(
        array, predict, plan, classes, batch_size, outside_value, in_flight, progress
    )
    for (k, j, i), probabilities in predicted:
        z, y, x = (s[n] for s, n in zip(plan.starts_zyx, (k, j, i), strict=True))
        if z > z_start:
            # No later window reaches the slices before this one: they are done.
            step = z - z_start
            yield z_start, slab[:step]
            slab[: depth - step] = slab[step:]
            slab[depth - step :] = 0
            z_start = z
        in_plane = np.einsum("y,x->yx", weights[1][j], weights[2][i])[..., np.newaxis]
        h, w, _ = in_plane.shape
        # Slice by slice all of it stays in the processor's cache.
        for target, answer, weight in zip(slab, probabilities, weights[0][k], strict=False):
            target[y : y + h, x : x + w] += answer[:h, :w] * (in_plane * weight)
    yield z_start, slab


def predict_labels(
    array_zyx: np.ndarray,
    predict: Callable[[np.ndarray], np.ndarray],
    window_shape_zyx: tuple[int, int, int],
    classes: int,
    **options,
) -> np.ndarray:
    """Predicts a volume's label map by overlapping windows; see `predict_slabs` for the options.

    Returns:
      Label values uint8 [z, y, x], see `most_probable`.
    """
    labels = np.empty(array_zyx.shape[:3], np.uint8)
    for z, probabilities in predict_slabs(array_zyx, predict, window_shape_zyx, classes, **options):
        labels[z : z + len(probabilities)] = most_probable(probabilities)
    return labels


def most_probable(probabilities: np.ndarray) -> np.ndarray:
    """Returns label values uint8 [z, y, x] from probabilities [z, y, x, class], the lower one of equals."""
    labels = np.empty(probabilities.shape[:-1], np.uint8)
    # Slice by slice, because NumPy's indices take eight bytes a voxel.
    for target, one in zip(labels, probabilities, strict=True):
        target[...] = np.argmax(one, axis=-1)
    return labels


def _starts(size: int, window: int, overlap: float) -> tuple[int, ...]:
    if size <= window:
        return (0,)
    # The small term keeps 10 * (1 - 0.7) at 3 although it is a little less in floating point.
    step = max(1, int(window * (1 - overlap) + 1e-9))
    count = -(-(size - window) // step) + 1
    return tuple(int(start) for start in np.round(np.linspace(0, size - window, count)))


def _axis_weights(starts: tuple[int, ...], size: int, window: int, blend: str) -> list[np.ndarray]:
    """Returns one weight vector per window, cut at the volume's end; at every voxel they sum to 1."""
    weight = np.ones(window)
    if blend == "gaussian":
        distance = np.arange(window) - (window - 1) / 2
        weight = np.exp(-0.5 * (distance / (GAUSSIAN_SIGMA * window)) ** 2)
    total = np.zeros(size)
    for start in starts:
        total[start : start + window] += weight[: size - start]
    return [
        (weight[: size - start] / total[start : start + window]).astype(np.float32)
        for start in starts
    ]


def _predicted_windows(
    array: np.ndarray,
    predict: Callable[[np.ndarray], np.ndarray],
    plan: WindowPlan,
    classes: int,
    batch_size: int,
    outside_value: float,
    in_flight: int,
    progress: Callable[[int], object] | None,
) -> Iterator[tuple[tuple[int, int, int], np.ndarray]]:
    """Yields the grid position (k, j, i) and the probabilities of each window, z slowest."""
    grid = itertools.product(*(range(len(starts)) for starts in plan.starts_zyx))
    batches = (
        (positions, _cut_out(array, positions, plan, outside_value))
        for positions in iter(lambda: list(itertools.islice(grid, batch_size)), [])
    )

    def answer(batch: tuple[_Positions, np.ndarray]) -> tuple[_Positions, np.ndarray]:
        positions, windows = batch
        return positions, _checked(predict(windows), (*windows.shape[:-1], classes))

    for positions, probabilities in _ahead(answer, batches, in_flight):
        yield from zip(positions, probabilities, strict=True)
        if progress is not None:
            progress(len(positions))


def _ahead(
    compute: Callable[[_Item], _Result], items: Iterable[_Item], in_flight: int
) -> Iterator[_Result]:
    """Yields `compute(item)` of each item, in order.

    The next item is fetched while one is computed, and the result before is used meanwhile.
    """
    items = iter(items)
    # No more than run wait: nothing is computed behind a failure, and by default in one thread,
    # because predictors need not be safe for several.
    with ThreadPoolExecutor(in_flight, "windows") as threads:
        running = deque(
            threads.submit(compute, item) for item in itertools.islice(items, in_flight)
        )
        for item in items:
            result = running.popleft().result()
            running.append(threads.submit(compute, item))
            yield result
        while running:
            yield running.popleft().result()


def _cut_out(
    array: np.ndarray,
    positions: _Positions,
    plan: WindowPlan,
    outside_value: float,
) -> np.ndarray:
    """Returns windows [batch, z, y, x, channel] at grid positions."""
    shape = (len(positions), *plan.window_zyx, array.shape[-1])
    batch = np.full(shape, outside_value, array.dtype)
    for window, position in zip(batch, positions, strict=True):
        z, y, x = (s[n] for s, n in zip(plan.starts_zyx, position, strict=True))
        d, h, w = plan.window_zyx
        inside = array[z : z + d, y : y + h, x : x + w]
        window[: inside.shape[0], : inside.shape[1], : inside.shape[2]] = inside
    return batch


def _checked(probabilities: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    probabilities = np.asarray(probabilities)
    if probabilities.shape != shape:
        raise ModelError(
            "the network's output",
            f"probabilities of shape {shape}",
            probabilities.shape,
            "Is this the network for this task?",
        )
    # A sum shows what isn't finite, and takes no memory.
    if not np.isfinite(probabilities.sum(dtype=np.float64)):
        raise ModelError(
            "the network's output",
            "finite probabilities",
            "NaN or infinite values",
            "Its weights are damaged or its training diverged.",
        )
    return probabilities
