"""Planes through a case, chosen by their content and turned the way radiologists look at them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Room left around the foreground.
MARGIN_MM = 25.0

# Directions that point right or up in a picture: radiological convention, patient's left at right.
_TO_THE_RIGHT, UPWARD = "LPI", "SAR"
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
_PLANES = {"R": "sagittal", "L": "sagittal", "A": "coronal", "P": "coronal"}


@dataclass(frozen=True)
class Cut:
    """One plane through a case, turned the way it is looked at; row 0 is at the bottom.

    Attributes:
      name: which plane, and where.
      image: raw intensities [row, column].
      prediction: label values [row, column].
      reference: label values [row, column], or None.
      size_mm: extent (width, height).
      letters: anatomical directions at the left, right, bottom and top edges.
    """

    name: str
    image: np.ndarray
    prediction: np.ndarray
    reference: np.ndarray | None
    size_mm: tuple[float, float]
    letters: tuple[str, str, str, str]


def slices_to_show(
    prediction: np.ndarray, reference: np.ndarray | None, classes: int, count: int
) -> list[int]:
    """Returns up to `count` slices, spread over where the content is.

    Every class and the disagreement with the reference count alike, however few voxels they have.
    """
    labels = prediction if reference is None else np.maximum(prediction, reference)
    contents = [labels == value for value in range(1, classes)]
    if reference is not None:
        contents.append(prediction != reference)
    areas = np.array([content.sum(axis=(1, 2)) for content in contents], np.float64)
    shares = areas / np.maximum(areas.sum(axis=1, keepdims=True), 1)
    weight = shares.sum(axis=0)
    if not weight.any():
        weight = np.ones(len(prediction))
    middles = (np.arange(count) + 0.5) / count
    found = np.searchsorted(np.cumsum(weight) / weight.sum(), middles)
    return sorted({int(min(z, len(weight) - 1)) for z in found})


def focus_voxel(
    prediction: np.ndarray, reference: np.ndarray | None, classes: int
) -> tuple[int, int, int]:
    """Returns the z, y, x whose planes hold most of the last class there is, or the centre."""
    labels = prediction if reference is None else np.maximum(prediction, reference)
    for value in range(classes - 1, 0, -1):
        mask = labels == value
        if mask.any():
            others = ((1, 2), (0, 2), (0, 1))
            return tuple(int(np.argmax(mask.sum(axis=axes))) for axes in others)
    return tuple(size // 2 for size in labels.shape)


def foreground_box(
    prediction: np.ndarray, reference: np.ndarray | None, spacing_mm: tuple[float, float, float]
) -> tuple[slice, slice, slice]:
    """Returns the box around all foreground with a margin; everything if there is none."""
    mask = prediction > 0 if reference is None else (prediction > 0) | (reference > 0)
    if not mask.any():
        return (slice(None),) * 3
    box = []
    for axis, step_mm in enumerate(reversed(spacing_mm)):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        margin = int(np.ceil(MARGIN_MM / step_mm))
        box.append(slice(max(0, int(found[0]) - margin), int(found[-1]) + margin + 1))
    return tuple(box)


def cut_plane(
    arrays: tuple[np.ndarray | None, ...],
    axis: int,
    index: int,
    box: tuple[slice, slice, slice],
    spacing_mm: tuple[float, float, float],
    orientation: str,
) -> Cut:
    """Cuts a plane out of a case and turns it upright.

    Args:
      arrays: image, prediction and reference [z, y, x]; the reference may be None.
      axis: 0, 1 or 2: the plane is perpendicular to z, y or x.
      index: where along that axis.
      box: part of the arrays to show; ignored along `axis`.
      spacing_mm: voxel spacing (x, y, z).
      orientation: direction in which x, y and z grow, as in "RAS".
    """
    where = tuple(index if other == axis else box[other] for other in range(3))
    planes = [None if array is None else array[where] for array in arrays]
    rows, columns = (2 - other for other in range(3) if other != axis)
    right, up = orientation[columns], orientation[rows]
    if right not in _TO_THE_RIGHT:
        planes = [None if plane is None else plane[:, ::-1] for plane in planes]
        right = _OPPOSITE[right]
    if up not in UPWARD:
        planes = [None if plane is None else plane[::-1] for plane in planes]
        up = _OPPOSITE[up]
    height, width = planes[0].shape
    plane = _PLANES.get(orientation[2 - axis], "axial")
    size = arrays[0].shape[axis]
    return Cut(
        name=f"{plane} {index + 1} of {size}",
        image=planes[0],
        prediction=planes[1],
        reference=planes[2],
        size_mm=(width * spacing_mm[columns], height * spacing_mm[rows]),
        letters=(_OPPOSITE[right], right, _OPPOSITE[up], up),
    )
