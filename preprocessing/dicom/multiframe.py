"""Reads DICOM as volumes; in particular multi-frame files: enhanced CT and tomosynthesis.

Headers of tomosynthesis are often incomplete. Defaults are: the orientation of an axial slice;
slices in file order, at even steps along their normal of SpacingBetweenSlices, else SliceThickness,
else `SLICE_MM`; a pixel spacing of ImagerPixelSpacing, else `PIXEL_MM`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

from preprocessing.dicom import geometry, pixels
from preprocessing.dicom.acquisitions import acquisitions, facts_of
from preprocessing.dicom.header import Image, read_image_header, text
from preprocessing.dicom.series import DEFAULTS, ReadOptions, read_series
from preprocessing.errors import InputError, SettingsError, refuse_unless_allowed
from preprocessing.volumes.geometry import Volume, checked_affine

# Steps between slices and pixels of a tomosynthesis whose header has none: those of BCS-DBT.
SLICE_MM = 1.0
PIXEL_MM = 0.085
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def read_dicom(path: str | os.PathLike, options: ReadOptions = DEFAULTS) -> Volume:
    """Reads a folder of slices (`series.read_series`) or a single file (`read_frames`)."""
    return (read_series if Path(path).is_dir() else read_frames)(path, options)


def read_frames(path: str | os.PathLike, options: ReadOptions = DEFAULTS) -> Volume:
    """Reads a multi-frame image as one volume.

    Voxels are [x, y, z] (column, row, frame), in file order wherever positions agree with it. CT is
    in HU as in `series.read_series`. Others are as stored in the file's dtype (rescaled if the
    header says so), with MONOCHROME1 inverted, and padding set to the lowest value.

    Given a view, an image of the other breast (`breast_side`) is rotated in-plane by 180 degrees,
    as in BCS-DBT's own reader (mazurowski-lab/duke-dbt-data); so is the affine, if the file has an
    orientation.

    Raises InputError for no image, a damaged or truncated one, a CT without its geometry, frames
    that do not form one regular volume (`preprocessing.errors.ALLOWANCES`), or, given a view, both
    edges equally bright; SettingsError for a view that begins with neither L nor R.
    """
    if options.view and options.view[0].upper() not in "LR":
        raise SettingsError("view", "a view that begins with L or R", repr(options.view))
    image = read_image_header(path, options.identifiers)
    places, affine, oriented = _geometry(image, options.allow)
    dtype = np.dtype(np.int16)
    if not _is_ct(image) and pixels.scaling_of(image) == (1.0, 0.0):
        dtype = np.dtype(f"{'i' if image.signed else 'u'}{image.bits_allocated // 8}")
    voxels = pixels.stacked(_values(image), places.tolist(), image.name, dtype)
    if options.view and _is_rotated(options.view, voxels[[0, -1]].T, image):
        voxels = voxels[::-1, ::-1]
        rotation = np.diag([-1.0, -1.0, 1.0, 1.0])
        rotation[:2, 3] = image.columns - 1, image.rows - 1
        # A default geometry is that of the rotated image.
        affine = affine @ rotation if oriented else affine
    return Volume(voxels, checked_affine(affine, image.name))


def frame_places(
    path: str | os.PathLike, options: ReadOptions = DEFAULTS
) -> tuple[np.ndarray, bool]:
    """Returns each frame's z in the volume of `read_frames` (negative: none), and whether it is rotated.

    Raises the errors of `read_frames`.
    """
    image = read_image_header(path, options.identifiers)
    places, _, _ = _geometry(image, options.allow)
    if not options.view:
        return places, False
    frames = (frame for frame, z in zip(_values(image), places, strict=True) if z >= 0)
    return places, _is_rotated(options.view, frames, image)


def breast_side(frames: Iterable[np.ndarray]) -> str:
    """Returns the side, "L" or "R", of the breast in frames [row, column] with bright tissue.

    The chest wall is at the brighter edge: "R" if the sum of the first column, over all frames, is
    below that of the last. Empty if the sums are equal. Laterality in BCS-DBT's headers is
    unreliable, and single frames may be blank.
    """
    left = right = 0.0
    for frame in frames:
        first, last = (frame[:, edge].astype(np.float64).sum() for edge in (0, -1))
        left, right = left + first, right + last
    return "" if left == right else "R" if left < right else "L"


def _is_ct(image: Image) -> bool:
    return text(image.header, "Modality") == "CT"


def _values(image: Image) -> Iterator[np.ndarray]:
    """Yields the frames [row, column] in the values of the volume."""
    for index, stored in enumerate(pixels.stored_frames([image])):
        if _is_ct(image):
            yield pixels.hounsfield(image, index, stored)
            continue
        lowest = -(2 ** (image.bits_stored - 1)) if image.signed else 0
        padding = pixels.padding_mask(image, stored)
        if text(image.header, "PhotometricInterpretation") == "MONOCHROME1":
            # Mirror the range of stored values: -1 - v if signed, else 2^bits - 1 - v.
            stored = (2**image.bits_stored - 1 + 2 * lowest - stored).astype(stored.dtype)
        if padding is not None:
            stored = np.where(padding, stored.dtype.type(lowest), stored)
        scaling = pixels.scaling_of(image, index)
        yield stored if scaling == (1.0, 0.0) else pixels.rescaled(stored, *scaling)


def _is_rotated(view: str, frames: Iterable[np.ndarray], image: Image) -> bool:
    """Returns whether frames show the other side than the view; raises InputError for neither."""
    side = breast_side(frames)
    if not side:
        expected = "a breast at the left or right edge, which tells whether it shows the view"
        raise InputError(image.name, expected, "equal sums of the first and last columns")
    return side != view[0].upper()


def _geometry(image: Image, allow: Collection[str]) -> tuple[np.ndarray, np.ndarray, bool]:
    """Returns each frame's z (negative: left out), the affine, and whether an orientation is given."""
    planes = [geometry.plane_of(image, frame) for frame in range(image.frames)]
    facts = [facts_of(image, frame, one_series=not _is_ct(image)) for frame in range(image.frames)]
    groups, found = acquisitions(facts, planes)
    if len(groups) > 1:
        expected = "frames of one acquisition, orientation and spacing"
        refuse_unless_allowed("mixed_series", allow, image.name, expected, found)
    chosen = max(groups, key=len)
    first = planes[chosen[0]]
    positions = [planes[index].position_mm for index in chosen]
    oriented = first.orientation is not None
    placed = oriented and None not in positions and (len(chosen) == 1 or len(set(positions)) > 1)
    if _is_ct(image) and not (placed and first.pixel_spacing_mm):
        expected = "ImagePositionPatient, ImageOrientationPatient and PixelSpacing of each frame"
        raise InputError(image.name, expected, "none, or not of all")
    axes = geometry.plane_axes(first.orientation or AXIAL, image.name)
    step_mm = first.step_mm or SLICE_MM
    if placed:
        order, first_mm, step = geometry.stack_slices(
            np.array(positions), axes, image.name, single_step_mm=step_mm, allow=allow
        )
        if len(order) > 1 and np.all(np.diff(order) < 0):
            # Keep the file's order, which runs against the normal.
            order, first_mm, step = order[::-1], np.array(positions[order[-1]]), -step
    else:
        order, first_mm, step = np.arange(len(chosen)), np.zeros(3), axes[2] * step_mm
        if oriented and positions[0] is not None:
            first_mm = np.array(positions[0])
    places = np.full(image.frames, -1)
    places[np.array(chosen)[order]] = np.arange(len(order))
    spacing = first.pixel_spacing_mm or (PIXEL_MM, PIXEL_MM)
    return places, geometry.stack_affine(axes, spacing, first_mm, step), oriented
