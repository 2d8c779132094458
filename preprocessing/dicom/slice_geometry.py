"""From the positions of slices to one regular grid: their order, its affine, and what is irregular.

DICOM's millimetres run to the patient's left, posterior and superior (LPS), the project's to right,
anterior and superior (RAS+). Positions decide, never names or numbers of files, nor a spacing or a
tilt that a header claims beside them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from preprocessing.allowances import (
    DuplicateSliceError,
    GantryTiltError,
    GapError,
    refuse_unless_allowed,
)
from preprocessing.errors import InputError

# Slices closer than this share of the usual step lie in one place.
SAME_PLACE = 0.02
# How far a slice may lie from its place in a stack of even steps, as a share of the step; positions
# rounded to 0.1 mm stay within it.
UNEVEN = 0.1
# Between the slices' normal and the direction they are stacked in; what is below moves a slice by less
# than a hundredth of its distance.
TILT_DEGREES = 0.5
# How far cosines of an orientation may be from right angles and unit length.
SKEW = 1e-3

_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def plane_axes(orientation: Sequence[float], where: object) -> np.ndarray:
    """Returns the directions of rows, columns and normal [3, 3], one a row, from ImageOrientation.

    Raises:
      InputError: not two unit vectors at a right angle.
    """
    row, column = np.asarray(orientation, np.float64).reshape(2, 3)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > SKEW or abs(row @ column) > SKEW:
        values = ", ".join(f"{value:g}" for value in orientation)
        raise InputError(where, "an ImageOrientationPatient of two unit vectors", values)
    row, column = row / lengths[0], column / lengths[1]
    return np.stack([row, column, np.cross(row, column)])


def stack_affine(
    axes: np.ndarray,
    pixel_spacing_mm: Sequence[float],
    first_mm: Sequence[float],
    step_mm: Sequence[float],
) -> np.ndarray:
    """Returns the 4x4 affine from voxels [x, y, z] (column, row, slice) to RAS+ mm.

    DICOM PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1, with the slices' step as third column.

    Args:
      axes: from `plane_axes`.
      pixel_spacing_mm: between rows, then between columns, as in PixelSpacing.
      first_mm: centre of the first slice's first pixel, LPS.
      step_mm: from slice to slice, LPS.
    """
    between_rows, between_columns = pixel_spacing_mm
    columns = [axes[0] * between_columns, axes[1] * between_rows, step_mm, first_mm]
    affine = np.eye(4)
    # Without the negative zeros.
    affine[:3] = (np.stack(columns) * _LPS_TO_RAS).T + 0.0
    return affine


def stack_slices(
    positions_mm: np.ndarray,
    axes: np.ndarray,
    where: object,
    *,
    single_step_mm: float,
    allow: Collection[str] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Orders slices by their position along the normal.

    Args:
      positions_mm: ImagePositionPatient of each slice [n, 3], LPS; of slices in one place the first
        given stays where duplicates are allowed.
      axes: from `plane_axes`.
      where: the series, for messages.
      single_step_mm: the step of a single slice.
      allow: names of `ALLOWANCES`.

    Returns:
      Indices of the slices to take, along the normal; the first one's position; the step from slice
      to slice, LPS mm.

    Raises:
      DuplicateSliceError, GapError, GantryTiltError: unless allowed.
    """
    along = positions_mm @ axes[2]
    order = np.argsort(along, kind="stable")
    order = _without_duplicates(order, along, where, allow)
    places = positions_mm[order]
    if len(order) == 1:
        return order, places[0], axes[2] * single_step_mm
    step = (places[-1] - places[0]) / (len(order) - 1)
    _check_even(places, step, axes, where, allow)
    cosine = np.clip(abs(step @ axes[2]) / np.linalg.norm(step), 0, 1)
    angle = float(np.degrees(np.arccos(cosine)))
    if angle > TILT_DEGREES:
        refuse_unless_allowed(
            GantryTiltError(
                where,
                f"slices stacked along their normal to within {TILT_DEGREES} degrees",
                f"a gantry tilt of {angle:.1f} degrees",
            ),
            allow,
        )
    return order, places[0], step


def _without_duplicates(
    order: np.ndarray, along: np.ndarray, where: object, allow: Collection[str]
) -> np.ndarray:
    """Returns the order with one slice a place: the first in the order given."""
    steps = np.diff(along[order])
    extent = float(steps.sum())
    # The usual step, as if every other slice were a duplicate at worst.
    usual = extent / max(1, len(order) - 1)
    new = np.concatenate([[True], (steps > SAME_PLACE * usual) & (steps > 0)])
    if new.all():
        return order
    refuse_unless_allowed(
        DuplicateSliceError(
            where,
            "one slice in each place",
            f"{int(np.sum(~new))} too many, the first at {along[order][~new][0]:.4g} mm along the normal",
        ),
        allow,
    )
    groups = np.split(order, np.flatnonzero(new)[1:])
    return np.array([group.min() for group in groups])


def _check_even(
    places: np.ndarray,
    step: np.ndarray,
    axes: np.ndarray,
    where: object,
    allow: Collection[str],
) -> None:
    even = places[0] + np.arange(len(places))[:, None] * step
    step_mm = float(np.linalg.norm(step))
    away_mm = float(np.linalg.norm(places - even, axis=1).max())
    if away_mm <= UNEVEN * step_mm:
        return
    steps = np.abs(np.diff(places @ axes[2]))
    usual = float(np.median(steps))
    missing = int(np.rint(steps / usual - 1).clip(0).sum()) if usual > 0 else 0
    found = f"steps from {steps.min():.4g} to {steps.max():.4g} mm"
    if missing:
        found += f" (usual {usual:.4g} mm: about {missing} slices are missing)"
    refuse_unless_allowed(GapError(where, "slices at even steps along a line", found), allow)
