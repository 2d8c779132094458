"""Brings a label map onto the grid of its image, where both provably show the same place."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from preprocessing.errors import InputError, refuse_unless_allowed
from preprocessing.volumes.geometry import Volume, axis_codes, checked_affine, spacing_mm
from preprocessing.volumes.nifti_bytes import check_shape

# Corners of an image and its label map may differ by this share of a voxel.
SAME_GRID = 0.1


def on_grid(label: Volume, image: Volume, where: object, *, allow: Collection[str] = ()) -> Volume:
    """Returns a label map with exactly the shape and the affine of its image.

    Axes that are stored in another order or direction are turned to those of the image. Of the image
    only the grid is used. Raises InputError for another shape or place; `label_geometry` in `allow`
    takes a label map of the image's shape voxel by voxel, whatever its affine.
    """
    shape = image.voxels.shape
    try:
        affine = checked_affine(label.affine, where)
    except InputError as error:
        check_shape(label.voxels.shape, shape, where)
        expected, found = error.expected, error.found
    else:
        voxels, turned = _turned(label.voxels, affine, image.affine)
        limit_mm = SAME_GRID * min(spacing_mm(image.affine))
        if voxels.shape == shape and _apart_mm(turned, image) <= limit_mm:
            return Volume(voxels, image.affine)
        check_shape(label.voxels.shape, shape, where)
        expected = "a label map with the image's affine"
        grids = f"image {_grid_text(image.affine)}, label {_grid_text(affine)}"
        found = f"corners up to {_apart_mm(affine, image):.4g} mm apart ({grids})"
    refuse_unless_allowed("label_geometry", allow, where, expected, found)
    return Volume(label.voxels, image.affine)


def _turned(
    voxels: np.ndarray, affine: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a view of voxels, and its affine, with axes along those of the affine `target`."""
    steps = np.linalg.solve(target[:3, :3], affine[:3, :3])
    axes = np.abs(steps).argmax(axis=1)
    if sorted(axes) != [0, 1, 2]:
        return voxels, affine
    turn = np.diag([0.0, 0.0, 0.0, 1.0])
    voxels = voxels.transpose(axes)
    for axis, own in enumerate(axes):
        turn[own, axis] = np.sign(steps[axis, own])
        if turn[own, axis] < 0:
            turn[own, 3] = voxels.shape[axis] - 1
            voxels = np.flip(voxels, axis)
    return voxels, affine @ turn


def _apart_mm(affine: np.ndarray, image: Volume) -> float:
    """Returns the largest distance between the corners of an image and those with another affine."""
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in image.voxels.shape), [1]), -1)
    apart = (corners.reshape(-1, 4) @ (image.affine - affine).T)[:, :3]
    return float(np.linalg.norm(apart, axis=1).max())


def _grid_text(affine: np.ndarray) -> str:
    origin = ", ".join(f"{v:g}" for v in affine[:3, 3])
    spacing = " x ".join(f"{v:.4g}" for v in spacing_mm(affine))
    return f"{axis_codes(affine)} {spacing} mm from {origin}"
