"""The one door to the voxels of a case: NIfTI or DICOM, by content."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from preprocessing.datasets.case import Case, redact_case_path, redact_message
from preprocessing.datasets.label_names import task_values
from preprocessing.datasets.mask_folders import read_masks
from preprocessing.dicom.header import is_dicom
from preprocessing.dicom.multiframe import read_dicom
from preprocessing.dicom.segmentation import Source, read_source
from preprocessing.errors import InputError
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.nifti import has_nifti_suffix, read_image, read_label


def read_case_image(case: Case, *, allow: Collection[str] = ()) -> Volume:
    """Reads a case's image.

    Args:
      case: whose image it is; its view turns a tomosynthesis, see `frames.read_frames`.
      allow: names of `preprocessing.allowances.ALLOWANCES`.

    Returns:
      Voxels [x, y, z] and affine, see `nifti.read_image` and `reading.read_dicom`.

    Raises:
      InputError: see there; no message holds an identifier of the case.
    """
    with _named(case):
        if is_dicom_image(case.image_path):
            return read_dicom(
                case.image_path, view=case.view, allow=allow, identifying=case.identifiers
            )
        return read_image(case.image_path)


def read_case_label(
    case: Case,
    task: Task,
    *,
    shape: tuple[int, int, int] | None = None,
    allow: Collection[str] = (),
) -> Volume:
    """Reads a case's label map in the values of the task's classes.

    Args:
      case: whose label map it is; its `label_names`, if any, are paired with the task's by name.
      task: its labels, and the classes they count as.
      shape: of the image; a NIfTI label map of another shape is refused before its voxels are read.
      allow: names of `preprocessing.allowances.ALLOWANCES`.

    Returns:
      Voxels [x, y, z], uint8.

    Raises:
      InputError: see `nifti.read_label`, `masks.read_masks` and `label_names.task_values`.
    """
    with _named(case):
        label = _labels(case, task.label_names, shape, allow)
    if task.label_classes is None:
        return label
    return Volume(np.array(task.class_values, np.uint8)[label.voxels], label.affine)


def _labels(case: Case, names: Sequence[str], shape, allow: Collection[str]) -> Volume:
    """Returns the label map in the values of the task's labels."""
    if case.label_path.is_dir():
        return read_masks(case.label_path, names, allow=allow, identifying=case.identifiers)
    if not case.label_names:
        return read_label(case.label_path, names, shape=shape)
    values = task_values(case.label_names, names, case.label_path)
    if all(value == own for value, own in values.items()):
        return read_label(case.label_path, names[: max(values) + 1], shape=shape)
    return _translated(case, values, shape)


def read_case_source(case: Case, *, allow: Collection[str] = ()) -> Source:
    """Reads what a DICOM SEG takes over from the images of a case whose image is DICOM.

    Raises:
      InputError: see `segmentation.read_source`; no message holds an identifier of the case.
    """
    with _named(case):
        return read_source(
            case.image_path, view=case.view, allow=allow, identifying=case.identifiers
        )


def _translated(case: Case, values: dict[int, int], shape) -> Volume:
    """Returns the label map in other values; `values` holds them by the data set's own."""
    names = dict(case.label_names)
    every = range(max(values) + 1)
    every_name = [names.get(value, "no class") for value in every]
    label = read_label(case.label_path, every_name, shape=shape)
    unnamed = [value for value in every if value not in values]
    for value in unnamed:
        if (label.voxels == value).any():
            expected = f"the label values of {', '.join(map(str, values))}"
            raise InputError(case.label_path, expected, f"value {value}, which has no name")
    table = np.zeros(len(every), np.uint8)
    table[list(values)] = list(values.values())
    return Volume(table[label.voxels], label.affine)


def is_dicom_image(path: Path) -> bool:
    """Returns whether an image is read as DICOM: a folder, or a file that is one by content."""
    return path.is_dir() or (not has_nifti_suffix(path) and is_dicom(path))


@contextlib.contextmanager
def _named(case: Case) -> Iterator[None]:
    """Lets errors out with the case's files named as they may be."""
    try:
        yield
    except InputError as error:
        parts = (error.where, error.expected, error.found, error.remedy)
        raise type(error)(*(redact_message(case, part) for part in parts)) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            redact_case_path(case, case.image_path), "files that can be read", reason
        ) from None
