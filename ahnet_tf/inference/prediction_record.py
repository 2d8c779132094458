"""What is recorded beside predictions, and what a resumed run may skip by it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preprocessing.datasets.case import Case
from preprocessing.dicom.deidentify import redact_path
from preprocessing.errors import InputError, SettingsError

RECORD_FILE = "prediction.json"

_LITS_CASE = re.compile(r"^volume-(\d+)$")
# What may change from one run to the next without a change of any prediction.
_OF_THE_RUN = ("cases", "input")


def prediction_name(case_id: str) -> str:
    """Returns the file name of a case's label map; `python -m ahnet_tf.evaluate` looks for it.

    LiTS' volume-3 gives segmentation-3.nii.gz, every other case CASE.nii.gz.
    """
    lits = _LITS_CASE.match(case_id)
    return f"segmentation-{lits[1]}.nii.gz" if lits else f"{case_id}.nii.gz"


def shown_input(path: str, cases: Sequence[Case]) -> str:
    """Returns a path that was typed, without what names the patient of a case below it."""
    inside = [case for case in cases if case.image_path.is_relative_to(path)]
    identifying = {each for case in inside for each in case.identifiers}
    return redact_path(path, identifying) if identifying else path


def content_digest(location: str) -> str | None:
    """Returns the SHA-256 of a model folder's files with their names; None for what is no folder."""
    folder = Path(location)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\n{path.stat().st_size}\n".encode())
        with open(path, "rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def image_state(image: Path) -> str:
    """Returns a short digest of the sizes and times of an image's files; no name goes into it."""
    files = [image] if image.is_file() else sorted(p for p in image.rglob("*") if p.is_file())
    states = (path.stat() for path in files)
    text = "\n".join(f"{state.st_size} {state.st_mtime_ns}" for state in states)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def finished_cases(output: Path, record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the entries of cases that an earlier run into the same folder has predicted, by case id.

    A case counts as predicted if the record says so and all its outputs are there.

    Args:
      output: folder of the predictions.
      record: of the run that resumes.

    Raises:
      SettingsError: the earlier run had another model or other settings.
      InputError: its record can't be read.
    """
    path = output / RECORD_FILE
    if not path.is_file():
        return {}
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        entries = {entry["case_id"]: entry for entry in earlier["cases"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(path, "the record of an earlier run", error) from None
    now = json.loads(json.dumps(record))
    names = sorted((now.keys() | earlier.keys()) - set(_OF_THE_RUN))
    changed = [name for name in names if earlier.get(name) != now.get(name)]
    if changed:
        raise SettingsError(
            "--resume",
            f"the model and settings of the earlier run in {output}",
            f"other {', '.join(changed)}",
            "Leave --resume out to predict all cases again, or give another folder OUT.",
        )
    return {
        case_id: entry
        for case_id, entry in entries.items()
        if entry["status"] == "predicted"
        and all((output / name).is_file() for name in entry["outputs"])
    }
