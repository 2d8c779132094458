"""Predicts single cases and writes their outputs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import re
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ahnet_tf.inference.predictor import ExportSettings, Predictor
from ahnet_tf.inference.segment import (
    PredictionSettings,
    Segmentation,
    segment_volume,
    window_progress,
)
from preprocessing.datasets.case import Case, rejection_reason
from preprocessing.datasets.detection_table import Detection
from preprocessing.datasets.reading import (
    check_case_image,
    is_dicom_image,
    read_case_image,
    read_case_source,
)
from preprocessing.dicom.segmentation import Software, write_segmentation
from preprocessing.errors import InputError
from preprocessing.files import DISK_FULL, input_state
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import Volume, count_labels, spacing_mm
from preprocessing.volumes.nifti import read_label, write_image, write_on_grid

PICTURES = "overlays"

# Draws a case with its label map [x, y, z] and its detections into the folder of predictions.
Draw = Callable[[Case, Volume, np.ndarray, Sequence[Detection], Path], object]


def prediction_name(case_id: str) -> str:
    """Returns the file name of a case's label map; `python -m ahnet_tf.evaluate` looks for it.

    LiTS' volume-3 gives segmentation-3.nii.gz, every other case CASE.nii.gz.
    """
    lits = re.fullmatch(r"volume-(\d+)", case_id)
    return f"segmentation-{lits[1]}.nii.gz" if lits else f"{case_id}.nii.gz"


def output_names(
    case_id: str, task: Task, settings: PredictionSettings, *, dicom_seg: bool, picture: bool
) -> list[str]:
    """Returns the names in the folder of all outputs of a case, label map first."""
    names = [prediction_name(case_id)]
    if settings.probabilities:
        names += [f"probabilities/{case_id}_{name}.nii.gz" for name in task.class_names]
    if dicom_seg:
        names.append(f"dicom_seg/{case_id}.dcm")
    return names + ([_picture_name(case_id)] if picture else [])


def predict_case(
    case: Case,
    predictor: Predictor,
    settings: PredictionSettings,
    output: Path,
    *,
    draw: Draw | None = None,
    dicom_seg: Software | None = None,
    allow: Collection[str] = (),
    debug: bool = False,
) -> dict[str, Any]:
    """Predicts a case with an image and writes its outputs; returns its entry of the record.

    An error of the case, or an image that can't be one of the task, is printed and recorded, and
    raised only with `debug`; the case has no outputs then. Doubts about the image are printed and
    recorded as warnings; a failure of `draw` is printed only. `dicom_seg` is the software named in a DICOM SEG, which needs a DICOM
    image; `allow` has names of `preprocessing.errors.ALLOWANCES`. Raises OSError for a full disk,
    ModelError and ServingError if network or server fail.
    """
    start = time.perf_counter()
    entry: dict[str, Any] = {"case_id": case.case_id}
    task = predictor.settings.task
    has_seg = dicom_seg is not None
    names = output_names(case.case_id, task, settings, dicom_seg=has_seg, picture=False)
    try:
        entry["image_state"] = image_state(case.path)
        # Read first, so that a source without the needed attributes costs no prediction.
        source = read_case_source(case, allow=allow) if dicom_seg else None
        volume = read_case_image(case, allow=allow)
        checked = check_case_image(case, volume, task, allow=allow)
        entry["warnings"] = [{"code": each.code, "text": each.text} for each in checked.findings]
        for finding in checked.findings:
            print(f"warning: {case.case_id}: {finding.text}", file=sys.stderr)
        if checked.misfit is not None:
            raise checked.misfit
        with window_progress(case.case_id) as advance:
            segmentation = segment_volume(volume, predictor, settings, progress=advance)
        labels = segmentation.labels
        _write_volumes(case, volume, segmentation, [output / name for name in names])
        if dicom_seg is not None and source is not None:
            write_segmentation(output / names[-1], labels, task.class_names, source, dicom_seg)
    except (InputError, OSError, MemoryError) as error:
        for name in names:
            with contextlib.suppress(OSError):
                (output / name).unlink()
        if debug or (isinstance(error, OSError) and error.errno in DISK_FULL):
            raise
        problem = rejection_reason(case, error)
        print(f"error: {case.case_id}: {problem}", file=sys.stderr)
        return entry | {"status": "failed", "problem": problem}
    if draw is not None:
        names += _picture(
            case, output, functools.partial(draw, case, volume, labels, segmentation.lesions), debug
        )
    seconds = round(time.perf_counter() - start, 2)
    each_ml = volumes_ml(labels, volume.affine, task.class_names)
    found = ", ".join(f"{name} {ml:,.1f} ml" for name, ml in each_ml.items())
    if task.target == "heat_map":
        found += f", {len(segmentation.lesions)} in the table"
        entry["lesions"] = [dataclasses.asdict(lesion) for lesion in segmentation.lesions]
    print(f"{case.case_id}: {output / names[0]} ({found}; {seconds:.1f} s)")
    entry |= {"status": "predicted", "outputs": names}
    return entry | {"volumes_ml": each_ml, "seconds": seconds}


def redraw_case(
    case: Case,
    entry: dict[str, Any],
    task: Task,
    output: Path,
    draw: Draw,
    *,
    allow: Collection[str] = (),
    debug: bool = False,
) -> None:
    """Draws the picture of a finished case if it is missing, and adds it to the case's entry."""

    def draw_again(picture: Path) -> None:
        labels = read_label(output / volumes[0], task.class_names).voxels
        lesions = [Detection(**lesion) for lesion in entry.get("lesions", ())]
        draw(case, read_case_image(case, allow=allow), labels, lesions, picture)

    volumes = [name for name in entry["outputs"] if not is_picture(name)]
    pictures = entry["outputs"][len(volumes) :]
    if not pictures or not (output / pictures[0]).is_file():
        entry["outputs"] = volumes + _picture(case, output, draw_again, debug)


def _picture(case: Case, output: Path, draw: Callable[[Path], object], debug: bool) -> list[str]:
    """Draws a case; returns the picture's name in the folder, none after a failure, which is printed."""
    name = _picture_name(case.case_id)
    try:
        draw(output / name)
    except Exception as error:
        if debug or (isinstance(error, OSError) and error.errno in DISK_FULL):
            raise
        reason = rejection_reason(case, error)
        print(f"warning: {case.case_id}: no picture: {reason}", file=sys.stderr)
        return []
    return [name]


def _picture_name(case_id: str) -> str:
    return f"{PICTURES}/{case_id}.png"


def is_picture(name: str) -> bool:
    """Returns whether an output is the picture of a case."""
    return name.startswith(f"{PICTURES}/")


def volumes_ml(
    labels: np.ndarray, affine: np.ndarray, class_names: Sequence[str]
) -> dict[str, float]:
    """Returns the volume of each class but the background in a label map [x, y, z], by name."""
    voxel_ml = float(np.prod(spacing_mm(affine))) / 1000
    voxels = count_labels(labels, len(class_names))
    return {
        name: round(count * voxel_ml, 3)
        for name, count in zip(class_names[1:], voxels[1:], strict=True)
    }


def software_of(settings: ExportSettings, digests: Sequence[str | None]) -> Software:
    """Returns the software that a DICOM SEG names; its serial number is the models' digests."""
    return Software(
        name="ahnet-tf",
        version=importlib.metadata.version("ahnet-tf"),
        algorithm=f"{settings.model.architecture} {settings.task.name}"[:64],
        serial_number="+".join((digest or "served")[:15] for digest in digests)[:64],
    )


def _write_volumes(
    case: Case, volume: Volume, segmentation: Segmentation, paths: Sequence[Path]
) -> None:
    """Writes label map and probability maps to the first paths, the label map first."""
    for path, each in zip(paths, (segmentation.labels, *segmentation.probabilities), strict=False):
        if is_dicom_image(case.path):
            write_image(path, Volume(each, volume.affine))
        else:
            write_on_grid(path, each, like=case.path)


def image_state(image: Path) -> str:
    """Returns a short digest of the sizes and times of an image's files, without their names."""
    text = repr([state for _, *state in input_state(image)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
