"""The training and evaluation splits: assignment of cases, and names of record files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocessing.errors import SettingsError

SPLITS = ("train", "eval")
# Which files of a split's folder are its records: *.tfrecord, *.tfrecord-00000-of-00010, *.gz; not
# hidden files, nor those that are still being written (*.tfrecord.0f3a.tmp). A single pattern of
# names, because TFX's ImportExampleGen takes nothing else.
RECORD_PATTERN = "[!.]*.*[rg0-9][dz0-9]"
# Default share of cases for evaluation.
EVAL_FRACTION = 0.2


def split_files(folder: str | os.PathLike) -> list[Path]:
    """Returns the record files in a split's folder, sorted by name; none without a folder."""
    return sorted(Path(folder).glob(RECORD_PATTERN))


def split_place(name: str) -> float:
    """Returns a hash of a case id, or of a patient's pseudonym, as a number in [0, 1)."""
    digest = hashlib.sha256(f"split {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_by_hash(patients: Mapping[str, str], eval_fraction: float) -> dict[str, str]:
    """Assigns each case to a split by a stable hash of its patient, or of its id.

    `patients` has the pseudonym of each case's patient, empty if unknown. All cases of a patient are in
    one split: "eval" if the patient's `split_place` is below `eval_fraction` (at least 0, less than 1),
    whatever other cases there are. With two or more patients, though, the one with the lowest place is
    in "eval" unless the fraction is 0, and the one with the highest in "train". A single case is in
    "train"; several cases of a single patient are split as if they were different patients'. Raises
    SettingsError if the fraction is out of range.
    """
    if not 0 <= eval_fraction < 1:
        raise SettingsError("--eval-fraction", "a share from 0 up to below 1", eval_fraction)
    owners = {case_id: patient or case_id for case_id, patient in patients.items()}
    if len(set(owners.values())) == 1:
        owners = {case_id: case_id for case_id in owners}
    ordered = sorted(set(owners.values()), key=split_place)
    splits = {each: "eval" if split_place(each) < eval_fraction else "train" for each in ordered}
    if eval_fraction > 0 and len(ordered) > 1:
        splits[ordered[0]] = "eval"
    if ordered:
        splits[ordered[-1]] = "train"
    return {case_id: splits[owner] for case_id, owner in owners.items()}


def load_splits(path: str | os.PathLike, case_ids: Sequence[str]) -> dict[str, str]:
    """Reads a user's splits, `{"train": [...], "eval": [...]}` with case ids.

    Raises SettingsError for other JSON, a case in both lists, or an id not among `case_ids`.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(path, "a JSON object", error) from None
    names: dict[str, Any] = content if isinstance(content, dict) else {}
    lists: list[Any] = [names.get(split) for split in SPLITS]
    are_lists = len(names) == len(SPLITS) and all(isinstance(ids, list) for ids in lists)
    if not are_lists or not all(isinstance(each, str) for ids in lists for each in ids):
        raise SettingsError(path, '{"train": [case ids], "eval": [case ids]}', _brief(content))
    both = sorted(set(lists[0]) & set(lists[1]))
    if both:
        raise SettingsError(path, "each case in one split", f"in both: {', '.join(both)}")
    splits = {case_id: split for split in SPLITS for case_id in names[split]}
    missing = sorted(set(splits) - set(case_ids))
    if missing:
        expected = f"case ids among {_brief(sorted(case_ids))}"
        raise SettingsError(path, expected, f"unknown ones: {', '.join(missing)}")
    return splits


def _brief(content: object, most: int = 300) -> str:
    text = json.dumps(content)
    return text if len(text) <= most else f"{text[:most]}..."
