"""Pairs images with label maps by the names of files and folders."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preprocessing.datasets.case import Case, folder_name, identifier, one_line
from preprocessing.volumes.nifti import SUFFIXES

LABEL_WORDS = frozenset(
    [
        "label",
        "labels",
        "lbl",
        "seg",
        "segs",
        "segmentation",
        "segmentations",
        "mask",
        "masks",
        "gt",
        "truth",
        "annotation",
        "annotations",
        "reference",
        "labelstr",
        "labelsts",
    ]
)
IMAGE_WORDS = frozenset(
    [
        "ct",
        "image",
        "images",
        "img",
        "imgs",
        "volume",
        "volumes",
        "vol",
        "scan",
        "scans",
        "dbt",
        "imagestr",
        "imagests",
    ]
)
# Words that say "label map" only where no other word of the name says "image".
ORGAN_WORDS = frozenset(
    ["liver", "tumor", "tumour", "tumors", "tumours", "lesion", "lesions", "mass"]
)
# Names of DICOM folders that tell no case from another.
ARCHIVE_WORDS = frozenset(["dicom", "dcm", "series", "study", "patient"])
# Images that come without label maps by design.
UNLABELLED_FOLDERS = frozenset(["imagests"])

DECATHLON_FOLDERS = frozenset(["imagesTr", "labelsTr", "imagesTs", "labelsTs"])

KNOWN_SUFFIXES = (*SUFFIXES, ".dcm", ".dicom", ".ima")

_LITS = re.compile(r"^(?:test-)?(volume|segmentation)-(\d+)$", re.IGNORECASE)
_NNUNET_CHANNEL = re.compile(r"_0000$")


@dataclass(frozen=True)
class _File:
    path: Path
    role: str  # "image" or "label"
    group: Path  # partners are looked for within one group
    key: str  # partners have the same key
    name: str  # what a case with this image is called, if its folder does not name it


def paired(
    files: Sequence[Path], dicom: Sequence[Path], source: str, need_labels: bool
) -> list[Case]:
    """Returns the cases among images and label maps, paired by their names.

    Args:
      files: NIfTI files, images and label maps.
      dicom: DICOM images, folders of slices or files; each is named by its folder.
      source: name of the data set.
      need_labels: as in `preprocessing.datasets.discovery.find_cases`.
    """
    groups: dict[Path, list[_File]] = defaultdict(list)
    known = [*_classified(files, dicom), *_classified_dicom(files, dicom)]
    for file in _lits_partners_joined(known):
        groups[file.group].append(file)
    found = []
    for group, members in sorted(groups.items()):
        found += _cases_of_group(group, members, source, need_labels)
    if need_labels:
        return [_with_problem(case) for case in found]
    return [case for case in found if case.image_path is not None]


def _classified(paths: Sequence[Path], dicom: Sequence[Path]) -> list[_File]:
    """Tells images from label maps: by LiTS names, by folders of either kind, by the files' words."""
    roles_in = _roles_in([*paths, *dicom])
    files = []
    for path in paths:
        stem, folder = stem_of(path), path.parent
        words = _words(stem)
        key = "_".join(word for word in words if word not in LABEL_WORDS | IMAGE_WORDS)
        folder_role = _role(_words(folder.name))
        lits = _LITS.match(stem)
        if lits:
            role = "image" if lits[1].lower() == "volume" else "label"
            name = f"volume-{int(lits[2])}"
            files.append(_File(path, role, folder, name, name))
        elif folder_role and (
            {"image", "label"} <= roles_in[folder.parent] or folder.name in DECATHLON_FOLDERS
        ):
            if folder_role == "image":
                stem, key = _NNUNET_CHANNEL.sub("", stem), _NNUNET_CHANNEL.sub("", key)
            files.append(_File(path, folder_role, folder.parent, key or stem, stem))
        else:
            role = _role(words) or ("label" if ORGAN_WORDS.intersection(words) else "image")
            if role == "label":
                key = "_".join(word for word in key.split("_") if word not in ORGAN_WORDS)
            files.append(_File(path, role, folder, key, key))
    return files


def _classified_dicom(paths: Sequence[Path], dicom: Sequence[Path]) -> list[_File]:
    """Returns DICOM images as files whose partner lies beside them, in them, or in a folder above.

    A label map in a folder above belongs to the one series below that folder, however deep archives
    put it (PATIENT/STUDY/SERIES).
    """
    roles_in = _roles_in([*paths, *dicom])
    with_nifti = {path.parent for path in paths}
    below = Counter(folder for path in dicom for folder in path.parents)
    files = []
    for path in dicom:
        stem, folder = stem_of(path), path.parent
        key = "_".join(
            word for word in _words(stem) if word not in LABEL_WORDS | IMAGE_WORDS | ARCHIVE_WORDS
        )
        above = next((each for each in path.parents if each in with_nifti), None)
        lits = _LITS.match(stem)
        if lits and lits[1].lower() == "volume":
            name = f"volume-{int(lits[2])}"
            files.append(_File(path, "image", folder, name, name))
        elif path in with_nifti:
            files.append(_File(path, "image", path, key, stem if key else ""))
        elif _role(_words(folder.name)) == "image" and "label" in roles_in[folder.parent]:
            files.append(_File(path, "image", folder.parent, key or stem, stem))
        elif above is not None and below[above] == 1:
            files.append(_File(path, "image", above, key, stem if key else ""))
        else:
            files.append(_File(path, "image", folder, key, stem if key else ""))
    return files


def _roles_in(paths: Sequence[Path]) -> dict[Path, set[str | None]]:
    """Returns for each folder the roles that the names of its subfolders with files tell."""
    roles: dict[Path, set[str | None]] = defaultdict(set)
    for folder in {path.parent for path in paths}:
        roles[folder.parent].add(_role(_words(folder.name)))
    return roles


def _role(words: Sequence[str]) -> str | None:
    if LABEL_WORDS.intersection(words):
        return "label"
    return "image" if IMAGE_WORDS.intersection(words) else None


def _lits_partners_joined(files: list[_File]) -> list[_File]:
    """Puts LiTS files whose partner lies in another folder into one group (volumes/, segmentations/)."""
    lits = [file for file in files if _LITS.match(stem_of(file.path))]
    here = Counter((file.group, file.key) for file in lits)
    alone = {file: file.role for file in lits if here[file.group, file.key] == 1}
    roles = Counter((file.key, role) for file, role in alone.items())
    group_of = {file.key: file.group for file, role in alone.items() if role == "image"}
    return [
        replace(file, group=group_of[file.key])
        if file in alone and roles[file.key, "image"] == roles[file.key, "label"] == 1
        else file
        for file in files
    ]


def _cases_of_group(group: Path, files: list[_File], source: str, need_labels: bool) -> list[Case]:
    images = [file for file in files if file.role == "image"]
    labels = [file for file in files if file.role == "label"]
    alone = len(images) == 1 and len(labels) == 1 and labels[0].group == labels[0].path.parent
    if alone and not _LITS.match(stem_of(images[0].path)):
        # One of each in a folder of their own: the folder names the case, whatever the files' names.
        name = identifier(folder_name(group))
        return [Case(name, images[0].path, labels[0].path, source)]
    cases = []
    for key in sorted({file.key for file in files}):
        own_images = [file for file in images if file.key == key]
        own_labels = [file for file in labels if file.key == key]
        one = (own_images or own_labels)[0]
        case_id = identifier(one.name or folder_name(group))
        image, label = (own[0].path if own else None for own in (own_images, own_labels))
        if len(own_images) <= 1 and len(own_labels) <= 1:
            cases.append(Case(case_id, image, label, source))
        elif need_labels:
            names = ", ".join(file.path.name for file in own_images + own_labels)
            problem = f"{group}: expected one image and one label map, found {names}"
            cases.append(Case(case_id, image, label, source, one_line(problem)))
        elif len(own_images) == 1:
            cases.append(Case(case_id, image, None, source))
        else:
            ids = [identifier(stem_of(file.path)) for file in own_images]
            paired = zip(ids, own_images, strict=True)
            cases += [Case(own_id, file.path, None, source) for own_id, file in paired]
    return cases


def _with_problem(case: Case) -> Case:
    if case.problem:
        return case
    if case.image_path is None:
        problem = f"{case.label_path}: expected an image beside this label map, found none"
    elif case.label_path is None:
        problem = f"{case.image_path}: expected a label map beside this image, found none"
    else:
        return case
    return replace(case, problem=one_line(problem))


def stem_of(path: Path) -> str:
    """Returns the name of an image without the suffix that tells its format."""
    suffixes = (suffix for suffix in KNOWN_SUFFIXES if path.name.lower().endswith(suffix))
    return path.name[: -len(next(suffixes, "")) or None]


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
