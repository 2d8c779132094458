"""The user's own cases for the demonstration: some are held out of training and predicted."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from preprocessing.datasets import bcs_dbt
from preprocessing.datasets.case import Case
from preprocessing.datasets.dataset_json import DATASET_FILE
from preprocessing.datasets.discovery import find_cases, walk_folders
from preprocessing.datasets.pairing import stem_of
from preprocessing.datasets.reading import is_dicom_image, read_case_image, read_case_label
from preprocessing.errors import InputError
from preprocessing.files import write_csv, write_json
from preprocessing.records.case_volume import read_case_volume
from preprocessing.records.splits import EVAL_FRACTION, split_by_hash
from preprocessing.tasks import Task

# Of volumes with lesion boxes: one in four is held out, but no more than these.
HELD_OUT_SHARE, MOST_HELD_OUT = 0.25, 12


def hold_out(inputs: Sequence[str], task: Task, data: Path, unseen: Path) -> None:
    """Links the user's cases into `data`, and those held out of training into `unseen`.

    One case is held out where the target is label maps, whole patients where it is lesions: a FROC
    needs several volumes. Raises InputError as `hold_one_out` and `hold_patients_out`.
    """
    for folder in (data, unseen):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    hold = hold_patients_out if task.target == "heat_map" else hold_one_out
    hold(inputs, task, data, unseen)


def hold_one_out(inputs: Sequence[str], task: Task, data: Path, unseen: Path) -> None:
    """Links the user's cases into `data`, and the last readable one into `unseen`.

    With only two cases, the one in the eval split is also predicted: it is not trained on. Raises
    InputError for fewer than two readable labelled cases.
    """
    cases = find_cases(inputs, need_labels=True)
    held_out = next((case for case in reversed(cases) if is_readable(case, task)), None)
    if held_out is None or len(cases) < 2:
        expected = "two or more readable cases with label maps"
        found = ", ".join(case.problem or case.case_id for case in cases)
        remedy = "python -m preprocessing.convert says what is wrong with each case."
        raise InputError(", ".join(inputs), expected, found, remedy)
    if len(cases) == 2:
        splits = split_by_hash({case.case_id: case.patient for case in cases}, EVAL_FRACTION)
        held_out = next(case for case in cases if splits[case.case_id] == "eval")
    others = [case for case in cases if case is not held_out]
    # No further series of its patient either, unless too few cases would be left.
    strangers = [case for case in others if not case.patient or case.patient != held_out.patient]
    learned = cases if len(cases) == 2 else strangers if len(strangers) > 1 else others
    placed = [(case, data) for case in learned]
    for case, folder in [*placed, (held_out, unseen)]:
        place = folder / case.case_id
        place.mkdir()
        for kind, path in (("image", case.image_path), ("label", case.label_path)):
            if path is not None:
                # Where a dataset.json names the labels, both may have one name in two folders.
                name = f"{kind}_{path.name}" if case.label_names else path.name
                (place / name).symlink_to(path.resolve())
        if case.label_names:
            labels = {str(value): name for value, name in case.label_names}
            write_json(place / DATASET_FILE, {"labels": labels})
    print(f"{len(cases)} cases; {held_out.case_id} is held out of training and predicted last")


def hold_patients_out(inputs: Sequence[str], task: Task, data: Path, unseen: Path) -> None:
    """Links the volumes of BCS-DBT's layout into `data`, and the last patients' into `unseen`.

    Both get tables of their own. A quarter of the volumes is held out, at most `MOST_HELD_OUT` unless
    a patient has more; one of them has a lesion. Volumes that can't be used are named and left out.
    Raises InputError for volumes without tables, several folders of tables, DICOM images (whose lesion
    tables don't have the names of BCS-DBT's rows), or if the volumes held out, or the two or more
    others, are without a lesion.
    """
    found = find_cases(inputs, need_labels=True)
    keys = _keys_of_tables(inputs)
    for case in found:
        where = f"case {case.case_id}"
        if case.case_id not in keys:
            expected = "a volume that BCS-DBT's tables (boxes.csv, labels.csv) name"
            raise InputError(where, expected, "no row of such a table")
        if case.image_path is not None and is_dicom_image(case.image_path):
            remedy = "Convert the volumes to NIfTI, or use preprocessing.convert and the pipeline."
            raise InputError(where, "a NIfTI volume", "DICOM", remedy)
    for case in found:
        if case.problem:
            print(f"left out: {case.problem}")
    cases = [case for case in found if not case.problem]
    held_out, others = _split_by_patient(cases, keys, task)
    with_lesions = [sum(bool(case.boxes) for case in part) for part in (held_out, others)]
    if len(others) < 2 or not all(with_lesions):
        expected = "readable volumes with lesions of two patients or more, and one volume more"
        numbers = f"{len(held_out) + len(others)} volumes, {sum(with_lesions)} with lesions"
        remedy = "python -m preprocessing.convert says what is wrong with each case."
        raise InputError(", ".join(inputs), expected, numbers, remedy)
    _link_with_tables(others, keys, data)
    _link_with_tables(held_out, keys, unseen)
    print(f"{len(cases)} volumes; {len(held_out)} are held out of training and predicted last")


def is_readable(case: Case, task: Task) -> bool:
    """Returns whether a case's image and annotation can be read and share one grid."""
    if case.problem:
        return False
    try:
        image = read_case_image(case)
        if task.target == "heat_map":
            read_case_volume(case, image, task)
        else:
            read_case_label(case, task, image)
    except InputError:
        return False
    return True


def _keys_of_tables(inputs: Sequence[str]) -> dict[str, bcs_dbt.VolumeKey]:
    """Returns PatientID, StudyUID and View of each row by its case id."""
    folders = dict.fromkeys(folder for each in inputs for folder, _ in walk_folders(Path(each)))
    tables = [found for folder in folders if (found := bcs_dbt.read_tables(folder)) is not None]
    if len(tables) != 1:
        expected = "one folder with BCS-DBT's tables (boxes.csv, labels.csv) and their volumes"
        found_folders = ", ".join(str(each.folder) for each in tables) or "none"
        raise InputError(", ".join(inputs), expected, found_folders)
    return {bcs_dbt.dbt_case_id(*key): key for key in tables[0].rows}


def _split_by_patient(
    cases: Sequence[Case], keys: Mapping[str, bcs_dbt.VolumeKey], task: Task
) -> tuple[list[Case], list[Case]]:
    """Returns the readable volumes to hold out, and those of all other patients.

    The last patient with a lesion is held out, then last patients until the volumes suffice.
    """
    by_patient: dict[str, list[Case]] = {}
    for case in cases:
        by_patient.setdefault(keys[case.case_id][0], []).append(case)
    last_first = list(reversed(by_patient))
    has_lesion = {patient: any(c.boxes for c in own) for patient, own in by_patient.items()}
    first = next((patient for patient in last_first if has_lesion[patient]), None)
    wanted = min(MOST_HELD_OUT, max(1, int(HELD_OUT_SHARE * len(cases))))
    held_out: list[Case] = []
    patients = []
    # The sort is stable: all but `first` keep their order.
    for patient in sorted(last_first, key=lambda each: each != first):
        if len(held_out) < wanted:
            patients.append(patient)
            held_out += [case for case in by_patient[patient] if is_readable(case, task)]
    return held_out, [case for case in cases if keys[case.case_id][0] not in patients]


def _link_with_tables(
    cases: Sequence[Case], keys: Mapping[str, bcs_dbt.VolumeKey], folder: Path
) -> None:
    """Links volumes and masks by their case ids, beside tables of their rows."""
    boxes: list[dict[str, object]] = []
    labels: list[dict[str, object]] = []
    for case in cases:
        for path, ending in ((case.image_path, ""), (case.label_path, "_mask")):
            if path is not None:
                suffix = path.name.removeprefix(stem_of(path))
                (folder / f"{case.case_id}{ending}{suffix}").symlink_to(path.resolve())
        own_boxes, own_labels = bcs_dbt.rows_of_volume(
            keys[case.case_id], case.boxes or (), case.case_id
        )
        boxes += own_boxes
        labels.append(own_labels)
    write_csv(folder / "boxes.csv", bcs_dbt.BOX_COLUMNS, boxes)
    write_csv(folder / "labels.csv", bcs_dbt.LABEL_COLUMNS, labels)
