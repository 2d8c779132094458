"""Makes the ids of cases unique, also as names of files."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from preprocessing.datasets.case import Case, folder_name, redact_case_path, safe_id
from preprocessing.dicom.deidentify import is_identifying

# Name of a data set or folder whose own name contains an identifier.
ANONYMOUS_SOURCE = "dicom"


def with_unique_ids(cases: Sequence[Case]) -> tuple[list[Case], list[str]]:
    """Gives cases with equal ids others, and returns a line about each of them too.

    These are pseudonyms, or else have the data set's or folder's name as a prefix, or else digits
    from the path. Ids are equal that name the same files where upper case does not count, or the
    same predictions (volume-3, segmentation-3).
    """
    counts = Counter(_file_key(case.case_id) for case in cases)
    unique = list(cases)
    by_key: dict[str, list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        if case.pseudonym and counts[_file_key(case.case_id)] > 1:
            unique[index] = replace(case, case_id=case.pseudonym)
        by_key[_file_key(unique[index].case_id)].append(index)
    taken = set(by_key)
    for indices in by_key.values():
        twins = [unique[index] for index in indices]
        if len(twins) == 1:
            continue
        folders = [_folder_id(case) for case in twins]
        pairs = list(zip(twins, folders, strict=True))
        for names in (
            [f"{case.source}_{case.case_id}" for case in twins],
            [f"{folder}_{case.case_id}" for case, folder in pairs],
            [f"{case.source}_{folder}_{case.case_id}" for case, folder in pairs],
            [f"{case.case_id}-{_digits(case, twins[:n])}" for n, case in enumerate(twins)],
        ):
            names = list(map(safe_id, names))
            keys = set(map(_file_key, names))
            if len(keys) == len(twins) and not keys & taken:
                break
        taken |= keys
        for index, name in zip(indices, names, strict=True):
            unique[index] = replace(unique[index], case_id=name)
    renamed = [
        f"{redact_case_path(after, after.path)}: case {before.case_id} renamed to {after.case_id}"
        for before, after in zip(cases, unique, strict=True)
        if before.case_id != after.case_id
    ]
    return unique, renamed


def _file_key(case_id: str) -> str:
    return re.sub(r"^segmentation-(\d+)$", r"volume-\1", case_id.lower())


def _folder_id(case: Case) -> str:
    name = safe_id(folder_name(case.path.parent))
    return ANONYMOUS_SOURCE if is_identifying(name, case.identifiers) else name


def _digits(case: Case, earlier: Sequence[Case]) -> str:
    number = sum(each.path == case.path for each in earlier)
    place = f"{os.path.realpath(case.path)} {number}".encode(errors="surrogatepass")
    return hashlib.sha256(place).hexdigest()[:8]
