"""Resamples volumes to a grid with the same centre and axes: linear, or nearest for labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage, sparse

# Number of voxels converted or filtered at a time, to avoid a second copy of a whole volume.
SLAB_VOXELS = 2**22


def linear(
    array: np.ndarray,
    spacing_mm: Sequence[float],
    new_shape: Sequence[int],
    new_spacing_mm: Sequence[float],
    dtype: np.dtype,
) -> np.ndarray:
    """Resamples an array [z, y, x] linearly, after Gaussian smoothing of axes that get coarser.

    All shapes and spacings are (z, y, x); values are rounded and clipped to an integer dtype. Memory
    beyond the result is a few slabs. The result does not depend on the machine or its threads.
    """
    if array.shape == tuple(new_shape) and tuple(spacing_mm) == tuple(new_spacing_mm):
        return to_dtype(array, dtype)
    grids = zip(array.shape, spacing_mm, new_shape, new_spacing_mm, strict=True)
    across, along_y, along_x = (_operator(*grid) for grid in grids)
    result = np.empty(new_shape, dtype)
    count = max(1, SLAB_VOXELS // max(1, new_shape[1] * new_shape[2]))
    planes, first = np.empty((0, new_shape[1] * new_shape[2]), np.float32), 0
    for begin in range(0, new_shape[0], count):
        rows = across[begin : begin + count]
        low, high = rows.indices.min(), rows.indices.max() + 1
        fresh = [
            _applied(along_x, _applied(along_y, array[z].astype(np.float32)).T).T.reshape(1, -1)
            for z in range(max(low, first + len(planes)), high)
        ]
        planes, first = np.concatenate([planes[max(0, low - first) :], *fresh]), low
        slab = rows[:, low:high] @ planes
        result[begin : begin + count] = to_dtype(slab.reshape(-1, *new_shape[1:]), dtype)
    return result


def nearest(
    array: np.ndarray,
    spacing_mm: Sequence[float],
    new_shape: Sequence[int],
    new_spacing_mm: Sequence[float],
) -> np.ndarray:
    """Resamples an array [z, y, x] by taking the nearest voxel; no copy if the grid is equal."""
    for axis, new_size in enumerate(new_shape):
        size = array.shape[axis]
        step, start = _positions(size, spacing_mm[axis], new_size, new_spacing_mm[axis])
        index = np.floor(start + step * np.arange(new_size) + 0.5).astype(np.intp)
        index = np.clip(index, 0, size - 1)
        if not np.array_equal(index, np.arange(size)):
            array = np.take(array, index, axis=axis)
    return array


def to_dtype(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rounds and clips to an integer dtype slab by slab; no copy if the dtype does not change."""
    if array.dtype == dtype:
        return array
    if dtype.kind == "f":
        return array.astype(dtype)
    limits = np.iinfo(dtype)
    stored = np.empty(array.shape, dtype)
    step = max(1, SLAB_VOXELS // max(1, array[0].size))
    for start in range(0, array.shape[0], step):
        slab = array[start : start + step]
        if slab.dtype.kind == "f":
            slab = np.rint(slab)
        stored[start : start + step] = np.clip(slab, limits.min, limits.max)
    return stored


def _positions(size: int, spacing: float, new_size: int, new_spacing: float) -> tuple[float, float]:
    """Returns step and start of the new voxels in old indices; both grids have the same centre."""
    step = new_spacing / spacing
    return step, (size - 1) / 2 - step * (new_size - 1) / 2


def _operator(size: int, spacing: float, new_size: int, new_spacing: float) -> sparse.csr_matrix:
    """Returns the resampling of one axis as a matrix [new, old], float32."""
    # Its columns are the responses of SciPy's filter and interpolation to single old voxels.
    step, start = _positions(size, spacing, new_size, new_spacing)
    units = np.eye(size)
    if step > 1:
        sigma = (step - 1) / 2
        units = ndimage.gaussian_filter1d(units, sigma, axis=0, mode="nearest", truncate=3.0)
    shape = (new_size, size)
    sampled = ndimage.affine_transform(
        units, np.diag([step, 1.0]), (start, 0.0), output_shape=shape, order=1, mode="nearest"
    )
    return sparse.csr_matrix(sampled, dtype=np.float32)


def _applied(operator: sparse.csr_matrix, columns: np.ndarray) -> np.ndarray:
    """Resamples the columns of a matrix, without a copy if the operator is the identity."""
    rows, size = operator.shape
    unchanged = rows == size == operator.nnz and (operator.diagonal() == 1).all()
    return columns if unchanged else operator @ columns
