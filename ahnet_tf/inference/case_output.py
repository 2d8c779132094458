"""Writes the outputs of predicted cases and their record, from which a later run can resume."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
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
from preprocessing.datasets.detection_table import Detection, write_detections
from preprocessing.datasets.reading import (
    check_case_image,
    is_dicom_image,
    read_case_image,
    read_case_source,
)
from preprocessing.dicom.segmentation import Software, write_segmentation
from preprocessing.errors import InputError, SettingsError
from preprocessing.files import DISK_FULL, input_state, write_json
from preprocessing.tasks import Task, task_from_dict
from preprocessing.volumes.geometry import Volume, count_labels, spacing_mm
from preprocessing.volumes.nifti import read_label, write_image, write_on_grid

LESION_FILE = "lesions.csv"
RECORD_FILE = "prediction.json"
PICTURES = "overlays"
# What a record says about its run besides models and settings.
_NOT_SETTINGS = {"cases", "input", "passed_over", "renamed"}

# Draws a case with its label map [x, y, z] and its detections into the folder of predictions.
Draw = Callable[[Case, Volume, np.ndarray, Sequence[Detection], Path], object]


def prediction_name(case_id: str) -> str:
    """Returns the file name of a case's label map; `python -m ahnet_tf.evaluate` looks for it.

    LiTS' volume-3 gives segmentation-3.nii.gz, every other case CASE.nii.gz.
    """
    lits = re.fullmatch(r"volume-(\d+)", case_id)
    return f"segmentation-{lits[1]}.nii.gz" if lits else f"{case_id}.nii.gz"


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
    raised only with `debug`. Doubts about the image are printed and recorded as warnings; a failure
    of `draw` is printed only. `dicom_seg` is the software named in a DICOM SEG, which needs a DICOM
    image; `allow` has names of `preprocessing.errors.ALLOWANCES`. Raises OSError for a full disk,
    ModelError and ServingError if network or server fail.
    """
    start = time.perf_counter()
    entry: dict[str, Any] = {"case_id": case.case_id}
    task = predictor.settings.task
    try:
        entry["image_state"] = _image_state(case.path)
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
        names = _write_volumes(case, volume, segmentation, task, output)
        if dicom_seg is not None and source is not None:
            names.append(f"dicom_seg/{case.case_id}.dcm")
            write_segmentation(output / names[-1], labels, task.class_names, source, dicom_seg)
    except (InputError, OSError, MemoryError) as error:
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

    volumes = [name for name in entry["outputs"] if not _is_picture(name)]
    pictures = entry["outputs"][len(volumes) :]
    if not pictures or not (output / pictures[0]).is_file():
        entry["outputs"] = volumes + _picture(case, output, draw_again, debug)


def _picture(case: Case, output: Path, draw: Callable[[Path], object], debug: bool) -> list[str]:
    """Draws a case; returns the picture's name in the folder, none after a failure, which is printed."""
    name = f"{PICTURES}/{case.case_id}.png"
    try:
        draw(output / name)
    except Exception as error:
        if debug or (isinstance(error, OSError) and error.errno in DISK_FULL):
            raise
        reason = rejection_reason(case, error)
        print(f"warning: {case.case_id}: no picture: {reason}", file=sys.stderr)
        return []
    return [name]


def _is_picture(name: str) -> bool:
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


def write_record(
    output: Path, record: dict[str, Any], cases: Sequence[Case], entries: dict[str, dict[str, Any]]
) -> None:
    """Writes the record of a run, `record` with the entries of its finished cases, and their lesions.

    The table's columns are those of BCS-DBT's predictions. PatientID, StudyUID and View come from the
    tables of the data set; without tables, the case id is used.
    """
    done = [(case, entries[case.case_id]) for case in cases if case.case_id in entries]
    write_json(output / RECORD_FILE, record | {"cases": [entry for _, entry in done]})
    rows = []
    for case, entry in done:
        key = (case.case_id, "-", case.view or "-")
        # Cases have boxes only from tables; their identifiers are then PatientID and StudyUID.
        if case.boxes is not None and len(case.identifiers) == 2:
            key = (*case.identifiers, case.view)
        rows += [(key, Detection(**lesion)) for lesion in entry.get("lesions", ())]
    if any("lesions" in entry for _, entry in done):
        write_detections(output / LESION_FILE, rows)


def finished_cases(
    output: Path, record: dict[str, Any], cases: Sequence[Case]
) -> dict[str, dict[str, Any]]:
    """Returns the entries of cases that an earlier run into the same folder finished, by case id.

    A case is finished if the record says so, all its outputs but the picture exist, and its image
    has not changed. Raises SettingsError if that run had other models or settings, InputError for a
    damaged record.
    """
    path = output / RECORD_FILE
    if not path.is_file():
        return {}
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        entries = {entry["case_id"]: entry for entry in earlier["cases"]}
        before, now = _decisive(earlier), _decisive(json.loads(json.dumps(record)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(path, "the record of an earlier run", error) from None
    changed = [n for n in sorted(now.keys() | before.keys()) if before.get(n) != now.get(n)]
    if changed:
        expected = f"the model and settings of the earlier run in {output}"
        remedy = "Leave --resume out to predict all cases again, or give another folder OUT."
        raise SettingsError("--resume", expected, f"other {', '.join(changed)}", remedy)
    return {
        case.case_id: entry
        for case in cases
        if (entry := entries.get(case.case_id)) is not None
        and entry["status"] == "predicted"
        and all((output / n).is_file() for n in entry["outputs"] if not _is_picture(n))
        and entry["image_state"] == _image_state(case.path)
    }


def recorded_task(folder: Path) -> Task | None:
    """Returns the task of the predictions in a folder by their record; None if there is no record.

    Raises InputError for a record without a task.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return task_from_dict(content["models"][0]["settings"]["task"], path)
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(path, "the record of a prediction", error, "Give --task.") from None


def _decisive(record: dict[str, Any]) -> dict[str, Any]:
    """Returns what the predictions of a run depend on, apart from their images."""
    settings = {name: value for name, value in record["settings"].items() if name != "overlay"}
    kept = {name: value for name, value in record.items() if name not in _NOT_SETTINGS}
    return kept | {"settings": settings}


def _write_volumes(
    case: Case, volume: Volume, segmentation: Segmentation, task: Task, output: Path
) -> list[str]:
    """Writes label map and probability maps; returns their names in the folder, label map first."""
    names = [prediction_name(case.case_id)]
    if segmentation.probabilities:
        names += [f"probabilities/{case.case_id}_{name}.nii.gz" for name in task.class_names]
    voxels = [segmentation.labels, *segmentation.probabilities]
    for name, each in zip(names, voxels, strict=True):
        if is_dicom_image(case.path):
            write_image(output / name, Volume(each, volume.affine))
        else:
            write_on_grid(output / name, each, like=case.path)
    return names


def _image_state(image: Path) -> str:
    """Returns a short digest of the sizes and times of an image's files, without their names."""
    text = repr([state for _, *state in input_state(image)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
