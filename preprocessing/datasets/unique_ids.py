"""Makes the ids of cases unique, also as names of files."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from preprocessing.datasets.case import Case, redact_case_path, safe_id
from preprocessing.dicom.deidentify import is_identifying

# Name of a data set or folder whose own name contains an identifier.
ANONYMOUS_SOURCE = "dicom"
# So many folders above a file may tell two cases apart.
_LEVELS = 4


def with_unique_ids(cases: Sequence[Case]) -> tuple[list[Case], list[str]]:
    """Gives cases with equal ids others, and returns a line about each of them too.

    These are pseudonyms, or else have the data set's or a folder's name as a prefix, or else digits
    from the file's name, or else from its path. Ids are equal that name the same files where upper
    case does not count, or the same predictions (volume-3, segmentation-3).
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
        for names in _candidates(twins):
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


def _candidates(twins: Sequence[Case]) -> Iterator[list[str]]:
    """Yields further names of cases with equal ids; the last ones are all different."""
    levels = [[_folder_id(case, level) for case in twins] for level in range(_LEVELS)]
    sources = [case.source for case in twins]
    both = [f"{source}_{folder}" for source, folder in zip(sources, levels[0], strict=True)]
    for prefixes in (sources, *levels, both):
        yield [f"{prefix}_{case.case_id}" for prefix, case in zip(prefixes, twins, strict=True)]
    yield [f"{case.case_id}-{_digits(case.path.name)}" for case in twins]
    places = [os.path.realpath(case.path) for case in twins]
    numbered = [f"{place} {places[:n].count(place)}" for n, place in enumerate(places)]
    yield [f"{case.case_id}-{_digits(own)}" for case, own in zip(twins, numbered, strict=True)]


def _file_key(case_id: str) -> str:
    return re.sub(r"^segmentation-(\d+)$", r"volume-\1", case_id.lower())


def _folder_id(case: Case, level: int) -> str:
    """Returns the name of the folder a case is in, or of one that many levels up."""
    folder = Path(os.path.realpath(case.path)).parent
    name = safe_id(([folder, *folder.parents] + [Path()] * level)[level].name)
    return ANONYMOUS_SOURCE if is_identifying(name, case.identifiers) else name


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
