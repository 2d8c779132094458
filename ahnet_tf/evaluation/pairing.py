"""Pairs predictions with references: label maps by case, detections with boxes by volume."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ahnet_tf.evaluation.froc import ScoredVolume, in_pixels, match_volume
from ahnet_tf.inference.case_output import prediction_name
from ahnet_tf.inference.run_record import recorded_task
from preprocessing.datasets.bcs_dbt import (
    Tables,
    VolumeKey,
    cases_of_tables,
    dbt_case_id,
    read_tables,
)
from preprocessing.datasets.case import Case
from preprocessing.datasets.detection_table import Detection, read_detections
from preprocessing.datasets.discovery import find_cases, nifti_files, walk_folders
from preprocessing.datasets.pairing import stem_of
from preprocessing.datasets.reading import is_dicom_image, read_case_grid, read_case_label
from preprocessing.errors import InputError, SettingsError
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import Volume, spacing_mm
from preprocessing.volumes.lesions import LesionBox
from preprocessing.volumes.nifti import has_nifti_suffix, read_label


@dataclass(frozen=True)
class Pair:
    """A predicted label map, and the cases that have its reference and its image."""

    case_id: str
    prediction: Path
    reference: Case
    image: Case | None = None


@dataclass(frozen=True)
class MatchedTables:
    """Volumes of the reference tables with their detections, in the order of the volumes' hits.

    `problems` has a line for every row that can't be scored; it names no patient.
    """

    volumes: dict[VolumeKey, ScoredVolume]
    detections: dict[VolumeKey, list[Detection]]
    boxes: dict[VolumeKey, list[LesionBox]]
    tables: Tables
    problems: list[str]


def pair_up(inputs: Sequence[Path], references: Sequence[Path]) -> tuple[list[Pair], list[str]]:
    """Pairs predicted label maps with references by case.

    Single files are paired in the order given. In folders (but not their subfolders), the prediction
    of a case has the name that `python -m ahnet_tf.predict` gives it, or that of the case, its label
    map or its image. Reference folders have the layouts of `find_cases`. Also returns a line for every
    missing or extra case. Raises InputError for a path that doesn't exist or holds no label maps,
    SettingsError if the numbers of files differ.
    """
    if all(path.is_file() for path in (*inputs, *references)):
        if len(inputs) != len(references):
            expected = f"as many files, {len(references)}"
            raise SettingsError("--input and --reference", expected, len(inputs))
        stems = [stem_of(path) for path in inputs]
        names = stems if len(set(stems)) == len(stems) else list(map(str, inputs))
        cases = [Case(stem_of(path), None, path, path.parent.name) for path in references]
        return [Pair(*each) for each in zip(names, inputs, cases, strict=True)], []
    predictions = _prediction_files(inputs)
    cases = find_cases(references, need_labels=True)
    if any(case.label_path for case in cases):
        # Images without label maps are no references; label maps without images are.
        cases = [case for case in cases if case.label_path]
    pairs, problems = [], []
    for case in cases:
        files = [path for path in (case.label_path, case.image_path) if path is not None]
        names = [stem_of(Path(prediction_name(case.case_id))), case.case_id, *map(stem_of, files)]
        name = next((name for name in names if name in predictions), None)
        if name is None:
            expected = f"a prediction named {names[0]}.nii.gz"
            problems.append(f"case {case.case_id}: expected {expected}, found none")
        else:
            image = case if case.label_path and case.image_path else None
            if image is None:
                case = dataclasses.replace(case, image_path=None, label_path=files[0])
            pairs.append(Pair(case.case_id, predictions.pop(name), case, image))
    problems += [
        f"{path}: expected a reference for this prediction, found none"
        for path in predictions.values()
    ]
    return pairs, problems


def predicted_task(inputs: Sequence[Path]) -> Task | None:
    """Returns the task that label maps were predicted for, by the records in their folders, if any.

    Raises InputError for a record without a task, SettingsError for several tasks.
    """
    folders = dict.fromkeys(path if path.is_dir() else path.parent for path in inputs)
    tasks = [task for task in map(recorded_task, folders) if task is not None]
    if any(task != tasks[0] for task in tasks):
        found = f"predictions for {', '.join(task.name for task in tasks)}"
        raise SettingsError("--task", "a choice among the tasks of the predictions", found)
    return tasks[0] if tasks else None


def read_pair(pair: Pair, task: Task, *, allow: Collection[str] = ()) -> tuple[Volume, Volume]:
    """Returns prediction and reference in the values of the task's classes, on one grid.

    It is that of the reference's image; without one that of the reference, or of the prediction if
    the reference is a DICOM SEG. Raises InputError as `read_case_label` and `read_label`.
    """
    case, names, grid = pair.reference, task.class_names, None
    if case.image_path is not None:
        # Scores need no voxels of the image; it may even be unreadable.
        with contextlib.suppress(InputError):
            grid = read_case_grid(case, allow=allow)
    label = case.label_path
    if grid is None and label is not None and label.is_file() and is_dicom_image(label):
        grid = read_label(pair.prediction, names)
    reference = read_case_label(case, task, grid, allow=allow)
    return read_label(pair.prediction, names, image=grid or reference, allow=allow), reference


def with_images(pairs: Sequence[Pair], images: Sequence[str | Path]) -> list[Pair]:
    """Returns the pairs with the images that `--images` names.

    As many files as pairs are assigned in order. Otherwise an image belongs to the pair with its case
    id, or with the prediction that is named after its case. Errors are those of `find_cases`.
    """
    cases = find_cases(images, need_labels=False)
    matched: Sequence[Case | None] = cases
    if not (len(cases) == len(pairs) == len(images) and all(Path(p).is_file() for p in images)):
        by_name = {case.case_id: case for case in cases}
        by_name |= {prediction_name(case.case_id): case for case in cases}
        matched = [by_name.get(pair.case_id) or by_name.get(pair.prediction.name) for pair in pairs]
    return [
        dataclasses.replace(pair, image=image or pair.image)
        for pair, image in zip(pairs, matched, strict=True)
    ]


def match_tables(
    inputs: Sequence[Path],
    references: Sequence[Path],
    *,
    hits_in_mm: bool = False,
    images: Path | None = None,
) -> MatchedTables:
    """Matches detections with reference boxes, volume by volume.

    The volumes are those of the labels table and those with a box; one without detections is one
    where nothing was found. Without a labels table, volumes with detections count as well.
    References are the folder of BCS-DBT's tables, or the tables themselves (boxes, labels). With
    `hits_in_mm` the challenge's 100 pixels are their 8.5 mm by the spacing of each volume's image
    (see `images_of_tables`); a volume without a readable one is a problem. Raises InputError for
    missing or unreadable tables or no volumes, SettingsError for several tables of detections or
    several folders.
    """
    if len(inputs) != 1:
        raise SettingsError("--input", "one table of detections", len(inputs))
    detections, places = read_detections(inputs[0])
    tables = _reference_tables(references)
    keys = list(tables.rows)
    if tables.has_labels:
        # A table of paths may name volumes of which nothing is known.
        keys = [key for key, row in tables.rows.items() if row.outcomes is not None or row.boxes]
    else:
        keys += [key for key in detections if key not in tables.rows]
    boxes: dict[VolumeKey, list[LesionBox]] = {}
    problems = []
    for key in keys:
        row = tables.rows.get(key)
        if row is not None and row.problem:
            problems.append(row.problem)
        else:
            boxes[key] = row.boxes if row is not None else []
    known = set(keys)
    expected = "expected a volume of the reference tables, found none with this row's names"
    problems += [f"{where}: {expected}" for key, where in places.items() if key not in known]
    if not boxes and not problems:
        raise InputError(tables.folder, "volumes in the reference tables", "none")
    if not hits_in_mm:
        own = {key: detections.get(key, []) for key in boxes}
        volumes = {key: match_volume(own[key], boxes[key]) for key in boxes}
        return MatchedTables(volumes, own, boxes, tables, problems)
    spacings, unknown = _spacings(list(boxes), images_of_tables(tables, images))
    boxes = {key: boxes[key] for key in spacings}
    own = {key: detections.get(key, []) for key in boxes}
    volumes = {
        key: match_volume(in_pixels(own[key], spacing), in_pixels(boxes[key], spacing))
        for key, spacing in spacings.items()
    }
    return MatchedTables(volumes, own, boxes, tables, problems + unknown)


def images_of_tables(tables: Tables, folder: Path | None = None) -> dict[str, Case]:
    """Returns the cases of BCS-DBT's tables that have an image, by their ids.

    The images are in `folder`, by default that of the tables. Raises SettingsError if it is no folder,
    InputError if one is given without any image of the tables.
    """
    if folder is not None:
        if not folder.is_dir():
            raise SettingsError("--images", "the folder of the volumes", folder)
        tables = dataclasses.replace(tables, folder=folder)
    files = nifti_files(list(walk_folders(tables.folder)))
    cases = cases_of_tables(tables, files, need_labels=True)
    found = {case.case_id: case for case in cases if case.image_path is not None}
    if folder is not None and not found:
        raise InputError(folder, "volumes that the reference tables name", "none")
    return found


def _spacings(
    keys: Sequence[VolumeKey], images: Mapping[str, Case]
) -> tuple[dict[VolumeKey, tuple[float, float, float]], list[str]]:
    """Returns the spacing (x, y, z) in mm of each volume with a readable image, and problems."""
    spacings, problems = {}, []
    for key in keys:
        case = images.get(dbt_case_id(*key))
        try:
            if case is None:
                where = f"case {dbt_case_id(*key)}"
                raise InputError(where, "an image, whose spacing turns pixels into mm", "none")
            spacings[key] = spacing_mm(read_case_grid(case).affine)
        except InputError as error:
            problems.append(str(error))
    return spacings, problems


def _prediction_files(inputs: Sequence[Path]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in inputs:
        if not path.exists():
            raise InputError(path, "predicted label maps or a folder of them", "nothing there")
        own = sorted(path.iterdir()) if path.is_dir() else [path]
        own = [file for file in own if file.is_file() and has_nifti_suffix(file)]
        if not own:
            raise InputError(path, "predicted label maps (.nii, .nii.gz)", "none")
        for file in own:
            twin = files.setdefault(stem_of(file), file)
            if twin != file:
                raise InputError(file, "one prediction per case", f"{twin} too")
    return files


def _reference_tables(references: Sequence[Path]) -> Tables:
    for path in references:
        if not path.exists():
            raise InputError(path, "BCS-DBT's tables or their folder", "nothing there")
    folders = {path if path.is_dir() else path.parent for path in references}
    if len(folders) != 1:
        raise SettingsError("--reference", "tables of one folder", f"{len(folders)} folders")
    (folder,) = folders
    is_folder = references[0].is_dir()
    tables = read_tables(folder, None if is_folder else references)
    if tables is None:
        place = folder if is_folder else references[0]
        raise InputError(place, "a table of boxes whose name says so (boxes.csv)", "none")
    return tables
