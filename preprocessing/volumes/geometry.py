"""Volumes and their geometry: x, y, z in mm on disk, z, y, x in tensors, and the exact way back.

The axis contract of the project stands here. On disk and in public functions about geometry, voxels
are [x, y, z] in the order of the file, and a 4x4 affine takes voxel indices to RAS+ millimetres
(x towards the patient's right, y anterior, z superior: nibabel's convention). `to_target_grid` is the
one place that turns such a volume into a tensor's [z, y, x], z being the slice axis; `from_target_grid`
is its way back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel import orientations

from preprocessing.errors import InputError
from preprocessing.tasks import Task
from preprocessing.volumes.resampling import linear, nearest

# An axis is the slice axis if its spacing exceeds both others by more than this factor.
ANISOTROPY = 1.1
# No voxel is smaller or larger than this: such an affine is damaged.
SPACING_LIMITS_MM = (1e-4, 1e5)
# Spacings that differ by less than this share are one and the same: nothing is resampled.
SAME_SPACING = 1e-3


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels in the order of their file, and where they lie in the patient.

    Attributes:
      voxels: array [x, y, z].
      affine: 4x4 float64, voxel indices to RAS+ mm.
    """

    voxels: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class TargetGrid:
    """The grid that a task's tensors live on, and what leads back to the input's own grid.

    Attributes:
      shape_zyx: size of the tensor grid, z being the slice axis.
      spacing_mm: voxel spacing (x, y, z) of the tensor grid.
      affine: tensor indices in x, y, z order to RAS+ mm, four rows of four numbers.
      input_shape: size of the input's grid, in the order of its file.
      input_spacing_mm: voxel spacing of the input's grid, in the order of its file.
      axes: for each of the tensor's x, y, z the input axis that it runs along.
      flipped: for each of the tensor's x, y, z whether it runs against that input axis.
    """

    shape_zyx: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: tuple[tuple[float, ...], ...]
    input_shape: tuple[int, int, int]
    input_spacing_mm: tuple[float, float, float]
    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]


def checked_affine(affine: np.ndarray, where: object) -> np.ndarray:
    """Returns the affine as float64.

    Raises:
      InputError: not a 4x4 matrix, not finite, or not invertible.
    """
    affine = np.asarray(affine, np.float64)
    if affine.shape == (4, 4) and np.all(np.isfinite(affine)) and _has_three_axes(affine):
        return affine
    rows = "; ".join(" ".join(f"{v:g}" for v in row) for row in np.atleast_2d(affine))
    raise InputError(where, "a finite, invertible 4x4 affine", f"[{rows}]")


def _has_three_axes(affine: np.ndarray) -> bool:
    """Returns whether a finite affine is invertible: each voxel axis has a direction of its own."""
    shortest, longest = SPACING_LIMITS_MM
    spacing = spacing_mm(np.clip(affine, -2 * longest, 2 * longest))
    if not shortest <= min(spacing) <= max(spacing) <= longest:
        return False
    return bool(np.isfinite(orientations.io_orientation(affine)).all())


def spacing_mm(affine: np.ndarray) -> tuple[float, float, float]:
    """Returns the voxel spacing in mm along the three voxel axes of a 4x4 affine."""
    columns = np.linalg.norm(np.asarray(affine, np.float64)[:3, :3], axis=0)
    return tuple(float(length) for length in columns)


def axis_codes(affine: np.ndarray) -> str:
    """Returns the direction of each voxel axis as letters, "LPS" for example."""
    return "".join(orientations.aff2axcodes(affine))


def slice_axis(canonical_spacing_mm: tuple[float, float, float]) -> int:
    """Returns the axis that slices are stacked along, from the spacing of the RAS+ axes x, y, z.

    It is the one axis that is clearly coarser than both others (`ANISOTROPY`). Where none is, as in
    isotropic volumes and in thin axial slices with coarser pixels, it is z.
    """
    for axis, spacing in enumerate(canonical_spacing_mm):
        others = [s for other, s in enumerate(canonical_spacing_mm) if other != axis]
        if spacing > ANISOTROPY * max(others):
            return axis
    return 2


def target_grid(shape: tuple[int, int, int], affine: np.ndarray, task: Task) -> TargetGrid:
    """Returns the grid of a task's tensors for an input grid.

    The axes are turned to RAS+ (an oblique grid keeps its rotation: axes are only permuted and
    flipped), the slice axis comes last, and the spacing follows the task's resampling policy. A
    resampled grid has the task's spacing exactly and the centre of the input.

    Args:
      shape: size of the input grid, in the order of its file.
      affine: 4x4, input voxel indices to RAS+ mm.
      task: whose `resampling` and `spacing_mm` are applied.

    Raises:
      InputError: the affine is not finite or not invertible.
    """
    affine = checked_affine(affine, "affine")
    # Rows: input axes; columns: the RAS+ axis each is closest to, and its direction.
    nearest = orientations.io_orientation(affine)
    canonical = [int(np.flatnonzero(nearest[:, 0] == axis)[0]) for axis in range(3)]
    input_spacing = spacing_mm(affine)
    last = slice_axis(tuple(input_spacing[axis] for axis in canonical))
    axes = tuple(canonical[axis] for axis in (*(a for a in range(3) if a != last), last))
    flipped = tuple(bool(nearest[axis, 1] < 0) for axis in axes)

    sizes, spacings = [], []
    for position, axis in enumerate(axes):
        size, spacing = shape[axis], input_spacing[axis]
        target = _target_spacing(task, position)
        if target is not None and abs(spacing / target - 1) > SAME_SPACING:
            size, spacing = max(1, int(np.floor(size * spacing / target + 0.5))), float(target)
        sizes.append(int(size))
        spacings.append(spacing)

    to_input = np.zeros((4, 4))
    to_input[3, 3] = 1
    for position, axis in enumerate(axes):
        step = spacings[position] / input_spacing[axis] * (-1 if flipped[position] else 1)
        to_input[axis, position] = step
        to_input[axis, 3] = (shape[axis] - 1) / 2 - step * (sizes[position] - 1) / 2
    return TargetGrid(
        shape_zyx=tuple(reversed(sizes)),
        spacing_mm=tuple(spacings),
        affine=tuple(tuple(float(v) for v in row) for row in affine @ to_input),
        input_shape=tuple(int(size) for size in shape),
        input_spacing_mm=input_spacing,
        axes=axes,
        flipped=flipped,
    )


def reoriented(voxels: np.ndarray, space: TargetGrid) -> np.ndarray:
    """Returns a view [z, y, x] of voxels in file order: turned to RAS+, but not resampled."""
    return voxels.transpose(space.axes).transpose()[_flips(space)]


def to_target_grid(
    volume: Volume, task: Task, *, label: bool = False
) -> tuple[np.ndarray, TargetGrid]:
    """Turns a volume into the array that a task's tensors are cut from.

    Nothing is copied where the task keeps the grid and the voxels have the stored dtype already.
    Images are resampled linearly, after a Gaussian that keeps finer detail from aliasing where the
    new grid is coarser; labels take the nearest voxel.

    Args:
      volume: voxels [x, y, z] and affine.
      task: gives the resampling policy and the image's dtype.
      label: whether the voxels are label values.

    Returns:
      The array [z, y, x], in the task's `image_dtype` (rounded, and clipped to its range), uint8
      for labels; and the grid it lives on.

    Raises:
      InputError: the affine is not invertible, or the volume has not three axes.
    """
    if volume.voxels.ndim != 3:
        raise InputError("volume", "three axes x, y, z", f"shape {volume.voxels.shape}")
    space = target_grid(volume.voxels.shape, volume.affine, task)
    array = reoriented(volume.voxels, space)
    dtype = np.dtype(np.uint8) if label else np.dtype(task.image_dtype)
    turned_spacing = _turned_spacing(space)
    if label:
        resampled = nearest(array, turned_spacing, space.shape_zyx, space.spacing_mm[::-1])
        return resampled.astype(dtype, copy=False), space
    return linear(array, turned_spacing, space.shape_zyx, space.spacing_mm[::-1], dtype), space


def from_target_grid(array_zyx: np.ndarray, space: TargetGrid, *, label: bool = True) -> np.ndarray:
    """Takes an array on a task's grid back to the input's own grid.

    Args:
      array_zyx: [z, y, x] of `space.shape_zyx`; label values, or a map of real numbers.
      space: what `to_target_grid` returned with the input.
      label: True takes the nearest voxel, False interpolates linearly (float32).

    Returns:
      Voxels of `space.input_shape` in the order of the input's file, the first axis contiguous.

    Raises:
      InputError: the array is not of the grid's shape.
    """
    if tuple(array_zyx.shape) != space.shape_zyx:
        raise InputError("array", f"shape (z, y, x) {space.shape_zyx}", tuple(array_zyx.shape))
    turned_shape = tuple(space.input_shape[axis] for axis in reversed(space.axes))
    grids = (array_zyx, space.spacing_mm[::-1], turned_shape, _turned_spacing(space))
    array = nearest(*grids) if label else linear(*grids, np.dtype(np.float32))
    straight = array[_flips(space)].transpose()
    return np.asfortranarray(straight.transpose(np.argsort(space.axes)))


def forwards(array: np.ndarray) -> tuple[slice, ...]:
    """Returns the index that turns every axis of a view which runs backwards through memory."""
    return tuple(slice(None, None, -1 if stride < 0 else 1) for stride in array.strides)


def contiguous(array: np.ndarray) -> np.ndarray:
    """Returns an array in C order, itself if it is so already.

    For small pieces of turned volumes: a forward copy that is turned after it lies in the processor's
    cache is several times as fast as one that reads memory backwards.
    """
    flips = forwards(array)
    return np.ascontiguousarray(np.ascontiguousarray(array[flips])[flips])


def count_labels(label: np.ndarray, classes: int) -> list[int]:
    """Returns how many voxels of a uint8 array have each of the values 0 to `classes` - 1."""
    # A few comparisons of bytes are several times as fast as a histogram of 64-bit numbers.
    return [int(np.count_nonzero(label == value)) for value in range(classes)]


def count_labels_by_slice(label_zyx: np.ndarray, classes: int) -> np.ndarray:
    """Returns the number of voxels [slice, class] of a uint8 label map."""
    # Counts don't depend on flips, and reading memory forwards is several times as fast.
    return np.array([count_labels(each[forwards(each)], classes) for each in label_zyx])


def _target_spacing(task: Task, position: int) -> float | None:
    if task.resampling == "keep" or (task.resampling == "in_plane" and position == 2):
        return None
    return task.spacing_mm[position]


def _turned_spacing(space: TargetGrid) -> tuple[float, ...]:
    return tuple(space.input_spacing_mm[axis] for axis in reversed(space.axes))


def _flips(space: TargetGrid) -> tuple[slice, ...]:
    return tuple(slice(None, None, -1 if flip else 1) for flip in reversed(space.flipped))
