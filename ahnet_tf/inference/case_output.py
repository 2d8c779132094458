"""One case predicted: its label map, maps, lesions and picture written, and its line of the record."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ahnet_tf.inference.prediction_record import image_state, prediction_name
from ahnet_tf.inference.predictor import Predictor
from ahnet_tf.inference.segment import PredictionSettings, Segmentation, segment_volume
from preprocessing.datasets.case import Case, redact_case_path, redact_message
from preprocessing.datasets.detection_table import Detection, write_detections
from preprocessing.datasets.reading import (
    is_dicom_image,
    read_case_image,
    read_case_label,
    read_case_source,
)
from preprocessing.dicom.segmentation import Software, write_segmentation
from preprocessing.errors import AHNetError, InputError
from preprocessing.files import DISK_FULL
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import Volume, spacing_mm
from preprocessing.volumes.nifti import check_pair, write_image, write_on_grid

LESION_FILE = "lesions.csv"
# StudyUID and View of a case that no table of its data set names.
NO_TABLE = "-"


def predict_case(
    case: Case,
    predictor: Predictor,
    settings: PredictionSettings,
    output: Path,
    *,
    overlay: bool = False,
    dicom_seg: Software | None = None,
    allow: Collection[str] = (),
    debug: bool = False,
) -> dict[str, Any]:
    """Predicts a case and writes its outputs; returns its entry of the record.

    What is wrong with the case itself is printed and recorded, not raised.

    Args:
      case: its image is read; its reference, if any, is drawn on the picture.
      predictor: the network.
      settings: of the prediction.
      output: folder of the predictions.
      overlay: draw a picture too.
      dicom_seg: write a DICOM SEG too, which names this software; of a case whose image is DICOM.
      allow: names of `preprocessing.allowances.ALLOWANCES`.
      debug: raise every error.

    Raises:
      OSError: the disk is full.
      ModelError, ServingError: the network or the server doesn't do its part.
    """
    start = time.perf_counter()
    entry: dict[str, Any] = {"case_id": case.case_id}
    try:
        entry["image_state"] = image_state(case.image_path)
        # Read first: what can't be referred to need not be predicted.
        source = read_case_source(case, allow=allow) if dicom_seg else None
        volume = read_case_image(case, allow=allow)
        segmentation = _segmented(case, volume, predictor, settings)
        task = predictor.settings.task
        names = _write(case, volume, segmentation, task, output)
        if source is not None:
            names.append(f"dicom_seg/{case.case_id}.dcm")
            write_segmentation(
                output / names[-1], segmentation.labels, task.class_names, source, dicom_seg
            )
        if overlay:
            names.append(_draw(case, volume, segmentation.labels, task, output, allow))
    except (InputError, OSError) as error:
        if debug or (isinstance(error, OSError) and error.errno in DISK_FULL):
            raise
        where = (
            "" if isinstance(error, AHNetError) else f"{redact_case_path(case, case.image_path)}: "
        )
        problem = redact_message(case, f"{where}{error}")
        print(f"error: {problem}", file=sys.stderr)
        return entry | {"status": "failed", "problem": problem}
    seconds = round(time.perf_counter() - start, 2)
    volumes_ml = _volumes_ml(segmentation.labels, task, volume.affine)
    found = ", ".join(f"{name} {ml:,.1f} ml" for name, ml in volumes_ml.items())
    if task.target == "heat_map":
        found += f", {len(segmentation.lesions)} in the table"
        entry["lesions"] = [dataclasses.asdict(lesion) for lesion in segmentation.lesions]
    print(f"{case.case_id}: {output / names[0]} ({found}; {seconds:.1f} s)")
    return entry | {
        "status": "predicted",
        "outputs": names,
        "volumes_ml": volumes_ml,
        "seconds": seconds,
    }


def write_lesion_table(
    output: Path, cases: Sequence[Case], entries: Sequence[dict[str, Any]]
) -> None:
    """Writes the lesions of all predicted cases as one table in the columns of BCS-DBT's predictions.

    Args:
      output: folder of the predictions.
      cases: the run's; PatientID, StudyUID and View come from the data set's own tables, and the case
        id stands for them where there are none.
      entries: of `predict_case`.
    """
    volumes = {case.case_id: _table_key(case) for case in cases}
    rows = [
        (volumes[entry["case_id"]], Detection(**lesion))
        for entry in entries
        for lesion in entry.get("lesions", ())
    ]
    write_detections(output / LESION_FILE, rows)


def _table_key(case: Case) -> tuple[str, str, str]:
    # Only tables give a case its boxes; their identifiers are PatientID and StudyUID.
    if case.boxes is not None and len(case.identifiers) == 2:
        return (*case.identifiers, case.view)
    return (case.case_id, NO_TABLE, case.view or NO_TABLE)


def _segmented(
    case: Case, volume: Volume, predictor: Predictor, settings: PredictionSettings
) -> Segmentation:
    with tqdm(desc=case.case_id, unit="window", leave=False) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        return segment_volume(volume, predictor, settings, progress=advance)


def _write(
    case: Case, volume: Volume, segmentation: Segmentation, task: Task, output: Path
) -> list[str]:
    """Writes label map and probability maps; returns their names in the folder, the label map first."""
    names = [prediction_name(case.case_id)]
    if segmentation.probabilities:
        names += [f"probabilities/{case.case_id}_{name}.nii.gz" for name in task.class_names]
    voxels = [segmentation.labels, *segmentation.probabilities]
    for name, each in zip(names, voxels, strict=True):
        if is_dicom_image(case.image_path):
            write_image(output / name, Volume(each, volume.affine))
        else:
            write_on_grid(output / name, each, like=case.image_path)
    return names


def _draw(
    case: Case,
    volume: Volume,
    labels: np.ndarray,
    task: Task,
    output: Path,
    allow: Collection[str],
) -> str:
    """Draws a case with its reference, if there is one; returns the picture's name in the folder."""
    # Takes a while to import, and is not always needed.
    from ahnet_tf.report.overlay import overlay_case

    reference = None
    if case.label_path is not None:
        reference = read_case_label(case, task, allow=allow)
        check_pair(volume, reference, redact_case_path(case, case.label_path))
    name = f"overlays/{case.case_id}.png"
    voxels = None if reference is None else reference.voxels
    overlay_case(output / name, volume, labels, voxels, task, title=case.case_id)
    return name


def _volumes_ml(labels: np.ndarray, task: Task, affine: np.ndarray) -> dict[str, float]:
    """Returns each foreground class' volume in ml."""
    voxel_ml = float(np.prod(spacing_mm(affine))) / 1000
    counts = np.bincount(labels.ravel(), minlength=len(task.class_names))
    return {
        class_name: round(float(count) * voxel_ml, 3)
        for class_name, count in zip(task.class_names[1:], counts[1:], strict=True)
    }
