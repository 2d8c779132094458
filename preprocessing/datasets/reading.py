"""Reads the image of a case, NIfTI or DICOM, and its label map in the values of the task."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from preprocessing.datasets.case import Case, redact_case_path, redact_message
from preprocessing.datasets.pairing import DICOM_SUFFIXES
from preprocessing.dicom.deidentify import redact_path
from preprocessing.dicom.fitness import header_findings
from preprocessing.dicom.header import is_dicom
from preprocessing.dicom.multiframe import read_dicom
from preprocessing.dicom.pixels import stored_frames
from preprocessing.dicom.segmentation import Source, read_source
from preprocessing.dicom.series import ReadOptions, find_series
from preprocessing.errors import InputError
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.nifti import check_pair, has_nifti_suffix, read_image, read_label
from preprocessing.volumes.quality_checks import CheckedImage, Finding, check_image

BACKGROUND = frozenset(["background", "bg", "clearlabel", "unlabeled", "unlabelled"])
# Synonyms; the Medical Segmentation Decathlon uses cancer, 3D-IRCADb livertumor.
TUMOUR = frozenset(
    [
        *("tumour", "tumours", "tumor", "tumors", "cancer", "lesion", "lesions"),
        *("livertumour", "livertumours", "livertumor", "livertumors"),
        *("livercancer", "liverlesion", "liverlesions"),
    ]
)


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
        return read_image(path)


def check_case_image(
    case: Case, image: Volume, task: Task, *, allow: Collection[str] = ()
) -> CheckedImage:
    """Checks whether the image of a case, as read from its file, is one that its task expects.

    Findings are those of `quality_checks.check_image` and, in DICOM, of `fitness.header_findings`.
    """
    further: tuple[tuple[str, str, str], ...] = ()
    with _redacted_errors(case):
        path = _given(case, case.image_path)
        if is_dicom_image(path):
            options = ReadOptions(case.view, allow, case.identifiers)
            further = header_findings(path, task.image_dtype, options)
    findings = [Finding(*each) for each in further]
    where = redact_case_path(case, path)
    return check_image(image, task, where=where, allow=allow, further=findings)


def read_case_source(case: Case, *, allow: Collection[str] = ()) -> Source:
    """Reads what a DICOM SEG needs of a case whose image is DICOM; raises as `read_case_image`."""
    with _redacted_errors(case):
        options = ReadOptions(case.view, allow, case.identifiers)
        return read_source(_given(case, case.image_path), options)


def read_case_label(
    case: Case, task: Task, *, shape: tuple[int, ...] | None = None, allow: Collection[str] = ()
) -> Volume:
    """Reads the label map of a case, uint8 [x, y, z], in the values of the task's classes.

    Raises InputError, without identifiers, for a damaged label map, another shape than the image's
    `shape` (in NIfTI before voxels are read), an unknown label, or a class without masks.
    """
    with _redacted_errors(case):
        path = _given(case, case.label_path)
        if path.is_dir():
            options = ReadOptions("", allow, case.identifiers)
            label = _read_masks(path, task.label_names, options)
        elif case.label_names:
            label = _read_named_labels(case, path, task.label_names, shape)
        else:
            label = read_label(path, task.label_names, shape=shape)
    if task.label_classes is None:
        return label
    return Volume(np.array(task.class_values, np.uint8)[label.voxels], label.affine)


def _read_named_labels(
    case: Case, path: Path, class_names: Sequence[str], shape: tuple[int, ...] | None
) -> Volume:
    """Reads a label map whose data set names its values, in the values of the task's labels."""
    names = dict(case.label_names)
    values = {}
    for value, name in names.items():
        own = _class_value(name, class_names)
        if own is None:
            found = ", ".join(f"{value} {name}" for value, name in names.items())
            expected = f"labels that mean classes of the task ({', '.join(class_names)})"
            raise InputError(path, expected, found, "Give a task with these classes.")
        values[value] = own
    every = range(max(values) + 1)
    if all(value == own for value, own in values.items()):
        return read_label(path, class_names[: len(every)], shape=shape)
    label = read_label(path, [names.get(value, "no class") for value in every], shape=shape)
    for value in every:
        if value not in values and (label.voxels == value).any():
            expected = f"the label values of {', '.join(map(str, values))}"
            raise InputError(path, expected, f"value {value}, which has no name")
    table = np.zeros(len(every), np.uint8)
    table[list(values)] = list(values.values())
    return Volume(table[label.voxels], label.affine)


def _read_masks(folder: Path, class_names: Sequence[str], options: ReadOptions) -> Volume:
    """Reads DICOM masks, one folder of slices per structure as in 3D-IRCADb, as one label map.

    Folders whose names mean no class (`venacava`) are ignored. Where masks overlap, the last folder
    by name wins (`livertumor01` over `liver`).
    """
    name = redact_path(folder, options.identifiers)
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    found = {path: value for path in folders if (value := _class_value(path.name, class_names))}
    missing = [name for v, name in enumerate(class_names) if v and v not in found.values()]
    if missing or not found:
        expected = f"a folder of masks for {', '.join(missing or class_names[1:])}"
        raise InputError(name, expected, ", ".join(path.name for path in folders) or "none")
    masks = [(find_series(path, options, one_series=True), own) for path, own in found.items()]
    first, _ = masks[0]
    label = Volume(np.zeros(first.shape, np.uint8, order="F"), first.affine)
    for series, value in masks:
        grid = Volume(np.broadcast_to(np.uint8(0), series.shape), series.affine)
        check_pair(label, grid, series.name)
        for z, stored in enumerate(stored_frames(series.images)):
            label.voxels[:, :, z][stored.T > 0] = value
    return label


def _class_value(name: str, class_names: Sequence[str]) -> int | None:
    """Returns the value of the class that a name means (`livertumor01` is a tumour); None if none."""
    meaning = _meaning(name)
    return next((v for v, own in enumerate(class_names) if _meaning(own) == meaning), None)


def _meaning(name: str) -> str | frozenset[str]:
    """Returns the lower-case letters of a name, or else its synonyms."""
    letters = "".join(character for character in name.casefold() if character.isalpha())
    return next((names for names in (BACKGROUND, TUMOUR) if letters in names), letters)


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
