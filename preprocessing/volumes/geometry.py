"""Volumes, their geometry, and the conversion between file order [x, y, z] and tensors [z, y, x].

A 4x4 affine maps voxel indices in file order to RAS+ mm (nibabel's convention). In tensors, z is
the slice axis. Only `to_target_grid` and `from_target_grid` convert between the two.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from nibabel import orientations

from preprocessing.errors import InputError
from preprocessing.tasks import Task
from preprocessing.volumes.intensities import normalized
from preprocessing.volumes.nifti_bytes import MAX_VOXELS
from preprocessing.volumes.resampling import linear, nearest

# An axis is the slice axis if its spacing exceeds both others by more than this factor.
ANISOTROPY = 1.1
# Affines with voxel spacings outside this range are treated as damaged.
SPACING_LIMITS_MM = (1e-6, 1e6)
# Axes whose directions span less than this volume (1 if perpendicular) lie in a plane: a damaged affine.
SMALLEST_DETERMINANT = 1e-3
# Spacings with a relative difference below this are equal: no resampling.
SAME_SPACING = 1e-3

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels [x, y, z] in file order, and their affine: 4x4 float64, voxel indices to RAS+ mm."""

    voxels: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class TargetGrid:
    """The grid of a task's tensors for one volume, and its relation to the input file's grid."""

    shape_zyx: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]  # of the target grid (x, y, z)
    affine: tuple[tuple[float, ...], ...]  # x, y, z indices to RAS+ mm, four rows of four
    input_shape: tuple[int, int, int]  # in file order
    input_spacing_mm: tuple[float, float, float]  # in file order
    axes: tuple[int, int, int]  # the input axis along which the target's x, y and z run
    flipped: tuple[bool, bool, bool]  # whether the target's x, y and z run against that input axis


def checked_affine(affine: np.ndarray, where: object) -> np.ndarray:
    """Returns the affine as float64; raises InputError unless it is 4x4, finite and invertible."""
    affine = np.asarray(affine, np.float64)
    if affine.shape == (4, 4) and np.all(np.isfinite(affine)):
        shortest, longest = SPACING_LIMITS_MM
        spacing = spacing_mm(np.clip(affine, -2 * longest, 2 * longest))
        plausible = shortest <= min(spacing) <= max(spacing) <= longest
        if plausible and abs(np.linalg.det(affine[:3, :3] / spacing)) > SMALLEST_DETERMINANT:
            return affine
    rows = "; ".join(" ".join(f"{v:g}" for v in row) for row in np.atleast_2d(affine))
    raise InputError(where, "a finite, invertible 4x4 affine", f"[{rows}]")


def spacing_mm(affine: np.ndarray) -> tuple[float, float, float]:
    """Returns the voxel spacing in mm along the three voxel axes of a 4x4 affine."""
    columns = np.linalg.norm(np.asarray(affine, np.float64)[:3, :3], axis=0)
    return _triple(float(length) for length in columns)


def axis_codes(affine: np.ndarray) -> str:
    """Returns the direction of each voxel axis as letters, for example "LPS"."""
    return "".join(orientations.aff2axcodes(affine))


def slice_axis(ras_spacing_mm: tuple[float, float, float]) -> int:
    """Returns the RAS+ axis along which slices are stacked: a clearly coarser one, or else z."""
    _, second, largest = sorted(ras_spacing_mm)
    return ras_spacing_mm.index(largest) if largest > ANISOTROPY * second else 2


def target_grid(shape: tuple[int, ...], affine: np.ndarray, task: Task) -> TargetGrid:
    """Returns the grid of a task's tensors for an input grid of this shape (file order) and affine.

    Axes are permuted and flipped to RAS+ order with the slice axis last; an oblique grid keeps its
    rotation. A resampled grid has exactly the task's spacing and the same centre as the input.
    Raises as `checked_affine`.
    """
    affine = checked_affine(affine, "affine")
    # A row per input axis: the closest RAS+ axis, and the direction along it.
    orientation = orientations.io_orientation(affine)
    ras_axes = [int(axis) for axis in np.argsort(orientation[:, 0])]
    input_spacing = spacing_mm(affine)
    last = slice_axis(_triple(input_spacing[axis] for axis in ras_axes))
    axes = _triple([ras_axes[axis] for axis in range(3) if axis != last] + [ras_axes[last]])
    flipped = _triple(bool(orientation[axis, 1] < 0) for axis in axes)

    sizes, spacings = [], []
    to_input = np.diag([0.0, 0.0, 0.0, 1.0])
    for position, axis in enumerate(axes):
        size, spacing = int(shape[axis]), input_spacing[axis]
        resampled = task.resampling == "full" or (task.resampling == "in_plane" and position < 2)
        if resampled and task.spacing_mm is not None:
            target = task.spacing_mm[position]
            if abs(spacing / target - 1) > SAME_SPACING:
                size = max(1, int(np.floor(size * spacing / target + 0.5)))
                spacing = float(target)
        sizes.append(size)
        spacings.append(spacing)
        step = spacing / input_spacing[axis] * (-1 if flipped[position] else 1)
        to_input[axis, position] = step
        to_input[axis, 3] = (shape[axis] - 1) / 2 - step * (size - 1) / 2
    return TargetGrid(
        shape_zyx=_triple(reversed(sizes)),
        spacing_mm=_triple(spacings),
        affine=tuple(tuple(float(v) for v in row) for row in affine @ to_input),
        input_shape=_triple(int(size) for size in shape),
        input_spacing_mm=input_spacing,
        axes=axes,
        flipped=flipped,
    )


def reoriented(voxels: np.ndarray, grid: TargetGrid) -> np.ndarray:
    """Returns a view [z, y, x], in RAS+ orientation but not resampled, of voxels in file order."""
    return voxels.transpose(grid.axes).transpose()[_flips(grid)]


def to_target_grid(
    volume: Volume, task: Task, *, label: bool = False
) -> tuple[np.ndarray, TargetGrid]:
    """Converts voxels [x, y, z] to the array [z, y, x] from which a task's patches are cut.

    Images are normalised as the task asks (`normalize`), then interpolated linearly, after Gaussian
    smoothing against aliasing where the target is coarser, to the task's `image_dtype` (rounded and
    clipped). Label values take the nearest voxel, as uint8. Nothing is copied if neither grid, dtype
    nor intensities change. Raises as `target_grid` and `normalize`, and InputError for a volume
    without three axes or a larger grid than `check_size` accepts.
    """
    if volume.voxels.ndim != 3:
        raise InputError("volume", "three axes x, y, z", f"shape {volume.voxels.shape}")
    grid = target_grid(volume.voxels.shape, volume.affine, task)
    array = reoriented(volume.voxels, grid)
    if array.shape != grid.shape_zyx:
        check_size(grid.shape_zyx, 1 if label else np.dtype(task.image_dtype).itemsize)
    target = (_reoriented_spacing(grid), grid.shape_zyx, grid.spacing_mm[::-1])
    if label:
        return nearest(array, *target).astype(np.uint8, copy=False), grid
    array = reoriented(normalize(volume, task).voxels, grid)
    return linear(array, *target, np.dtype(task.image_dtype)), grid


def normalize(volume: Volume, task: Task) -> Volume:
    """Returns a whole image in the intensities of its task; raises as `intensities.normalized`."""
    if task.normalization == "none":
        return volume
    return replace(volume, voxels=normalized(volume.voxels, task.intensity_window))


def check_size(shape_zyx: tuple[int, ...], voxel_bytes: int) -> None:
    """Raises InputError for more than `MAX_VOXELS`, or more than this machine's memory holds."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    voxels, most = math.prod(shape_zyx), min(MAX_VOXELS, memory // voxel_bytes)
    if voxels > most:
        shape = " x ".join(map(str, reversed(shape_zyx)))
        found = f"{shape} voxels, which would take {voxels * voxel_bytes / 2**30:,.1f} GiB"
        remedy = "Check the spacing of the image, and that of the task."
        raise InputError("volume on the task's grid", f"at most {most} voxels", found, remedy)


def from_target_grid(array_zyx: np.ndarray, grid: TargetGrid, *, label: bool = True) -> np.ndarray:
    """Converts an array [z, y, x] of `grid.shape_zyx` back to the grid and file order of the input.

    Label values take the nearest voxel; other values are interpolated linearly, as float32. The
    first axis of the result is contiguous. Raises InputError for an array of another shape.
    """
    if tuple(array_zyx.shape) != grid.shape_zyx:
        raise InputError("array", f"shape (z, y, x) {grid.shape_zyx}", tuple(array_zyx.shape))
    shape = tuple(grid.input_shape[axis] for axis in reversed(grid.axes))
    target = (grid.spacing_mm[::-1], shape, _reoriented_spacing(grid))
    dtype = np.dtype(np.float32)
    array = nearest(array_zyx, *target) if label else linear(array_zyx, *target, dtype)
    return np.asfortranarray(array[_flips(grid)].transpose().transpose(np.argsort(grid.axes)))


def flips_to_memory_order(array: np.ndarray) -> tuple[slice, ...]:
    """Returns the index that flips axes with negative strides, to read memory forwards."""
    return tuple(slice(None, None, -1 if stride < 0 else 1) for stride in array.strides)


def contiguous(array: np.ndarray) -> np.ndarray:
    """Returns a small part of a volume in C order, without a copy if it already is."""
    # Copying in memory order and flipping the cached copy is several times as fast as reading
    # memory backwards.
    flips = flips_to_memory_order(array)
    return np.ascontiguousarray(np.ascontiguousarray(array[flips])[flips])


def count_labels(label: np.ndarray, classes: int) -> list[int]:
    """Returns the number of voxels of each value 0 to `classes` - 1 in a uint8 array."""
    # Comparing bytes a few times is several times as fast as a histogram of 64-bit integers.
    return [int(np.count_nonzero(label == value)) for value in range(classes)]


def count_labels_by_slice(label_zyx: np.ndarray, classes: int) -> np.ndarray:
    """Returns the number of voxels [slice, class] of a uint8 label map."""
    planes = (plane[flips_to_memory_order(plane)] for plane in label_zyx)
    return np.array([count_labels(plane, classes) for plane in planes])


def _triple(values: Iterable[T]) -> tuple[T, T, T]:
    x, y, z = values
    return x, y, z


def _reoriented_spacing(grid: TargetGrid) -> tuple[float, ...]:
    return tuple(grid.input_spacing_mm[axis] for axis in reversed(grid.axes))


def _flips(grid: TargetGrid) -> tuple[slice, ...]:
    return tuple(slice(None, None, -1 if flip else 1) for flip in reversed(grid.flipped))
