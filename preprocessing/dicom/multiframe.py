"""A multi-frame DICOM file -> one volume: enhanced CT, and tomosynthesis as archives really have it.

What a header of a tomosynthesis doesn't say is taken as follows. Orientation: columns run to the
patient's left, rows to posterior, as in an axial slice. Slices: in the order of the file, even steps
along their normal of SpacingBetweenSlices, else SliceThickness, else `SLICE_MM`. Pixels:
ImagerPixelSpacing, else `PIXEL_MM`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from preprocessing.allowances import MixedSeriesError, refuse_unless_allowed
from preprocessing.dicom.header import Image, read_image_header, text
from preprocessing.dicom.pixels import padding_mask, rescaled, stacked, stored_frames
from preprocessing.dicom.planes import Plane, alike, is_ct, plane_of, scaling_of
from preprocessing.dicom.series import hounsfield, read_series
from preprocessing.dicom.slice_geometry import plane_axes, stack_affine, stack_slices
from preprocessing.errors import InputError, SettingsError
from preprocessing.volumes.geometry import Volume, checked_affine

# Steps between slices and pixels of a tomosynthesis that says nothing about them: BCS-DBT's.
SLICE_MM = 1.0
PIXEL_MM = 0.085
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def read_dicom(
    path: str | os.PathLike,
    *,
    view: str = "",
    allow: Collection[str] = (),
    identifying: Collection[str] = (),
) -> Volume:
    """Reads a folder of slices (`series.read_series`) or one file (`frames.read_frames`).

    Raises:
      InputError: see there; no message holds an identifier of a header.
    """
    if Path(path).is_dir():
        return read_series(path, allow=allow, identifying=identifying)
    return read_frames(path, view=view, allow=allow, identifying=identifying)


def read_frames(
    path: str | os.PathLike,
    *,
    view: str = "",
    allow: Collection[str] = (),
    identifying: Collection[str] = (),
) -> Volume:
    """Reads a multi-frame image as one volume.

    Args:
      path: DICOM file.
      view: what the data set's own list says of the file, "rmlo" or "LCC" for example. A picture
        whose side (`breast_side`) is not the view's first letter is turned by 180 degrees, as
        BCS-DBT's own reader does (mazurowski-lab/duke-dbt-data). Empty: as stored.
      allow: names of `preprocessing.allowances.ALLOWANCES`.
      identifying: values that no message may show, besides the header's own.

    Returns:
      Voxels [x, y, z], x the column, y the row, z the frame in the file's order wherever positions
      follow it. CT: HU as in `series.read_series`. Others: values as stored in the file's dtype
      (rescaled if the header says so); MONOCHROME1 is inverted to bright tissue, padding is the
      lowest value. The affine follows a turned picture if the file says how its frames lie.

    Raises:
      SeriesError: frames that don't make one regular volume, see `preprocessing.allowances`.
      InputError: no image, or a damaged or truncated one; a CT without its geometry.
      SettingsError: a view that begins with neither L nor R.
    """
    if view and view[0].upper() not in "LR":
        raise SettingsError("view", "a view that begins with L or R", repr(view))
    image = read_image_header(path, identifying)
    planes = [plane_of(image, frame) for frame in range(image.frames)]
    places, affine, known = _geometry(image, planes, allow)
    frames, turned = _turned_to(view, _values(image))
    voxels = stacked(frames, places, image.shown, _narrowest(image))
    if turned and known:
        affine = affine @ _half_turn(image)
    return Volume(voxels, checked_affine(affine, image.shown))


def frame_places(
    path: str | os.PathLike,
    *,
    view: str = "",
    allow: Collection[str] = (),
    identifying: Collection[str] = (),
) -> tuple[np.ndarray, bool]:
    """Returns where `read_frames` takes each frame of a file; its arguments and errors are the same.

    Returns:
      For each frame of the file its z in the volume (below 0: left out), and whether the frames are
      turned by 180 degrees in it.
    """
    image = read_image_header(path, identifying)
    planes = [plane_of(image, frame) for frame in range(image.frames)]
    places, _, _ = _geometry(image, planes, allow)
    return places, _turned_to(view, _values(image))[1]


def breast_side(frame: np.ndarray) -> str:
    """Returns "L" or "R", the side of the breast in a frame [row, column] of bright tissue.

    The chest wall lies along the brighter edge: "R" if the first column's sum is below the last
    one's. The header's laterality is unreliable in BCS-DBT.
    """
    left, right = (frame[:, edge].astype(np.float64).sum() for edge in (0, -1))
    return "R" if left < right else "L"


def _values(image: Image) -> Iterator[np.ndarray]:
    """Yields frames [row, column] in the values that a volume has."""
    for index, stored in enumerate(stored_frames([image])):
        if is_ct(image):
            yield hounsfield(image, index, stored)
            continue
        lowest = -(2 ** (image.bits_stored - 1)) if image.signed else 0
        padding = padding_mask(image, stored)
        if text(image.header, "PhotometricInterpretation") == "MONOCHROME1":
            # The other end of the range of stored values; -1 - v and 2^bits - 1 - v.
            stored = (2**image.bits_stored - 1 + 2 * lowest - stored).astype(stored.dtype)
        if padding is not None:
            stored = np.where(padding, stored.dtype.type(lowest), stored)
        scaling = scaling_of(image, index)
        yield stored if scaling == (1.0, 0.0) else rescaled(stored, *scaling)


def _narrowest(image: Image) -> np.dtype:
    """Returns the dtype that voxels start with: the file's own where values are as stored."""
    as_stored = not is_ct(image) and scaling_of(image) == (1.0, 0.0)
    stored = np.dtype(f"{'i' if image.signed else 'u'}{image.bits_allocated // 8}")
    return stored if as_stored else np.dtype(np.int16)


def _turned_to(view: str, frames: Iterator[np.ndarray]) -> tuple[Iterator[np.ndarray], bool]:
    """Returns the frames, turned by 180 degrees if the first one shows the other side than the view."""
    if not view:
        return frames, False
    first = next(frames)
    frames = itertools.chain([first], frames)
    if breast_side(first) == view[0].upper():
        return frames, False
    return (frame[::-1, ::-1] for frame in frames), True


def _half_turn(image: Image) -> np.ndarray:
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    turn[:2, 3] = image.columns - 1, image.rows - 1
    return turn


def _geometry(
    image: Image, planes: Sequence[Plane], allow: Collection[str]
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Returns each frame's z (below 0: left out), the affine, and whether the file gave it."""
    chosen = _one_stack(image, planes, allow)
    first = planes[chosen[0]]
    positions = [planes[index].position_mm for index in chosen]
    known = first.orientation is not None
    placed = known and None not in positions and (len(chosen) == 1 or len(set(positions)) > 1)
    if is_ct(image) and not (placed and first.pixel_spacing_mm):
        expected = "ImagePositionPatient, ImageOrientationPatient and PixelSpacing of each frame"
        raise InputError(image.shown, expected, "none, or not of all")
    axes = plane_axes(first.orientation or AXIAL, image.shown)
    step_mm = first.step_mm or SLICE_MM
    if placed:
        order, first_mm, step = stack_slices(
            np.array(positions), axes, image.shown, single_step_mm=step_mm, allow=allow
        )
        if len(order) > 1 and np.all(np.diff(order) < 0):
            # The file's own order, against the normal.
            order, first_mm, step = order[::-1], np.array(positions[order[-1]]), -step
    else:
        order, first_mm, step = np.arange(len(chosen)), np.zeros(3), axes[2] * step_mm
        if known and positions[0] is not None:
            first_mm = np.array(positions[0])
    places = np.full(image.frames, -1)
    places[np.array(chosen)[order]] = np.arange(len(order))
    spacing = first.pixel_spacing_mm or (PIXEL_MM, PIXEL_MM)
    return places, stack_affine(axes, spacing, first_mm, step), known


def _one_stack(image: Image, planes: Sequence[Plane], allow: Collection[str]) -> list[int]:
    """Returns the frames of one orientation and spacing: the most there are."""
    groups: list[list[int]] = []
    for index, plane in enumerate(planes):
        for group in groups:
            one = planes[group[0]]
            if alike(one.orientation, plane.orientation) and alike(
                one.pixel_spacing_mm, plane.pixel_spacing_mm
            ):
                group.append(index)
                break
        else:
            groups.append([index])
    if len(groups) > 1:
        expected, found = "frames of one orientation and spacing", f"{len(groups)} kinds"
        refuse_unless_allowed(MixedSeriesError(image.shown, expected, found), allow)
    return max(groups, key=len)
