"""Reformatted planes of a case, chosen by their content, in radiological convention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Directions that point right or up in a picture: patient's left at the right.
_TO_THE_RIGHT, _UPWARD = "LPI", "SAR"
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
_PLANES = {"R": "sagittal", "L": "sagittal", "A": "coronal", "P": "coronal"}


@dataclass(frozen=True)
class Plane:
    """One plane through a case; row 0 is at the bottom.

    Attributes:
      name: direction and slice number.
      image: raw intensities [row, column].
      labels: label values [row, column] of the prediction and, if there is one, the reference.
      size_mm: extent (width, height).
      letters: anatomical directions at the left, right, bottom and top edges.
    """

    name: str
    image: np.ndarray
    labels: Sequence[np.ndarray]
    size_mm: tuple[float, float]
    letters: tuple[str, str, str, str]


def slices_to_show(labels: Sequence[np.ndarray], classes: int, count: int) -> list[int]:
    """Returns up to `count` slices, spread over the content of label maps [z, y, x].

    Every class and the disagreement with the reference have the same weight, whatever their size.
    """
    highest = np.maximum(labels[0], labels[-1])
    contents = [highest == value for value in range(1, classes)]
    contents.append(labels[0] != labels[-1])
    areas = np.array([content.sum(axis=(1, 2)) for content in contents], np.float64)
    shares = areas / np.maximum(areas.sum(axis=1, keepdims=True), 1)
    weight = shares.sum(axis=0)
    if not weight.any():
        weight = np.ones(len(highest))
    middles = (np.arange(count) + 0.5) / count
    found = np.searchsorted(np.cumsum(weight) / weight.sum(), middles)
    return sorted({int(min(z, len(weight) - 1)) for z in found})


def focus_voxel(labels: Sequence[np.ndarray], classes: int) -> tuple[int, ...]:
    """Returns the z, y, x whose planes hold most of the last class that exists, or the centre."""
    highest = np.maximum(labels[0], labels[-1])
    for value in range(classes - 1, 0, -1):
        mask = highest == value
        if mask.any():
            others = ((1, 2), (0, 2), (0, 1))
            return tuple(int(mask.sum(axis=axes).argmax()) for axes in others)
    return tuple(size // 2 for size in highest.shape)


def reformatted_plane(
    arrays: Sequence[np.ndarray],
    axis: int,
    index: int,
    region: tuple[slice, ...],
    spacing_mm: tuple[float, float, float],
    orientation: str,
) -> Plane:
    """Returns the plane at an index of an axis (0, 1, 2 for z, y, x), turned upright.

    Args:
      arrays: image and label maps [z, y, x].
      axis: perpendicular to the plane.
      index: position along that axis.
      region: part of the arrays to show; ignored along `axis`.
      spacing_mm: voxel spacing (x, y, z).
      orientation: direction in which x, y and z grow, as in "RAS".
    """
    where = tuple(index if other == axis else region[other] for other in range(3))
    rows, columns = (2 - other for other in range(3) if other != axis)
    right, up = orientation[columns], orientation[rows]
    flip_columns, flip_rows = right not in _TO_THE_RIGHT, up not in _UPWARD
    steps = slice(None, None, -1 if flip_rows else 1), slice(None, None, -1 if flip_columns else 1)
    image, *labels = (array[where][steps] for array in arrays)
    right = _OPPOSITE[right] if flip_columns else right
    up = _OPPOSITE[up] if flip_rows else up
    height, width = image.shape
    direction = _PLANES.get(orientation[2 - axis], "axial")
    return Plane(
        name=f"{direction} {index + 1} of {arrays[0].shape[axis]}",
        image=image,
        labels=labels,
        size_mm=(width * spacing_mm[columns], height * spacing_mm[rows]),
        letters=(_OPPOSITE[right], right, _OPPOSITE[up], up),
    )
