"""The geometry of DICOM frames: their planes, and the regular grid of a stack of planes.

DICOM coordinates are LPS mm (left, posterior, superior); affines are RAS+. The order of slices and
the step between them are derived from positions alone, never from file names or from spacings or
tilts that the header states.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from preprocessing.dicom.header import Image, functional_groups, numbers
from preprocessing.errors import InputError, refuse_unless_allowed

# Relative tolerance for orientations and spacings within one stack, for values with few digits.
SAME_PLANE = 1e-3
# Slices closer than this share of the mean step have the same position.
SAME_POSITION = 0.02
# Maximum distance of a slice from its position in even steps, as a share of the step; positions
# rounded to 0.1 mm stay within it.
UNEVEN = 0.1
# Maximum angle between the normal and the stacking direction; smaller ones move a slice by less
# than a hundredth of its distance.
TILT_DEGREES = 0.5
# Maximum deviation of the orientation's cosines from right angle and unit length.
SKEW = 1e-3

T = TypeVar("T")


@dataclass(frozen=True)
class Plane:
    """Position of a frame in LPS; None for what the header does not state."""

    position_mm: tuple[float, ...] | None  # centre of the first pixel
    orientation: tuple[float, ...] | None  # directions of rows and columns, six cosines
    pixel_spacing_mm: tuple[float, ...] | None  # between rows, then between columns
    step_mm: float | None  # SpacingBetweenSlices, or else SliceThickness


def plane_of(image: Image, frame: int = 0) -> Plane:
    """Returns the plane of a frame; raises InputError for damaged numbers or a spacing <= 0."""
    spacing = frame_numbers(image, frame, "PixelMeasuresSequence", "PixelSpacing", 2)
    if spacing is None:
        spacing = numbers(image.header, "ImagerPixelSpacing", 2, image.name)
    if spacing is not None and min(spacing) <= 0:
        raise InputError(image.name, "a positive PixelSpacing", f"{spacing[0]:g}, {spacing[1]:g}")
    steps = [
        frame_numbers(image, frame, "PixelMeasuresSequence", keyword, 1)
        for keyword in ("SpacingBetweenSlices", "SliceThickness")
    ]
    return Plane(
        frame_numbers(image, frame, "PlanePositionSequence", "ImagePositionPatient", 3),
        frame_numbers(image, frame, "PlaneOrientationSequence", "ImageOrientationPatient", 6),
        spacing,
        next((abs(step[0]) for step in steps if step and step[0]), None),
    )


def frame_numbers(
    image: Image, frame: int, group: str, keyword: str, count: int
) -> tuple[float, ...] | None:
    """Returns numbers of a frame: from its own functional group, the shared one, or the header.

    Raises as `header.numbers`.
    """
    for item in functional_groups(image.header, frame, group, image.name):
        found = numbers(item, keyword, count, image.name)
        if found is not None:
            return found
    return None


def differences(one: Plane, other: Plane) -> list[str]:
    """Returns which elements of two planes, orientation and spacing, differ beyond rounding."""
    pairs = {
        "ImageOrientationPatient": (one.orientation, other.orientation),
        "PixelSpacing": (one.pixel_spacing_mm, other.pixel_spacing_mm),
    }
    return [
        keyword
        for keyword, (a, b) in pairs.items()
        if (a is not b if a is None or b is None else not np.allclose(a, b, SAME_PLANE, SAME_PLANE))
    ]


def along_normal(planes: Sequence[Plane]) -> np.ndarray | None:
    """Returns the places of planes of one orientation along their normal, mm; None if unknown."""
    positions = [plane.position_mm for plane in planes]
    if None in positions or planes[0].orientation is None:
        return None
    row, column = np.reshape(planes[0].orientation, (2, 3))
    return np.array(positions) @ np.cross(row, column)


def grouped(items: Sequence[T], alike: Callable[[T, T], bool]) -> list[list[T]]:
    """Groups items: each joins the first group whose first item is alike."""
    groups: list[list[T]] = []
    for item in items:
        group = next((group for group in groups if alike(group[0], item)), None)
        if group is None:
            groups.append([item])
        else:
            group.append(item)
    return groups


def plane_axes(orientation: Sequence[float], where: object) -> np.ndarray:
    """Returns the directions of rows, columns and normal as the rows of a 3x3 array, LPS.

    Raises InputError if the ImageOrientationPatient is not two orthogonal unit vectors.
    """
    row, column = np.asarray(orientation, np.float64).reshape(2, 3)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > SKEW or abs(row @ column) > SKEW:
        values = ", ".join(f"{value:g}" for value in orientation)
        raise InputError(where, "an ImageOrientationPatient of two unit vectors", values)
    row, column = row / lengths[0], column / lengths[1]
    return np.stack([row, column, np.cross(row, column)])


def stack_affine(
    axes: np.ndarray, pixel_spacing_mm: Sequence[float], first_mm: np.ndarray, step_mm: np.ndarray
) -> np.ndarray:
    """Returns the 4x4 affine from voxels [x, y, z] (column, row, slice) to RAS+ mm.

    DICOM PS3.3, equation C.7.6.2.1-1, with the step between slices as third column. `axes` are from
    `plane_axes`; the spacing is between rows, then columns; position and step are in LPS mm.
    """
    between_rows, between_columns = pixel_spacing_mm
    columns = [axes[0] * between_columns, axes[1] * between_rows, step_mm, first_mm]
    affine = np.eye(4)
    # DICOM is LPS. Adding 0.0 removes negative zeros.
    affine[:3] = (np.stack(columns) * [-1.0, -1.0, 1.0]).T + 0.0
    return affine


def stack_slices(
    positions_mm: np.ndarray,
    axes: np.ndarray,
    where: object,
    *,
    single_step_mm: float,
    allow: Collection[str] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorts slices by their position along the normal.

    Takes the ImagePositionPatient of each slice [n, 3] in LPS mm, `axes` from `plane_axes`, and the
    step of a single slice. Returns the indices of the kept slices along the normal (of duplicates
    the first one), the first one's position, and the step between slices, LPS mm. Raises InputError
    for duplicates, uneven steps or a gantry tilt that `allow` does not name.
    """
    along = positions_mm @ axes[2]
    order = _without_duplicates(np.argsort(along, kind="stable"), along, where, allow)
    positions = positions_mm[order]
    if len(order) == 1:
        return order, positions[0], axes[2] * single_step_mm
    step = (positions[-1] - positions[0]) / (len(order) - 1)
    even = positions[0] + np.arange(len(positions))[:, None] * step
    deviation_mm = np.linalg.norm(positions - even, axis=1).max()
    if deviation_mm > UNEVEN * np.linalg.norm(step):
        steps = np.diff(along[order])
        usual = float(np.median(steps))
        missing = int(np.rint(steps / usual - 1).clip(0).sum()) if usual > 0 else 0
        found = f"steps from {steps.min():.4g} to {steps.max():.4g} mm"
        if missing:
            found += f" (usual {usual:.4g} mm: about {missing} slices are missing)"
        refuse_unless_allowed("gaps", allow, where, "slices at even steps along a line", found)
    cosine = np.clip(abs(step @ axes[2]) / np.linalg.norm(step), 0, 1)
    angle = float(np.degrees(np.arccos(cosine)))
    if angle > TILT_DEGREES:
        expected = f"slices stacked along their normal to within {TILT_DEGREES} degrees"
        found = f"a gantry tilt of {angle:.1f} degrees"
        refuse_unless_allowed("gantry_tilt", allow, where, expected, found)
    return order, positions[0], step


def _without_duplicates(
    order: np.ndarray, along: np.ndarray, where: object, allow: Collection[str]
) -> np.ndarray:
    """Returns the order with one slice per position: the first one given."""
    steps = np.diff(along[order])
    # A lower bound of the usual step, as duplicates count as slices.
    mean_step = float(steps.sum()) / max(1, len(order) - 1)
    new = np.concatenate([[True], (steps > SAME_POSITION * mean_step) & (steps > 0)])
    if new.all():
        return order
    first = along[order][~new][0]
    found = f"{int(np.sum(~new))} too many, the first at {first:.4g} mm along the normal"
    refuse_unless_allowed("duplicate_slices", allow, where, "one slice per position", found)
    groups = np.split(order, np.flatnonzero(new)[1:])
    return np.array([group.min() for group in groups])
