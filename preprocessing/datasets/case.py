"""One patient's volume: its image and annotation, and what of their names may be shown."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from preprocessing.dicom.deidentify import redact_path
from preprocessing.volumes.lesions import LesionBox

# With what is put before and behind it, a name of this length fits every file system.
LONGEST_ID = 100


@dataclass(frozen=True)
class Case:
    """One patient's volume.

    Attributes:
      case_id: unique among the cases found together; letters, digits, `.`, `_` and `-`.
      image_path: the image, a file or a folder of DICOM slices; None where only a label map was found.
      label_path: the label map, or a folder of DICOM masks, if there is one.
      source: name of the data set (the input folder).
      problem: why the case can't be used, in one line; empty if it can.
      boxes: lesions of a DBT volume from a table of boxes; None where there is no such table.
      view: "lcc", "rcc", "lmlo" or "rmlo" where a table says it, else empty.
      identifiers: what names the patient in headers and tables; it gets into no output.
      label_names: label values and their names as the data set has them; empty: they are the task's.
      pseudonym: an id that tells nobody, for a case whose own name would tell somebody.
    """

    case_id: str
    image_path: Path | None
    label_path: Path | None
    source: str
    problem: str = ""
    boxes: tuple[LesionBox, ...] | None = None
    view: str = ""
    identifiers: tuple[str, ...] = ()
    label_names: tuple[tuple[int, str], ...] = ()
    pseudonym: str = ""


def redact_case_path(case: Case, path: Path) -> str:
    """Returns a path of a case as it may be printed, without the case's identifiers."""
    return redact_path(path, case.identifiers) if case.identifiers else str(path)


def redact_message(case: Case, text: str) -> str:
    """Returns a message about a case in one line, its paths as they may be printed."""
    for path in (case.image_path, case.label_path):
        if path is not None:
            text = text.replace(str(path), redact_case_path(case, path))
    return one_line(text)


def identifier(name: str) -> str:
    """Returns a name that is safe in file names, logs and JSON, and short enough for file names."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-") or "case"
    if len(safe) <= LONGEST_ID:
        return safe
    digest = hashlib.sha256(safe.encode()).hexdigest()[:12]
    return f"{safe[: LONGEST_ID - 13]}-{digest}"


def folder_name(folder: Path) -> str:
    """Returns a folder's own name, whatever way leads to it."""
    return os.path.basename(os.path.realpath(folder))


def one_line(text: str) -> str:
    """Returns a text without line breaks."""
    return " ".join(text.split())
