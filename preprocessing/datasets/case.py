"""One case: its image and annotation, and how to name both without identifying the patient."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from preprocessing.dicom.deidentify import redact_path, redact_text
from preprocessing.errors import AHNetError
from preprocessing.volumes.lesions import LesionBox

# Short enough for file names on every file system, including prefixes and suffixes.
LONGEST_ID = 100


@dataclass(frozen=True)
class Case:
    """One volume of a patient."""

    case_id: str  # unique among the cases found together; letters, digits, `.`, `_` and `-`
    # A file, or a folder of DICOM slices; None if there is only a label map.
    image_path: Path | None
    label_path: Path | None  # the label map, or a folder of DICOM masks, if any
    source: str  # name of the data set (the input folder)
    problem: str = ""  # why the case can't be used, in one line; empty if it can
    # Lesions of a tomosynthesis from a table of boxes; None if there is no such table.
    boxes: tuple[LesionBox, ...] | None = None
    view: str = ""  # "lcc", "rcc", "lmlo" or "rmlo" if known from a table, else empty
    # What identifies the patient in headers and tables; never part of any output.
    identifiers: tuple[str, ...] = ()
    # Label values and their names in the data set; empty if they are the task's.
    label_names: tuple[tuple[int, str], ...] = ()
    pseudonym: str = ""  # id to use if the case's own name could identify the patient
    patient: str = ""  # pseudonym of the patient, from a DICOM header or a table; empty if unknown

    @property
    def path(self) -> Path:
        """The image, or else the label map, or else the name of the data set."""
        return self.image_path or self.label_path or Path(self.source)


class PassedOver(NamedTuple):
    """A file or folder that is part of no case, and why."""

    path: Path
    reason: str
    identifiers: tuple[str, ...] = ()  # as those of a case


def redact_case_path(case: Case, path: Path | None) -> str:
    """Returns a path of a case without the case's identifiers, for messages."""
    return redact_path(path or "", case.identifiers) if case.identifiers else str(path)


def redact_message(case: Case, text: str) -> str:
    """Returns a message about a case in one line, without the case's identifiers."""
    for path in (case.image_path, case.label_path):
        if path is not None:
            text = text.replace(str(path), redact_case_path(case, path))
    # Names may also be in it alone, without their folder or cut into words.
    return printable(redact_text(text, case.identifiers))


def printable(text: str) -> str:
    """Returns a text in one line, with escapes for bytes that are not text and control characters."""
    text = " ".join(text.split())
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def rejection_reason(case: Case, error: Exception) -> str:
    """Returns an error of a case as one line, without the case's identifiers."""
    text = str(error)
    if isinstance(error, MemoryError):
        text = f"{case.path}: expected a case that fits into memory, found {text or 'a larger one'}"
    elif isinstance(error, OSError):
        text = f"{case.path}: {text}"
    elif not isinstance(error, AHNetError):
        # Texts of libraries may quote headers.
        text = type(error).__name__ + (f": {text}" if text and not case.identifiers else "")
        text = f"{case.path}: expected a case that can be read, found {text}"
    return redact_message(case, text)


def safe_id(name: str) -> str:
    """Returns a name limited to characters and a length that are safe in file names and logs."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-") or "case"
    if len(safe) <= LONGEST_ID:
        return safe
    digest = hashlib.sha256(safe.encode()).hexdigest()[:12]
    return f"{safe[: LONGEST_ID - 13]}-{digest}"


def folder_name(folder: Path) -> str:
    """Returns the real name of a folder, with links and `..` resolved."""
    return os.path.basename(os.path.realpath(folder))
