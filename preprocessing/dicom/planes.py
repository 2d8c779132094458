"""Where a frame of a DICOM image lies and how its values are scaled: from functional groups or the header."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preprocessing.dicom.header import Image, numbers, sequence_item, text
from preprocessing.errors import InputError

# HU of padded CT pixels, which lie outside the scanner's circle: air, below every tissue.
AIR_HU = -1024
# Padding values whose HU a tissue could have can't be told from it, and are left.
TISSUE_HU = (-1000, 3071)
# Shares by which numbers of planes of one stack may differ: written with few digits.
SAME_PLANE = 1e-3


@dataclass(frozen=True)
class Plane:
    """Where a frame lies; None what its header doesn't say.

    Attributes:
      position_mm: centre of the first pixel, LPS.
      orientation: directions of rows and columns, six cosines, LPS.
      pixel_spacing_mm: between rows, then between columns.
      step_mm: the spacing between slices that the header claims, or else their thickness.
    """

    position_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing_mm: tuple[float, ...] | None
    step_mm: float | None


def plane_of(image: Image, frame: int = 0) -> Plane:
    """Returns where a frame lies.

    Raises:
      InputError: damaged numbers, or a spacing that is not positive.
    """
    spacing = _numbers(image, frame, "PixelMeasuresSequence", "PixelSpacing", 2)
    if spacing is None:
        spacing = numbers(image.header, "ImagerPixelSpacing", 2, image.shown)
    if spacing is not None and min(spacing) <= 0:
        raise InputError(image.shown, "a positive PixelSpacing", f"{spacing[0]:g}, {spacing[1]:g}")
    steps = [
        _numbers(image, frame, "PixelMeasuresSequence", keyword, 1)
        for keyword in ("SpacingBetweenSlices", "SliceThickness")
    ]
    step = next((abs(step[0]) for step in steps if step is not None and step[0]), None)
    return Plane(
        _numbers(image, frame, "PlanePositionSequence", "ImagePositionPatient", 3),
        _numbers(image, frame, "PlaneOrientationSequence", "ImageOrientationPatient", 6),
        spacing,
        step,
    )


def scaling_of(image: Image, frame: int = 0) -> tuple[float, float]:
    """Returns slope and intercept of a frame, 1 and 0 where the header has none.

    Raises:
      InputError: damaged numbers, or a slope of 0.
    """
    group = "PixelValueTransformationSequence"
    slope = _numbers(image, frame, group, "RescaleSlope", 1) or (1.0,)
    intercept = _numbers(image, frame, group, "RescaleIntercept", 1) or (0.0,)
    if slope[0] == 0:
        raise InputError(image.shown, "a RescaleSlope other than 0", 0)
    return slope[0], intercept[0]


def is_ct(image: Image) -> bool:
    """Returns whether an image's values are Hounsfield units."""
    return text(image.header, "Modality") == "CT"


def alike(one: Sequence[float] | None, other: Sequence[float] | None) -> bool:
    """Returns whether two orientations or spacings are the same but for rounding."""
    if one is None or other is None:
        return one is other
    return bool(np.allclose(one, other, rtol=SAME_PLANE, atol=SAME_PLANE))


def _numbers(
    image: Image, frame: int, group: str, keyword: str, count: int
) -> tuple[float, ...] | None:
    """Returns numbers from the frame's own functional group, the shared one, or the header itself."""
    header, shown = image.header, image.shown
    for groups, index in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        item = sequence_item(header, groups, shown, index)
        inner = None if item is None else sequence_item(item, group, shown)
        found = None if inner is None else numbers(inner, keyword, count, shown)
        if found is not None:
            return found
    return numbers(header, keyword, count, shown)
