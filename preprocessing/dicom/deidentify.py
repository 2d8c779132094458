"""Names that let no identifier of a DICOM header out: of cases, files and folders.

Archives name folders and files after patients and UIDs. What is shown of such a path is the place of
the name among its neighbours, `#3` for the third by name, by which its owner finds it.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue

# Exceptions that pydicom raises on malformed files. Their messages may quote patient data from the header,
# so callers report only the exception type.
DAMAGE = (
    *(InvalidDicomError, BytesLengthException, ValueError, TypeError, KeyError, IndexError),
    *(AttributeError, LookupError),
    *(NotImplementedError, OverflowError, RuntimeError, EOFError, OSError, struct.error),
)

NAMES = (
    *("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName"),
    *("ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName"),
    *("NameOfPhysiciansReadingStudy", "RequestingPhysician", "ResponsiblePerson"),
)
NUMBERS = (
    *("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "PatientBirthDate"),
    *("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "PatientTelephoneNumbers"),
)
UIDS = (
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"),
    *("ConcatenationUID", "DimensionOrganizationUID", "DeviceSerialNumber"),
)
IDENTIFYING_TAGS = (*NAMES, *NUMBERS, *UIDS)

# Shorter values ("1", "M") occur in every name by chance; they identify only as a word of their own.
SHORT = 3
_TELL_NOBODY = frozenset(["", "anonymous", "anonymized", "anonymised", "unknown", "none"])
_UID = re.compile(r"\d+(\.\d+){4,}")
_WORDS = re.compile(r"[\W_]+")


def identifiers(header: Dataset) -> frozenset[str]:
    """Returns the values of a header that tell a patient, a study or a file, as plain lower-case
    letters and digits; a value that can't be read is left out."""
    found = set()
    for keyword in IDENTIFYING_TAGS:
        try:
            value = header.get(keyword)
            several = value if isinstance(value, MultiValue) else [value]
            texts = [str(each) for each in several if each is not None]
        except DAMAGE:
            continue
        for text in texts:
            found.add(_plain(text))
            if keyword in NAMES:
                found.update(word for word in map(_plain, _WORDS.split(text)) if len(word) >= SHORT)
    return frozenset(found - _TELL_NOBODY)


def is_identifying(name: str, identifying: Collection[str]) -> bool:
    """Returns whether an identifier occurs in a name of a file or folder, or the name holds a UID."""
    if _UID.search(name):
        return True
    plain, words = _plain(name), set(map(_plain, _WORDS.split(name)))
    values = {_plain(value) for value in identifying} - {""}
    return any(
        value in plain if len(value) >= SHORT else value in words or value == plain
        for value in values
    )


@dataclass(frozen=True)
class RedactedPath:
    """A path that is made fit to be shown when it is shown: that takes a while, and is seldom needed."""

    path: Path
    identifying: Collection[str]

    def __str__(self) -> str:
        return redact_path(self.path, self.identifying)


def redact_path(path: str | os.PathLike, identifying: Collection[str]) -> str:
    """Returns a path as it may be printed: an identifying part gives its place by name, `#3`."""
    parts = Path(path).parts
    shown = [
        _place(Path(*parts[:index]), part) if is_identifying(part, identifying) else part
        for index, part in enumerate(parts)
    ]
    return str(Path(*shown))


def pseudonym(prefix: str, uid: str) -> str:
    """Returns a case id from a series UID that doesn't lead back to it."""
    # Names of files may hold bytes that are no text.
    digest = hashlib.sha256(uid.encode(errors="surrogatepass")).hexdigest()
    return f"{prefix}-{digest[:12]}"


def _place(folder: Path, name: str) -> str:
    try:
        return f"#{sorted(os.listdir(folder)).index(name) + 1}"
    except (OSError, ValueError):
        return "#"


def _plain(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())
