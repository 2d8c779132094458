"""Normalisation of breast tomosynthesis, whose intensities have no unit, by the breast itself.

Vendors scale reconstructions in their own ways: other gains, offsets and numbers of bits. Percentiles
of the breast follow each of them, so a normalised volume depends on none.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from preprocessing.errors import InputError

# These quantiles of the breast are mapped to these shares of the window.
QUANTILES, SHARES = (0.02, 0.98), (0.2, 0.8)
# Equal bins for real numbers; integers over a smaller range than this have one bin each.
BINS = 65536
# Otsu's separability, the variance between air and breast over the whole, is 0.64 for normal noise
# and at most 0.75 (a uniform distribution) for any other single symmetric peak.
LEAST_SEPARABILITY = 0.68
# Share of voxels above the threshold: less is a marker or a defect, more leaves no air to tell.
BREAST_SHARE = (0.02, 0.95)
# Noise averages out in blocks of so many voxels along each axis; tissue does not. Solid are blocks
# with more than this share of their voxels above the threshold, which edges and noise have not. Those
# at the surface are left out where at least `FEWEST_INSIDE` remain.
BLOCK, SOLID, FEWEST_BLOCKS, FEWEST_INSIDE = 4, 0.9, 8, 100
# The range of solid blocks between these quantiles, over the contrast to air, is below 0.1 for a test
# object with noise of up to a fifth of that contrast, and 0.2 or more for breasts.
BLOCK_QUANTILES, LEAST_SPREAD = (0.9, 0.1), 0.1
# Voxels beyond these quantiles, such as metal, don't move the threshold.
_EXTREMES = (0.001, 0.999)


def normalized(
    voxels: np.ndarray, window: tuple[float, float], where: object = "volume"
) -> np.ndarray:
    """Returns a tomosynthesis volume on a window of intensities, uint16 in the same axis order.

    The breast's 2nd and 98th percentiles become 20 % and 80 % of the window, linearly; values outside
    the window are clipped to it. Takes the whole volume, raw intensities [x, y, z] or [z, y, x] of
    any numeric dtype. Raises as `breast_range`.
    """
    low, high = breast_range(voxels, where)
    start, end = (window[0] + share * (window[1] - window[0]) for share in SHARES)
    gain = (end - start) / (high - low)
    result = np.empty_like(voxels, np.uint16)
    axes = _memory_order(voxels)
    for source, target in zip(voxels.transpose(axes), result.transpose(axes), strict=True):
        plane = source.astype(_real(voxels))
        plane -= low
        plane *= gain
        plane += start
        target[...] = np.rint(np.clip(plane, *window, out=plane), out=plane)
    return result


def breast_range(voxels: np.ndarray, where: object = "volume") -> tuple[float, float]:
    """Returns the 2nd and 98th percentile of the breast in a tomosynthesis volume [any 3 axes].

    The breast is what lies above Otsu's threshold. Percentiles are interpolated between intensities,
    so that they hardly depend on rounding. Raises InputError, after `where`, for infinite voxels or
    NaN, a volume without contrast, one without a breast in air, and a uniform block.
    """
    lowest, highest = voxels.min().item(), voxels.max().item()
    if not math.isfinite(highest - lowest):
        raise InputError(where, "finite voxels", f"{lowest:g} to {highest:g}")
    if lowest == highest:
        raise InputError(where, "an image with contrast", f"all voxels equal to {lowest:g}")
    values, counts = _histogram(voxels, lowest, highest)
    ranks = np.cumsum(counts) - counts / 2
    air, breast, separability = _otsu(values, counts, ranks)
    threshold = (air + breast) / 2
    brighter = values > threshold
    # The intensity nearest to the threshold counts in part: volumes of few bits have many voxels of it.
    above = np.clip((values - threshold) / np.diff(values).min() + 0.5, 0, 1)
    count = (counts * above).sum()
    share = count / voxels.size
    blocks = _solid_blocks(voxels, threshold)
    least, most = BREAST_SHARE
    if separability < LEAST_SEPARABILITY or not least < share < most or len(blocks) < FEWEST_BLOCKS:
        expected = "a breast that a threshold tells from air"
        found = (
            f"a separability of {separability:.2f} (at least {LEAST_SEPARABILITY:g}), with "
            f"{100 * share:.0f} % of the voxels ({100 * least:.0f} to {100 * most:.0f} %) and "
            f"{len(blocks)} solid blocks (at least {FEWEST_BLOCKS}) above the threshold"
        )
        remedy = "Check that the file is a whole reconstructed tomosynthesis volume."
        raise InputError(where, expected, found, remedy)
    spread = np.subtract(*np.quantile(blocks, BLOCK_QUANTILES)) / (breast - air)
    if spread < LEAST_SPREAD:
        found = (
            f"a uniform block, whose intensities spread over {spread:.2f} of the contrast to air (at "
            f"least {LEAST_SPREAD:g})"
        )
        remedy = "Leave out images of test objects."
        raise InputError(where, "a breast with fat and glandular tissue", found, remedy)
    wanted = voxels.size - count + np.array(QUANTILES) * count
    low, high = np.interp(wanted, ranks[brighter], values[brighter]).tolist()
    return low, high


def _histogram(voxels: np.ndarray, lowest: float, highest: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the intensities that occur, or the centres of their bins, and how often, rising."""
    whole = voxels.dtype.kind in "iu" and highest - lowest < BINS
    step = 1.0 if whole else (highest - lowest) / (BINS - 1)
    counts = np.zeros(BINS, np.int64)
    for plane in voxels.transpose(_memory_order(voxels)):
        if whole:
            bins = plane.astype(np.int64) - lowest
        else:
            bins = np.rint((plane.astype(np.float64) - lowest) / step).astype(np.int64)
        counts += np.bincount(bins.ravel(order="K"), minlength=BINS)
    occupied = np.flatnonzero(counts)
    return lowest + step * occupied, counts[occupied]


def _otsu(values: np.ndarray, counts: np.ndarray, ranks: np.ndarray) -> tuple[float, float, float]:
    """Returns the means below and above Otsu's threshold, and the separability, from 0 to 1.

    Otsu (1979): of all thresholds that with the largest variance between both sides. It lies halfway
    between the two means, which, unlike the last intensity below it, hardly depends on rounding.
    """
    total = counts.sum()
    values = np.clip(values, *np.interp(np.multiply(_EXTREMES, total), ranks, values))
    mean = (counts * values).sum() / total
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * (values - mean))[:-1]
    between = sums**2 / (below * (total - below).astype(np.float64))
    best = int(np.argmax(between))
    variance = (counts * np.square(values - mean)).sum() / total
    air, breast = mean + sums[best] / below[best], mean - sums[best] / (total - below[best])
    return air, breast, between[best] / variance if variance else 0.0


def _solid_blocks(voxels: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the means of the blocks that are solid above a threshold."""
    planes = voxels.transpose(_memory_order(voxels))
    sizes = [min(BLOCK, size) for size in planes.shape]
    depth, rows, columns = (size // step for size, step in zip(planes.shape, sizes, strict=True))
    shape = (rows, sizes[1], columns, sizes[2])
    solid, means = np.empty((depth, rows, columns), bool), np.empty((depth, rows, columns))
    for z in range(depth):
        slab = planes[z * sizes[0] : (z + 1) * sizes[0], : rows * sizes[1], : columns * sizes[2]]
        above = (slab > threshold).mean(axis=0, dtype=np.float32)
        solid[z] = above.reshape(shape).mean(axis=1).mean(axis=2) > SOLID
        mean = slab.mean(axis=0, dtype=_real(voxels))
        means[z] = mean.reshape(shape).mean(axis=1).mean(axis=2)
    inside = ndimage.binary_erosion(solid, np.ones((3, 3, 3)), border_value=1)
    return means[inside if np.count_nonzero(inside) >= FEWEST_INSIDE else solid]


def _memory_order(voxels: np.ndarray) -> list[int]:
    """Returns the axes from the one with the largest steps in memory to the contiguous one."""
    return np.argsort(np.negative(np.abs(voxels.strides)), kind="stable").tolist()


def _real(voxels: np.ndarray) -> np.dtype:
    """Returns the smallest real dtype that holds the intensities exactly."""
    return np.result_type(voxels.dtype, np.float32)
