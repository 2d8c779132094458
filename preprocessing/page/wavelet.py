"""The 3D wavelet transform behind the page's images: CDF 9/7, in place, any size.

Biorthogonal wavelet 9/7 of Cohen, Daubechies and Feauveau (1992), factored into lifting steps by
Daubechies and Sweldens (1998), mirrored at the ends, and scaled to be nearly orthonormal, so that
one quantisation step suits all coefficients. `static/decoding.js` holds the same inverse.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

LIFTING = (-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971)
SCALE = 1.149604398860241
LEVELS = 5
# Axes that are shorter are left as they are.
SHORTEST = 8


def forward(array: np.ndarray) -> np.ndarray:
    """Returns the coefficients of a float32 array [z, y, x], in its shape.

    Along each axis the coarse half comes first; the next level transforms the coarse corner.
    """
    coefficients = array.astype(np.float32)
    for corner, axes in _levels(array.shape):
        for axis in axes:
            lines = np.moveaxis(coefficients[corner], axis, 0)
            work = lines.copy()
            for number, weight in enumerate(LIFTING):
                _lift(work, 1 - number % 2, weight)
            half = (len(work) + 1) // 2
            lines[:half] = work[0::2] * np.float32(SCALE)
            lines[half:] = work[1::2] / np.float32(SCALE)
    return coefficients


def inverse(coefficients: np.ndarray) -> np.ndarray:
    """Returns the array [z, y, x] of which `forward` made these coefficients, up to rounding."""
    array = coefficients.astype(np.float32)
    for corner, axes in reversed(list(_levels(array.shape))):
        for axis in reversed(axes):
            lines = np.moveaxis(array[corner], axis, 0)
            work = np.empty_like(lines)
            half = (len(work) + 1) // 2
            work[0::2] = lines[:half] / np.float32(SCALE)
            work[1::2] = lines[half:] * np.float32(SCALE)
            for number, weight in reversed(list(enumerate(LIFTING))):
                _lift(work, 1 - number % 2, -weight)
            lines[...] = work
    return array


def _levels(shape: tuple[int, ...]) -> Iterator[tuple[tuple[slice, ...], list[int]]]:
    """Yields the corner and the axes that each level transforms."""
    sizes = list(shape)
    for _ in range(LEVELS):
        axes = [axis for axis, size in enumerate(sizes) if size >= SHORTEST]
        if not axes:
            return
        yield tuple(slice(0, size) for size in sizes), axes
        for axis in axes:
            sizes[axis] = (sizes[axis] + 1) // 2


def _lift(lines: np.ndarray, first: int, weight: float) -> None:
    """Adds `weight` times both neighbours to every second line, from `first` on; in place."""
    weight, last = np.float32(weight), len(lines) - 1
    if first:
        lines[1::2] += weight * lines[0:last:2]
        lines[1:last:2] += weight * lines[2::2]
    else:
        lines[2::2] += weight * lines[1:last:2]
        lines[0:last:2] += weight * lines[1::2]
        lines[0] += weight * lines[1]
    if last % 2 == first:
        lines[last] += weight * lines[last - 1]
