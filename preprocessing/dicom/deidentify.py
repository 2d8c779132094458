"""Keeps identifiers from DICOM headers out of case ids and messages.

Archives name folders and files after patients and UIDs. In messages, such a part of a path is
replaced by its position among its neighbours sorted by name (`#3` for the third), so that the owner
of the data can still find the file.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue

# pydicom's exceptions on malformed files. Their messages may contain patient data: callers report
# only the type.
DAMAGE = (
    *(InvalidDicomError, BytesLengthException, ValueError, TypeError, LookupError),
    *(AttributeError, OverflowError, RuntimeError, EOFError, OSError, struct.error),
)

_NAMES = (
    *("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName"),
    *("ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName"),
    *("NameOfPhysiciansReadingStudy", "RequestingPhysician", "ResponsiblePerson"),
)
IDENTIFYING_TAGS = (
    *_NAMES,
    *("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "PatientBirthDate"),
    *("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "PatientTelephoneNumbers"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"),
    *("ConcatenationUID", "DimensionOrganizationUID", "DeviceSerialNumber"),
)

# Shorter values ("1", "M") occur in many names by chance; they only count as separate words.
SHORT = 3
_NOT_IDENTIFYING = frozenset(["", "anonymous", "anonymized", "anonymised", "unknown", "none"])
_UID = re.compile(r"\d+(\.\d+){4,}")
_SEPARATORS = re.compile(r"[\W_]+")


def header_identifiers(header: Dataset) -> frozenset[str]:
    """Returns the values that identify a patient, study or file, as lower-case letters and digits."""
    found = set()
    for keyword in IDENTIFYING_TAGS:
        try:
            value = header.get(keyword)
            values = value if isinstance(value, MultiValue) else [value]
            texts = [str(each) for each in values if each is not None]
        except DAMAGE:
            continue
        for text in texts:
            found |= _forms_of_name(text) if keyword in _NAMES else {_normalized(text)}
    return frozenset(found - _NOT_IDENTIFYING)


def _forms_of_name(text: str) -> set[str]:
    """Returns a PersonName (`Family^Given=` and the same in other scripts) as folders may have it.

    These are each script's name, its first parts in any order, and its words.
    """
    forms = set()
    for name in text.split("="):
        parts = [part for part in map(_normalized, name.split("^")) if part]
        forms.add("".join(parts))
        for count in (2, 3):
            forms.update(map("".join, itertools.permutations(parts[:3], count)))
        words = map(_normalized, _SEPARATORS.split(name))
        # Chinese and Japanese names have few characters.
        forms.update(word for word in words if len(word) >= (SHORT if word.isascii() else 2))
    return forms


def is_identifying(name: str, identifiers: Collection[str]) -> bool:
    """Returns whether the name of a file or folder contains an identifier or a UID."""
    if _UID.search(name):
        return True
    plain, words = _normalized(name), set(map(_normalized, _SEPARATORS.split(name)))
    values = {_normalized(value) for value in identifiers} - {""}
    return any(
        value in plain if len(value) >= SHORT else value in words or value == plain
        for value in values
    )


@dataclass(frozen=True)
class RedactedPath:
    """A path that is redacted when converted to text, which is slow and seldom needed."""

    path: Path
    identifiers: Collection[str]

    def __str__(self) -> str:
        return redact_path(self.path, self.identifiers)


def redact_path(path: str | os.PathLike, identifiers: Collection[str]) -> str:
    """Returns a path in which each identifying part is replaced by its position by name, `#3`."""
    parts = Path(path).parts
    redacted = list(parts)
    for index, part in enumerate(parts):
        if is_identifying(part, identifiers):
            try:
                position = sorted(os.listdir(Path(*parts[:index]))).index(part) + 1
                redacted[index] = f"#{position}"
            except (OSError, ValueError):
                redacted[index] = "#"
    return str(Path(*redacted))


def redact_text(text: str, identifiers: Collection[str]) -> str:
    """Returns a text in which `#` stands for each identifier, whatever its case and separators.

    Short ones count as whole words only; numbers of less than five digits, and a letter or two, stay.
    """
    for value in sorted(map(_normalized, identifiers), key=len, reverse=True):
        if len(value) < (5 if value.isdigit() else SHORT if value.isascii() else 2):
            continue
        pattern = r"[\W_]*".join(map(re.escape, value))
        if len(value) < 5:
            pattern = rf"(?<![^\W_]){pattern}(?![^\W_])"
        text = re.sub(pattern, "#", text, flags=re.IGNORECASE)
    return text


def pseudonym(prefix: str, uid: str) -> str:
    """Returns a case id derived from a UID by SHA-256: the prefix and 12 hexadecimal digits."""
    # Names of files may contain bytes that are not text.
    digest = hashlib.sha256(uid.encode(errors="surrogatepass")).hexdigest()
    return f"{prefix}-{digest[:12]}"


def patient_pseudonym(patient_id: str) -> str:
    """Returns a pseudonym of a PatientID; empty for one that says nothing, such as "anonymous"."""
    plain = _normalized(patient_id)
    return "" if plain in _NOT_IDENTIFYING else pseudonym("patient", plain)


def _normalized(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())
