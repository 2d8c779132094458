"""A folder of single-slice DICOM files -> one volume in HU, its slices sorted by position."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocessing.allowances import MixedSeriesError, refuse_unless_allowed
from preprocessing.dicom.deidentify import identifiers, redact_path
from preprocessing.dicom.header import (
    Image,
    has_image,
    image_of,
    is_dicom,
    read_header,
    text,
    whole,
)
from preprocessing.dicom.pixels import padding_mask, rescaled, stacked, stored_frames
from preprocessing.dicom.planes import AIR_HU, TISSUE_HU, Plane, alike, plane_of, scaling_of
from preprocessing.dicom.slice_geometry import plane_axes, stack_affine, stack_slices
from preprocessing.errors import InputError
from preprocessing.volumes.geometry import Volume, checked_affine
from preprocessing.volumes.nifti import has_nifti_suffix
from preprocessing.volumes.nifti_bytes import MAX_VOXELS


@dataclass(frozen=True)
class _Slice:
    image: Image
    plane: Plane
    series_uid: str


@dataclass(frozen=True)
class Series:
    """The slices of one volume, in its order.

    Attributes:
      shown: the folder's name in messages, without identifiers.
      images: one a slice.
      affine: 4x4, voxels [x, y, z] to RAS+ mm.
    """

    shown: str
    images: tuple[Image, ...]
    affine: np.ndarray


def read_series(
    folder: str | os.PathLike, *, allow: Collection[str] = (), identifying: Collection[str] = ()
) -> Volume:
    """Reads the single-slice images of a folder as one volume.

    Args:
      folder: of DICOM files of any names; files that hold no image (reports, a DICOMDIR) are passed
        over, folders below too.
      allow: names of `preprocessing.allowances.ALLOWANCES`.
      identifying: values that no message may show, besides the headers' own.

    Returns:
      Voxels [x, y, z] (column, row, position along the normal) with slope and intercept applied:
      HU for CT, int16 if they fit, else int32, else float32. Padded pixels are air (`AIR_HU`).

    Raises:
      SeriesError: slices that don't make one regular volume, see `preprocessing.allowances`.
      InputError: no DICOM images, damaged or truncated ones, no position, orientation or spacing.
    """
    series = find_series(folder, allow=allow, identifying=identifying)
    slices = (
        hounsfield(image, 0, stored)
        for image, stored in zip(series.images, stored_frames(series.images), strict=True)
    )
    voxels = stacked(slices, range(len(series.images)), series.shown)
    return Volume(voxels, series.affine)


def find_series(
    folder: str | os.PathLike,
    *,
    allow: Collection[str] = (),
    one_series: bool = False,
    identifying: Collection[str] = (),
) -> Series:
    """Sorts the slices of a folder by their headers; see `read_series`.

    Args:
      folder: of DICOM files.
      allow: names of `preprocessing.allowances.ALLOWANCES`.
      one_series: whether the folder itself says that its files belong together, whatever series
        they name.
      identifying: values that no message may show, besides the headers' own.
    """
    folder = Path(folder)
    names = slice_files(folder)
    images, identifying = _images(names, frozenset(identifying))
    shown = redact_path(folder, identifying)
    if not images:
        raise InputError(shown, "DICOM images", f"none among {len(names)} files")
    slices = [
        _Slice(
            image, plane_of(image), "" if one_series else text(image.header, "SeriesInstanceUID")
        )
        for image in images
    ]
    slices = _one_group(slices, shown, allow)
    _check_complete(slices)
    if sum(s.image.rows * s.image.columns for s in slices) > MAX_VOXELS:
        raise InputError(shown, f"at most {MAX_VOXELS} voxels", f"{len(slices)} slices")
    # In one place the lowest instance number comes first.
    slices.sort(key=lambda s: (whole(s.image.header, "InstanceNumber", s.image.shown, 0), _uid(s)))
    first = slices[0].plane
    axes = plane_axes(first.orientation, slices[0].image.shown)
    order, first_mm, step_mm = stack_slices(
        np.array([s.plane.position_mm for s in slices]),
        axes,
        shown,
        single_step_mm=first.step_mm or 1.0,
        allow=allow,
    )
    affine = stack_affine(axes, first.pixel_spacing_mm, first_mm, step_mm)
    images = tuple(slices[index].image for index in order)
    return Series(shown, images, checked_affine(affine, shown))


def slice_files(folder: Path) -> list[Path]:
    """Returns the files of a folder that may be DICOM by their names, sorted.

    A file that is none by its content counts only if its suffix is that of one that is: then it is a
    slice that was damaged.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file())
    paths = [
        folder / name
        for name in names
        if not name.startswith(".") and name.upper() != "DICOMDIR" and not has_nifti_suffix(name)
    ]
    dicom = {path for path in paths if is_dicom(path)}
    suffixes = {_suffix(path) for path in dicom}
    return [path for path in paths if path in dicom or _suffix(path) in suffixes]


def hounsfield(image: Image, frame: int, stored: np.ndarray) -> np.ndarray:
    """Returns a frame [row, column] with its slope and intercept applied, and air for padding."""
    slope, intercept = scaling_of(image, frame)
    values = rescaled(stored, slope, intercept)
    mask = padding_mask(image, stored)
    if mask is not None:
        low, high = values[mask].min(), values[mask].max()
        if high <= TISSUE_HU[0] or low > TISSUE_HU[1]:
            values[mask] = AIR_HU
    return values


def _uid(each: _Slice) -> str:
    return text(each.image.header, "SOPInstanceUID")


def _suffix(path: Path) -> str:
    """Returns a file's suffix; what follows the last dot of a UID, or a number, is none."""
    suffix = path.suffix.lower()
    return "" if suffix[1:].isdigit() else suffix


def _images(
    paths: Sequence[Path], identifying: frozenset[str]
) -> tuple[list[Image], frozenset[str]]:
    """Returns the images among files, and what none of their names may show."""
    for path in paths:
        try:
            identifying |= identifiers(read_header(path))
        except InputError:
            continue
        break
    headers = []
    for path in paths:
        header = read_header(path, identifying)
        identifying |= identifiers(header)
        if has_image(header):
            headers.append((path, header))
    return [image_of(path, header, identifying) for path, header in headers], identifying


def _one_group(slices: list[_Slice], shown: object, allow: Collection[str]) -> list[_Slice]:
    """Returns the slices of one series, shape, orientation and spacing: the most there are."""
    groups: list[list[_Slice]] = []
    for each in slices:
        group = next((group for group in groups if _together(group[0], each)), None)
        if group is None:
            groups.append([each])
        else:
            group.append(each)
    if len(groups) > 1:
        kinds = Counter(s.series_uid for s in slices)
        shapes = Counter((s.image.frames, s.image.rows, s.image.columns) for s in slices)
        found = f"{len(kinds)} series, {len(shapes)} shapes, {len(groups)} kinds of slices in all"
        expected = "slices of one series, shape, orientation and spacing"
        refuse_unless_allowed(MixedSeriesError(shown, expected, found), allow)
    single = [group for group in groups if group[0].image.frames == 1]
    if not single:
        raise InputError(shown, "single-slice DICOM images", "multi-frame ones alone")
    return min(single, key=lambda group: (-len(group), group[0].series_uid, min(map(_uid, group))))


def _together(one: _Slice, other: _Slice) -> bool:
    return (
        one.series_uid == other.series_uid
        and (one.image.frames, one.image.rows, one.image.columns)
        == (other.image.frames, other.image.rows, other.image.columns)
        and alike(one.plane.orientation, other.plane.orientation)
        and alike(one.plane.pixel_spacing_mm, other.plane.pixel_spacing_mm)
    )


def _check_complete(slices: Sequence[_Slice]) -> None:
    for each in slices:
        for keyword, value in (
            ("ImagePositionPatient", each.plane.position_mm),
            ("ImageOrientationPatient", each.plane.orientation),
            ("PixelSpacing", each.plane.pixel_spacing_mm),
        ):
            if value is None:
                raise InputError(each.image.shown, f"the element {keyword}", "none")
