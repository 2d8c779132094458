"""Reads a folder of single-slice DICOM files as one volume in HU, sorted by position."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocessing.dicom import geometry
from preprocessing.dicom.acquisitions import Facts, acquisitions, facts_of
from preprocessing.dicom.deidentify import header_identifiers, redact_path
from preprocessing.dicom.header import (
    Image,
    aside,
    has_image,
    image_of,
    integer,
    is_dicom,
    read_header,
    text,
)
from preprocessing.dicom.pixels import hounsfield, stacked, stored_frames
from preprocessing.errors import InputError, refuse_unless_allowed
from preprocessing.volumes.geometry import Volume, checked_affine
from preprocessing.volumes.nifti import has_nifti_suffix
from preprocessing.volumes.nifti_bytes import MAX_VOXELS


@dataclass(frozen=True)
class ReadOptions:
    """What readers of DICOM need besides the path."""

    view: str = ""  # of a tomosynthesis, for example "rmlo"; see `multiframe.read_frames`
    allow: Collection[str] = ()  # irregularities to accept, names of `errors.ALLOWANCES`
    identifiers: Collection[str] = ()  # must not occur in messages, besides the headers' own


DEFAULTS = ReadOptions()


@dataclass(frozen=True)
class Series:
    """The slices of one volume in order, and its affine, 4x4, voxels [x, y, z] to RAS+ mm.

    `name` is the path of the folder without identifiers, for messages.
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
    plane: geometry.Plane
    uid: str

    def required(self, keyword: str, value: tuple[float, ...] | None) -> tuple[float, ...]:
        if value is None:
            raise InputError(self.image.name, f"the element {keyword}", "none")
        return value


def read_series(folder: str | os.PathLike, options: ReadOptions = DEFAULTS) -> Volume:
    """Reads the single-slice images of a folder as one volume.

    Files may have any names; subfolders and files without an image (reports, a DICOMDIR) are
    ignored; so are localizers, secondary captures and screens beside other slices. Voxels are
    [x, y, z] (column, row, position along the normal) in HU: int16 if possible, else int32, else
    float32. Padding is air (`pixels.AIR_HU`). Raises InputError for no DICOM images, damaged ones,
    no position, orientation or spacing, or slices that do not form one regular volume
    (`preprocessing.errors.ALLOWANCES`).
    """
    series = find_series(folder, options)
    pairs = zip(series.images, stored_frames(series.images), strict=True)
    slices = (hounsfield(image, 0, stored) for image, stored in pairs)
    voxels = stacked(slices, range(len(series.images)), series.name, np.dtype(np.int16))
    return Volume(voxels, series.affine)


def find_series(
    folder: str | os.PathLike, options: ReadOptions = DEFAULTS, *, one_series: bool = False
) -> Series:
    """Sorts the slices of a folder by their headers; see `read_series`.

    With `one_series`, all files belong to one series and acquisition, regardless of their headers.
    """
    folder = Path(folder)
    names = _slice_files(folder)
    images, identifiers = _images(names, frozenset(options.identifiers))
    name = redact_path(folder, identifiers)
    if not images:
        raise InputError(name, "DICOM images", f"none among {len(names)} files")
    slices = [_Slice(i, geometry.plane_of(i), text(i.header, "SOPInstanceUID")) for i in images]
    facts = [facts_of(image, one_series=one_series) for image in images]
    slices = _largest_group(slices, facts, name, options.allow)
    if sum(s.image.rows * s.image.columns for s in slices) > MAX_VOXELS:
        raise InputError(name, f"at most {MAX_VOXELS} voxels", f"{len(slices)} slices")
    # Of slices with the same position, the one with the lowest instance number comes first.
    slices.sort(key=lambda s: (integer(s.image.header, "InstanceNumber", s.image.name, 0), s.uid))
    first = slices[0]
    positions = [s.required("ImagePositionPatient", s.plane.position_mm) for s in slices]
    orientation = first.required("ImageOrientationPatient", first.plane.orientation)
    pixel_spacing_mm = first.required("PixelSpacing", first.plane.pixel_spacing_mm)
    axes = geometry.plane_axes(orientation, first.image.name)
    single_step_mm = first.plane.step_mm or 1.0
    order, first_mm, step_mm = geometry.stack_slices(
        np.array(positions), axes, name, single_step_mm=single_step_mm, allow=options.allow
    )
    affine = geometry.stack_affine(axes, pixel_spacing_mm, first_mm, step_mm)
    return Series(name, tuple(slices[i].image for i in order), checked_affine(affine, name))


def _slice_files(folder: Path) -> list[Path]:
    """Returns the files of a folder that may be DICOM, sorted by name.

    A file that does not start like DICOM is a damaged slice if its suffix is that of one that does.
    """
    suffixes: dict[Path, str] = {}
    for path in sorted(folder.iterdir()):
        name = path.name
        ignored = name.startswith(".") or name.upper() == "DICOMDIR" or has_nifti_suffix(name)
        if path.is_file() and not ignored:
            # The last part of a UID, or a number, is no suffix.
            suffixes[path] = "" if path.suffix[1:].isdigit() else path.suffix.lower()
    dicom = {path for path in suffixes if is_dicom(path)}
    known = {suffixes[path] for path in dicom}
    return [path for path, suffix in suffixes.items() if path in dicom or suffix in known]


def _images(
    paths: Sequence[Path], identifiers: frozenset[str]
) -> tuple[list[Image], frozenset[str]]:
    """Returns the images among files, and all identifiers that their names must not show."""
    # Errors about damaged files ahead of the first readable one need its identifiers too.
    for path in paths:
        with contextlib.suppress(InputError):
            identifiers |= header_identifiers(read_header(path))
            break
    headers = []
    for path in paths:
        header = read_header(path, identifiers)
        identifiers |= header_identifiers(header)
        if has_image(header):
            headers.append((path, header))
    # Localizers, secondary captures and screens are left out where there are slices.
    slices = [(path, header) for path, header in headers if not aside(header)] or headers
    return [image_of(path, header, identifiers) for path, header in slices], identifiers


def _largest_group(
    slices: list[_Slice], facts: Sequence[Facts], name: str, allow: Collection[str]
) -> list[_Slice]:
    """Returns the largest group of slices of one series, acquisition, shape and plane."""
    groups, found = acquisitions(facts, [s.plane for s in slices])
    if len(groups) > 1:
        expected = "slices of one series, acquisition, shape, orientation and spacing"
        refuse_unless_allowed("mixed_series", allow, name, expected, found)
    single = [group for group in groups if slices[group[0]].image.frames == 1]
    if not single:
        raise InputError(name, "single-slice DICOM images", "only multi-frame ones")
    # Of equally large ones, the choice does not depend on names of files.
    largest = min(single, key=lambda group: (-len(group), min(slices[i].uid for i in group)))
    return [slices[i] for i in largest]
