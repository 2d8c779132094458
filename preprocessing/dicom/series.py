"""Reads a folder of single-slice DICOM files as one volume in HU, sorted by position."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocessing.dicom.deidentify import header_identifiers, redact_path
from preprocessing.dicom.geometry import (
    Plane,
    grouped,
    plane_axes,
    plane_of,
    same_plane,
    stack_affine,
    stack_slices,
)
from preprocessing.dicom.header import (
    Image,
    has_image,
    image_of,
    integer,
    is_dicom,
    read_header,
    text,
)
from preprocessing.dicom.pixels import hounsfield, stacked, stored_frames
from preprocessing.errors import InputError, MixedSeriesError, refuse_unless_allowed
from preprocessing.volumes.geometry import Volume, checked_affine
from preprocessing.volumes.nifti import has_nifti_suffix
from preprocessing.volumes.nifti_bytes import MAX_VOXELS


@dataclass(frozen=True)
class ReadOptions:
    """What readers of DICOM need besides the path.

    Attributes:
      view: view of a tomosynthesis in the data set's table, for example "rmlo"; see
        `multiframe.read_frames`.
      allow: irregularities to accept, names of `preprocessing.errors.ALLOWANCES`.
      identifiers: values that must not occur in messages, besides those of the headers.
    """

    view: str = ""
    allow: Collection[str] = ()
    identifiers: Collection[str] = ()


DEFAULTS = ReadOptions()


@dataclass(frozen=True)
class Series:
    """The slices of one volume, in order.

    Attributes:
      name: path of the folder without identifiers, for messages.
      images: one per slice.
      affine: 4x4, voxels [x, y, z] to RAS+ mm.
    """

    name: str
    images: tuple[Image, ...]
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size (x, y, z) in voxels."""
        return self.images[0].columns, self.images[0].rows, len(self.images)


@dataclass(frozen=True)
class _Slice:
    image: Image
    plane: Plane
    series_uid: str
    uid: str


def read_series(folder: str | os.PathLike, options: ReadOptions = DEFAULTS) -> Volume:
    """Reads the single-slice images of a folder as one volume.

    Files may have any names; subfolders and files without an image (reports, a DICOMDIR) are
    ignored. Voxels are [x, y, z] (column, row, position along the normal) with slope and intercept
    applied, HU for CT: int16 if possible, else int32, else float32. Padding is air
    (`pixels.AIR_HU`).

    Raises:
      SeriesError: the slices do not form one regular volume, see `preprocessing.errors`.
      InputError: no DICOM images, damaged or truncated ones, or no position, orientation or
        spacing.
    """
    series = find_series(folder, options)
    slices = (
        hounsfield(image, 0, stored)
        for image, stored in zip(series.images, stored_frames(series.images), strict=True)
    )
    voxels = stacked(slices, range(len(series.images)), series.name, np.dtype(np.int16))
    return Volume(voxels, series.affine)


def find_series(
    folder: str | os.PathLike, options: ReadOptions = DEFAULTS, *, one_series: bool = False
) -> Series:
    """Sorts the slices of a folder by their headers; see `read_series`.

    With `one_series`, all files belong to one series, regardless of their SeriesInstanceUID.
    """
    folder = Path(folder)
    names = _slice_files(folder)
    images, identifiers = _images(names, frozenset(options.identifiers))
    name = redact_path(folder, identifiers)
    if not images:
        raise InputError(name, "DICOM images", f"none among {len(names)} files")
    slices = [
        _Slice(
            image,
            plane_of(image),
            "" if one_series else text(image.header, "SeriesInstanceUID"),
            text(image.header, "SOPInstanceUID"),
        )
        for image in images
    ]
    slices = _largest_group(slices, name, options.allow)
    if sum(s.image.rows * s.image.columns for s in slices) > MAX_VOXELS:
        raise InputError(name, f"at most {MAX_VOXELS} voxels", f"{len(slices)} slices")
    # Of slices with the same position, the one with the lowest instance number comes first.
    slices.sort(key=lambda s: (integer(s.image.header, "InstanceNumber", s.image.name, 0), s.uid))
    first = slices[0]
    positions = [_required(s, "ImagePositionPatient", s.plane.position_mm) for s in slices]
    orientation = _required(first, "ImageOrientationPatient", first.plane.orientation)
    pixel_spacing_mm = _required(first, "PixelSpacing", first.plane.pixel_spacing_mm)
    axes = plane_axes(orientation, first.image.name)
    order, first_mm, step_mm = stack_slices(
        np.array(positions),
        axes,
        name,
        single_step_mm=first.plane.step_mm or 1.0,
        allow=options.allow,
    )
    affine = stack_affine(axes, pixel_spacing_mm, first_mm, step_mm)
    return Series(name, tuple(slices[i].image for i in order), checked_affine(affine, name))


def _slice_files(folder: Path) -> list[Path]:
    """Returns the files of a folder that may be DICOM, sorted by name.

    A file that does not start like DICOM is a damaged slice if its suffix is that of one that does.
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


def _suffix(path: Path) -> str:
    """Returns the suffix of a file; the last part of a UID, or a number, does not count."""
    suffix = path.suffix.lower()
    return "" if suffix[1:].isdigit() else suffix


def _images(
    paths: Sequence[Path], identifiers: frozenset[str]
) -> tuple[list[Image], frozenset[str]]:
    """Returns the images among files, and all identifiers that their names must not show."""
    # Errors about damaged files ahead of the first readable one need its identifiers too.
    for path in paths:
        try:
            identifiers |= header_identifiers(read_header(path))
        except InputError:
            continue
        break
    headers = []
    for path in paths:
        header = read_header(path, identifiers)
        identifiers |= header_identifiers(header)
        if has_image(header):
            headers.append((path, header))
    return [image_of(path, header, identifiers) for path, header in headers], identifiers


def _largest_group(slices: list[_Slice], name: str, allow: Collection[str]) -> list[_Slice]:
    """Returns the largest group of slices of one series, shape, orientation and spacing."""
    groups = grouped(
        slices,
        lambda one, other: (
            one.series_uid == other.series_uid
            and _shape(one) == _shape(other)
            and same_plane(one.plane, other.plane)
        ),
    )
    if len(groups) > 1:
        series, shapes = {s.series_uid for s in slices}, set(map(_shape, slices))
        found = f"{len(series)} series, {len(shapes)} shapes, {len(groups)} kinds of slices in all"
        expected = "slices of one series, shape, orientation and spacing"
        refuse_unless_allowed(MixedSeriesError(name, expected, found), allow)
    single = [group for group in groups if group[0].image.frames == 1]
    if not single:
        raise InputError(name, "single-slice DICOM images", "only multi-frame ones")
    return min(
        single, key=lambda group: (-len(group), group[0].series_uid, min(s.uid for s in group))
    )


def _shape(each: _Slice) -> tuple[int, int, int]:
    return each.image.frames, each.image.rows, each.image.columns


def _required(each: _Slice, keyword: str, value: tuple[float, ...] | None) -> tuple[float, ...]:
    if value is None:
        raise InputError(each.image.name, f"the element {keyword}", "none")
    return value
