"""Completes what the layouts have found: problems of cases, and lines about what is passed over."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from preprocessing.datasets import layouts
from preprocessing.datasets.case import Case, PassedOver
from preprocessing.datasets.layouts import Found
from preprocessing.dicom.deidentify import pseudonym, redact_path
from preprocessing.errors import InputError
from preprocessing.volumes.nifti import has_nifti_suffix


def completed(found: Found) -> list[Case]:
    """Returns the cases with their problems, or without labels those with an image."""
    cases = [_with_damaged_lists(case, found) for case in found.cases]
    if found.need_labels:
        return [_with_missing_part(case) for case in _strays_merged(cases, found)]
    for case in cases:
        if case.label_path is not None:
            found.pass_over(case.label_path, layouts.NO_IMAGE)
    return [case for case in cases if case.image_path is not None]


def _with_missing_part(case: Case) -> Case:
    """Returns a case with the problem that its image or its annotation is missing, if so."""
    if case.problem or (case.image_path and case.label_path) or case.boxes is not None:
        return case
    here, missing = ("image", "a label map") if case.image_path else ("label map", "an image")
    problem = InputError(case.path, f"{missing} beside this {here}", "none")
    return replace(case, problem=str(problem))


def _with_damaged_lists(case: Case, found: Found) -> Case:
    """Returns a case without what a damaged dataset.json or table would have said about it."""
    for folder, problem in found.damaged_lists.items():
        if found.need_labels and not case.problem and folder in case.path.parents:
            case = replace(case, problem=problem)
    for folder, problem in found.damaged_tables.items():
        if case.label_path is None and folder in case.path.parents:
            # Volumes of tables are named after patients.
            own = pseudonym("dbt", case.path.relative_to(folder).as_posix())
            parts = case.path.relative_to(folder).parts
            problem = problem if found.need_labels else ""
            case = replace(case, case_id=own, problem=problem, identifiers=parts, boxes=())
    return case


def _strays_merged(cases: list[Case], found: Found) -> list[Case]:
    """Refuses series of slices with further images or label maps in their folders."""
    series = {case.image_path for case in cases if os.path.isdir(case.image_path or "")}
    shared = {case.path.parent for case in cases} & series
    merged = []
    for case in cases:
        if case.image_path in shared and not case.problem:
            names = filter(has_nifti_suffix, found.folders[case.path])
            several = f"the slices, {', '.join(names)}"
            problem = str(InputError(case.path, "one image and one label map", several))
            case = replace(case, problem=problem)
        if case.path.parent not in series:
            merged.append(case)
        elif case.label_path and case.label_path.parent not in series:
            found.pass_over(case.label_path, "the label map of an image among slices")
    return merged


def passed_over_lines(found: Found, cases: Sequence[Case], root: Path) -> list[str]:
    """Returns a line for all that is passed over, and one for a folder of the same kind."""
    used = {case.image_path for case in cases}
    used |= {case.label_path for case in cases} if found.need_labels else set()
    used.discard(None)
    busy = {folder for path in used if path for folder in path.parents}
    entries: dict[Path, PassedOver] = {}
    for entry in found.passed_over:
        if used.isdisjoint((entry.path, *entry.path.parents)):
            entries.setdefault(entry.path, entry)
    by_folder: dict[Path, list[PassedOver]] = defaultdict(list)
    for entry in entries.values():
        by_folder[entry.path.parent].append(entry)
    everybody = {
        each for image in (*found.dicom, *found.segmentations) for each in image.identifiers
    }
    lines = []
    for folder, own in sorted(by_folder.items()):
        reasons = {entry.reason for entry in own}
        if len(own) > 1 and len(reasons) == 1 and folder not in busy and folder != root:
            own = [PassedOver(folder, f"{len(own)} files: {own[0].reason}", own[0].identifiers)]
        for path, reason, identifiers in own:
            plain = "".join(filter(str.isalnum, str(path).casefold()))
            known = [*identifiers, *(each for each in everybody if each in plain)]
            lines.append(f"{redact_path(path, known) if known else path}: {reason}")
    return lines
