"""A folder of predictions: its record, which cases are finished, and which files are its own."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ahnet_tf.inference.case_output import image_state, is_picture
from preprocessing.datasets.bcs_dbt import VolumeKey, dbt_case_id
from preprocessing.datasets.case import Case
from preprocessing.datasets.detection_table import Detection, read_detections, write_detections
from preprocessing.errors import InputError, SettingsError
from preprocessing.files import file_lock, write_json
from preprocessing.tasks import Task, task_from_dict

LESION_FILE = "lesions.csv"
RECORD_FILE = "prediction.json"
LOCK_FILE = ".lock"
# What a record says about its run besides models and settings.
_NOT_SETTINGS = {"cases", "input", "in_progress", "passed_over", "renamed"}


@dataclass(frozen=True)
class EarlierRun:
    """What the record of a folder says about the runs before; empty if there is no record."""

    record: dict[str, Any] = field(default_factory=dict)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)  # of its cases, by case id
    files: frozenset[str] = frozenset()  # its outputs, named from the folder


def read_record(output: Path) -> EarlierRun:
    """Reads the record of a folder of predictions; raises InputError for a damaged one."""
    path = output / RECORD_FILE
    if not path.is_file():
        return EarlierRun()
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        entries = {entry["case_id"]: entry for entry in record["cases"]}
        files = _outputs(entries.values()) | set(record.get("in_progress", ()))
        _decisive(record)
        for name in files:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"an output elsewhere, {name}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "Give predictions a folder of their own."
        raise InputError(path, "the record of an earlier run", error, remedy) from None
    return EarlierRun(record, entries, frozenset(files))


def check_files(
    output: Path,
    cases: Sequence[Case],
    targets: Collection[str],
    stale: Collection[str],
    earlier: EarlierRun,
) -> None:
    """Checks that no image or reference of the cases and no foreign file would be lost.

    `targets` are the names in the folder that a run is going to write, `stale` those that it is going
    to delete. Raises SettingsError.
    """
    remedy = "Give predictions a folder of their own."
    paths = (path for case in cases for path in (case.image_path, case.label_path))
    inputs = {path.resolve() for path in paths if path is not None}
    for name in (*targets, *stale):
        place = (output / name).resolve()
        if not inputs.isdisjoint([place, *place.parents]):
            expected, found = "a folder without the input", f"{output / name}, which is input"
            raise SettingsError("OUT", expected, found, remedy)
        if (output / name).exists() and name not in earlier.files:
            expected = f"an empty folder or one of earlier predictions (with {RECORD_FILE})"
            found = f"{output / name}, which would be overwritten"
            raise SettingsError("OUT", expected, found, remedy)


def stale_files(earlier: EarlierRun, kept: Iterable[dict[str, Any]]) -> list[str]:
    """Returns the outputs of earlier runs that belong to none of the entries that are kept."""
    return sorted(earlier.files - _outputs(kept))


def remove_stale_files(output: Path, names: Sequence[str]) -> None:
    """Deletes outputs of earlier runs: nobody is to take them for outputs of this one."""
    found = [path for path in map(output.joinpath, names) if path.exists() or path.is_symlink()]
    if found:
        print(f"removed {len(found)} outputs of an earlier run from {output}", file=sys.stderr)
    for path in found:
        path.unlink()


def write_record(
    output: Path,
    record: dict[str, Any],
    cases: Sequence[Case],
    entries: dict[str, dict[str, Any]],
    others: Sequence[tuple[VolumeKey, dict[str, Any]]] = (),
    in_progress: Collection[str] = (),
) -> None:
    """Writes the record of a run, `record` with the entries of its finished cases, and their lesions.

    `others` are entries of `other_cases`. `in_progress` are the files that are going to be written
    next: a run that is killed in between leaves them. The table's columns are those of BCS-DBT's
    predictions. PatientID, StudyUID and View come from the tables of the data set; without tables, the
    case id is used.
    """
    done = [(_row_key(case), entries[case.case_id]) for case in cases if case.case_id in entries]
    every = [*others, *done]
    content = record | {"cases": [entry for _, entry in every]}
    if in_progress:
        content["in_progress"] = list(in_progress)
    write_json(output / RECORD_FILE, content)
    if any("lesions" in entry for _, entry in every):
        rows = (
            (key, Detection(**each)) for key, entry in every for each in entry.get("lesions", ())
        )
        write_detections(output / LESION_FILE, rows)


def _row_key(case: Case) -> VolumeKey:
    """Returns PatientID, StudyUID and View of a case in the table of lesions."""
    # Only rows of tables have a view; their identifiers are PatientID and StudyUID.
    if case.view and case.boxes is not None:
        patient_id, study_uid = case.identifiers
        return patient_id, study_uid, case.view
    return case.case_id, "-", case.view or "-"


def changed_settings(record: dict[str, Any], earlier: EarlierRun) -> list[str]:
    """Returns what of a run's models and settings differs from the earlier run's, if there was one."""
    if not earlier.record:
        return []
    before, now = _decisive(earlier.record), _decisive(json.loads(json.dumps(record)))
    return [
        name for name in sorted(now.keys() | before.keys()) if before.get(name) != now.get(name)
    ]


def finished_cases(
    output: Path, record: dict[str, Any], cases: Sequence[Case], earlier: EarlierRun
) -> dict[str, dict[str, Any]]:
    """Returns the entries of cases that an earlier run into the same folder finished, by case id.

    A case is finished if the record says so, all its outputs but the picture exist, and its image
    has not changed. Raises SettingsError if that run had other models or settings.
    """
    if changed := changed_settings(record, earlier):
        expected = f"the model and settings of the earlier run in {output}"
        remedy = "Leave --resume out to predict all cases again, or give another folder OUT."
        raise SettingsError("--resume", expected, f"other {', '.join(changed)}", remedy)
    return {
        case.case_id: entry
        for case in cases
        if (entry := earlier.entries.get(case.case_id)) is not None
        and _is_complete(output, entry)
        and entry["image_state"] == image_state(case.path)
    }


def other_cases(
    output: Path, cases: Sequence[Case], earlier: EarlierRun
) -> list[tuple[VolumeKey, dict[str, Any]]]:
    """Returns the entries of finished cases that are not among the cases, each with its table key.

    They are those of the same models and settings, see `changed_settings`.
    The key is the one in the table of lesions, because the record has no PatientID.
    """
    own = {case.case_id for case in cases}
    entries = {
        case_id: entry
        for case_id, entry in earlier.entries.items()
        if case_id not in own and _is_complete(output, entry)
    }
    keys: dict[str, VolumeKey] = {}
    if any(entry.get("lesions") for entry in entries.values()) and (output / LESION_FILE).is_file():
        found, _ = read_detections(output / LESION_FILE)
        keys = {key[0] if key[1] == "-" else dbt_case_id(*key): key for key in found}
    return [(keys.get(name, (name, "-", "-")), entry) for name, entry in entries.items()]


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


@contextlib.contextmanager
def only_run_in(output: Path) -> Iterator[None]:
    """Makes and locks a folder for one run; raises SettingsError while another one holds it."""
    output.mkdir(parents=True, exist_ok=True)
    with file_lock(output / LOCK_FILE) as mine:
        if not mine:
            expected, found = "a folder that no other run is writing to", f"another run in {output}"
            raise SettingsError("OUT", expected, found, "Wait for it, or give another folder.")
        try:
            yield
        finally:
            (output / LOCK_FILE).unlink(missing_ok=True)


def _outputs(entries: Iterable[dict[str, Any]]) -> set[str]:
    """Returns the names of all outputs of some entries, with the table of lesions if they have it."""
    names: set[str] = set()
    for entry in entries:
        names.update(entry["outputs"] if entry["status"] == "predicted" else ())
        names |= {LESION_FILE} if "lesions" in entry else set()
    return names


def _is_complete(output: Path, entry: dict[str, Any]) -> bool:
    """Returns whether a case was predicted and all its outputs but the picture exist."""
    return entry["status"] == "predicted" and all(
        (output / name).is_file() for name in entry["outputs"] if not is_picture(name)
    )


def _decisive(record: dict[str, Any]) -> dict[str, Any]:
    """Returns what the predictions of a run depend on, apart from their images."""
    settings = {name: value for name, value in record["settings"].items() if name != "overlay"}
    kept = {name: value for name, value in record.items() if name not in _NOT_SETTINGS}
    return kept | {"settings": settings}
