"""Reads the image of a case, NIfTI or DICOM, and its label map in the values of the task."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from preprocessing.datasets.case import Case, redact_case_path, redact_message
from preprocessing.datasets.label_names import mask_classes, value_classes
from preprocessing.datasets.pairing import DICOM_SUFFIXES, stem_of
from preprocessing.dicom.deidentify import redact_path
from preprocessing.dicom.fitness import header_findings
from preprocessing.dicom.header import is_dicom
from preprocessing.dicom.multiframe import read_dicom
from preprocessing.dicom.pixels import stored_frames
from preprocessing.dicom.segmentation import Source, read_source
from preprocessing.dicom.segmentation_reader import read_segmentation
from preprocessing.dicom.series import ReadOptions, find_series
from preprocessing.errors import InputError
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.grids import on_grid
from preprocessing.volumes.nifti import has_nifti_suffix, read_grid, read_image, read_label
from preprocessing.volumes.quality_checks import CheckedImage, Finding, check_image

# Names of the values in the file of one structure's mask, where 1 or 255 is inside.
_MASK_VALUES = ("outside", "inside", *[""] * 253, "inside")


def is_dicom_image(path: Path) -> bool:
    """Returns whether an image is read as DICOM: a folder, a file with DICOM content or suffix."""
    if path.is_dir() or path.name.lower().endswith(DICOM_SUFFIXES):
        return True
    return not has_nifti_suffix(path) and is_dicom(path)


def read_case_image(case: Case, *, allow: Collection[str] = ()) -> Volume:
    """Reads the image of a case; `allow` has names of `preprocessing.errors.ALLOWANCES`.

    Raises InputError as `nifti.read_image` and `multiframe.read_dicom` do, without identifiers.
    """
    with _redacted_errors(case):
        path = _given(case, case.image_path)
        if is_dicom_image(path):
            return read_dicom(path, ReadOptions(case.view, allow, case.identifiers))
        return read_image(path, allow=allow)


def check_case_image(
    case: Case, image: Volume, task: Task, *, allow: Collection[str] = ()
) -> CheckedImage:
    """Checks whether the image of a case, as read from its file, is one that its task expects.

    Findings are those of `quality_checks.check_image` and, in DICOM, of `fitness.header_findings`.
    """
    with _redacted_errors(case):
        path = _given(case, case.image_path)
        options = ReadOptions(case.view, allow, case.identifiers)
        found = header_findings(path, task.image_dtype, options) if is_dicom_image(path) else ()
    where, further = redact_case_path(case, path), [Finding(*each) for each in found]
    return check_image(image, task, where=where, allow=allow, further=further)


def read_case_source(case: Case, *, allow: Collection[str] = ()) -> Source:
    """Reads what a DICOM SEG needs of a case whose image is DICOM; raises as `read_case_image`."""
    with _redacted_errors(case):
        options = ReadOptions(case.view, allow, case.identifiers)
        return read_source(_given(case, case.image_path), options)


def read_case_grid(case: Case, *, allow: Collection[str] = ()) -> Volume:
    """Returns the grid of a case's image, without its voxels where the file allows that.

    Raises as `read_case_image`.
    """
    with _redacted_errors(case):
        path = _given(case, case.image_path)
        if not is_dicom_image(path):
            return read_grid(path, allow=allow)
        if path.is_dir():
            series = find_series(path, ReadOptions(case.view, allow, case.identifiers))
            return Volume(np.broadcast_to(np.uint8(0), series.shape), series.affine)
    return read_case_image(case, allow=allow)


def read_case_label(
    case: Case, task: Task, image: Volume | None = None, *, allow: Collection[str] = ()
) -> Volume:
    """Reads the label map of a case, uint8 [x, y, z], in the values of the task's classes.

    It is a NIfTI label map, a DICOM SEG, or a folder with a mask of each structure: NIfTI files
    (TotalSegmentator) or folders of DICOM slices (3D-IRCADb). The result is on the grid of the
    case's image; without an image, which only a SEG needs, on its own.

    Raises InputError, without identifiers, for a damaged label map, another grid than the image's
    (see `grids.on_grid`), an unknown label (see `label_names`), or a class without a mask.
    """
    with _redacted_errors(case):
        path = _given(case, case.label_path)
        if path.is_dir():
            return _read_masks(case, path, task, image, allow)
        if not is_dicom_image(path):
            return _read_label_map(case, path, task, image, allow)
        if image is None:
            raise InputError(path, "a DICOM SEG with its image", "no image")

        def classes_of(names: Sequence[str], where: object) -> dict[str, int]:
            # Names of segments are header values, which no message quotes.
            found = f"{len(names)} segments of different labels"
            return mask_classes(names, task, where, "a segment", found)

        return read_segmentation(path, image, classes_of, case.identifiers)


def _read_label_map(
    case: Case, path: Path, task: Task, image: Volume | None, allow: Collection[str]
) -> Volume:
    """Reads a NIfTI label map whose values the data set names, or else the task."""
    classes = value_classes(case.label_names, task, path)
    names = {0: task.label_names[0]} | dict(case.label_names or enumerate(task.label_names))
    every = range(max(classes) + 1)
    allowed = [names[value] if value in classes else "" for value in every]
    label = read_label(path, allowed, image=image, allow=allow)
    for value in (value for value, own in classes.items() if own is None):
        ignored = np.count_nonzero(label.voxels == value)
        if ignored:
            expected = f"no voxels of the label {value} {names[value]}"
            remedy = f"Give a task whose label_classes map {names[value]} to a class."
            raise InputError(path, expected, ignored, remedy)
    if all(classes.get(value) == value for value in every):
        return label
    table = np.array([classes.get(value) or 0 for value in every], np.uint8)
    return Volume(table[label.voxels], label.affine)


def _read_masks(
    case: Case, folder: Path, task: Task, image: Volume | None, allow: Collection[str]
) -> Volume:
    """Reads a folder of masks, a NIfTI file or a folder of DICOM slices each, as one label map.

    Masks whose names mean no class (`venacava`) are ignored; for overlaps see `mask_classes`.
    """
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    masks = {path: stem_of(path) for path in entries if has_nifti_suffix(path)}
    is_nifti = bool(masks)
    if not is_nifti:
        masks = {path: path.name for path in entries if path.is_dir()}
    where = redact_path(folder, case.identifiers)
    names = list(masks.values())
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    found = ", ".join(names[:12]) + more or "none"
    what = "a mask" if is_nifti else "a folder of masks"
    classes = mask_classes(names, task, where, what, found, loose=not is_nifti)
    options = ReadOptions("", allow, case.identifiers)
    label = None
    for name, own in classes.items():
        path = next(path for path, each in masks.items() if each == name)
        if is_nifti:
            mask = read_label(path, _MASK_VALUES, image=image, allow=allow)
        else:
            mask = _read_dicom_mask(path, options, image)
        image = image or mask
        if label is None:
            label = np.zeros(image.voxels.shape, np.uint8, order="F")
        label[mask.voxels > 0] = own
    if image is None or label is None:
        raise InputError(where, f"{what} for {', '.join(task.label_names[1:])}", found)
    return Volume(label, image.affine)


def _read_dicom_mask(folder: Path, options: ReadOptions, image: Volume | None) -> Volume:
    """Reads the slices of a mask, which may have a series UID each, as 0 and 1 on an image's grid."""
    series = find_series(folder, options, one_series=True)
    voxels = np.empty(series.shape, np.uint8, order="F")
    for z, stored in enumerate(stored_frames(series.images)):
        voxels[:, :, z] = stored.T > 0
    mask = Volume(voxels, series.affine)
    return mask if image is None else on_grid(mask, image, series.name, allow=options.allow)


def _given(case: Case, path: Path | None) -> Path:
    if path is None:
        raise InputError(case.case_id, "a file for image and label map", "none")
    return path


@contextlib.contextmanager
def _redacted_errors(case: Case) -> Iterator[None]:
    """Removes the case's identifiers from errors, and converts OSErrors to InputErrors."""
    try:
        yield
    except InputError as error:
        parts = (error.where, error.expected, error.found, error.remedy)
        raise type(error)(*(redact_message(case, part) for part in parts)) from None
    except OSError as error:
        name, reason = redact_case_path(case, case.image_path), error.strerror
        raise InputError(name, "readable files", reason or type(error).__name__) from None
