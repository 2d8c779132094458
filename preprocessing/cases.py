"""Finds the cases of a data set: which image belongs to which label map.

Understood are LiTS (`volume-N.nii`, `segmentation-N.nii`), the Medical Segmentation Decathlon and
nnU-Net (`imagesTr`, `labelsTr`), a folder with one subfolder a case (`ct.nii.gz`, `label.nii.gz`), and
pairs named alike in one folder (`a_ct.nii.gz`, `a_seg.nii.gz`) or in two (`images/a.nii.gz`,
`labels/a.nii.gz`). A folder with BCS-DBT's tables holds what those name (`preprocessing.bcs_dbt`). Every
image ends in a case; what has no partner is a case with a problem.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preprocessing.bcs_dbt import Tables, find_volumes, read_tables
from preprocessing.errors import InputError
from preprocessing.lesions import LesionBox
from preprocessing.nifti import SUFFIXES, has_nifti_suffix

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
# Images that come without label maps by design.
UNLABELLED_FOLDERS = frozenset(["imagests"])

DECATHLON_FOLDERS = frozenset(["imagesTr", "labelsTr", "imagesTs", "labelsTs"])

_LITS = re.compile(r"^(?:test-)?(volume|segmentation)-(\d+)$", re.IGNORECASE)
_NNUNET_CHANNEL = re.compile(r"_0000$")


@dataclass(frozen=True)
class Case:
    """One patient's volume.

    Attributes:
      case_id: unique among the cases found together; letters, digits, `.`, `_` and `-`.
      image_path: the image; None where only a label map was found.
      label_path: the label map, if there is one.
      source: name of the data set (the input folder).
      problem: why the case can't be used, in one line; empty if it can.
      boxes: lesions of a DBT volume from a table of boxes; None where there is no such table.
      view: "lcc", "rcc", "lmlo" or "rmlo" where a table says it, else empty.
      identifiers: what names the patient in file names; it never leaves the process.
    """

    case_id: str
    image_path: Path | None
    label_path: Path | None
    source: str
    problem: str = ""
    boxes: tuple[LesionBox, ...] | None = None
    view: str = ""
    identifiers: tuple[str, ...] = ()


@dataclass(frozen=True)
class _File:
    path: Path
    role: str  # "image" or "label"
    group: Path  # partners are looked for within one group
    key: str  # partners have the same key
    name: str  # what a case with this image is called, if its folder does not name it


def find_cases(paths: Sequence[str | os.PathLike], *, need_labels: bool) -> list[Case]:
    """Finds all cases below some folders, in the order of the folders and of their names.

    Args:
      paths: data-set folders, case folders, or single NIfTI images.
      need_labels: True: a case is an image with its label map, and whatever lacks its partner is
        returned with a `problem`. False: every image is a case, whether it has a label map or not.

    Raises:
      InputError: a path doesn't exist, or holds no NIfTI image; or two cases can't be told apart.
    """
    cases: list[Case] = []
    seen: set[str] = set()
    for path in map(Path, paths):
        resolved = os.path.realpath(path)
        if resolved in seen:
            continue
        seen.add(resolved)
        cases += _cases_below(path, need_labels)
    return _with_unique_ids(cases)


def _cases_below(path: Path, need_labels: bool) -> list[Case]:
    if path.is_file() and has_nifti_suffix(path):
        files, source = [path], _folder_name(path.parent)
    elif path.is_dir():
        files, source = _nifti_files(path), _folder_name(path)
    else:
        raise InputError(path, "a folder of cases or a NIfTI file", _what(path))
    tables = read_tables(path) if path.is_dir() else None
    if tables is not None:
        found = _cases_of_tables(tables, files, _identifier(source), need_labels)
        if not found:
            raise InputError(path, "volumes that the tables of boxes name", "none")
        return found
    if need_labels:
        files = [file for file in files if file.parent.name.lower() not in UNLABELLED_FOLDERS]
    found = _paired(files, _identifier(source), need_labels)
    if not found:
        raise InputError(
            path,
            "NIfTI images (.nii, .nii.gz), for example volume-0.nii.gz",
            "none in this folder or below",
        )
    return found


def _paired(files: list[Path], source: str, need_labels: bool) -> list[Case]:
    """Returns the cases among NIfTI files, images paired with label maps by their names."""
    groups: dict[Path, list[_File]] = defaultdict(list)
    for file in _lits_partners_joined(_classified(files)):
        groups[file.group].append(file)
    found = []
    for group, members in sorted(groups.items()):
        found += _cases_of_group(group, members, source, need_labels)
    if need_labels:
        return [_with_problem(case) for case in found]
    return [case for case in found if case.image_path is not None]


def _cases_of_tables(
    tables: Tables, files: list[Path], source: str, need_labels: bool
) -> list[Case]:
    """Returns the DBT volumes that tables of boxes name; masks beside them are kept as label maps."""
    masks = {case.image_path: case.label_path for case in _paired(files, source, False)}
    cases = [
        Case(
            volume.case_id,
            volume.image_path,
            masks.get(volume.image_path),
            source,
            volume.problem if need_labels else "",
            boxes=volume.boxes,
            view=volume.view,
            identifiers=volume.identifiers,
        )
        for volume in find_volumes(tables, list(masks))
    ]
    return [case for case in cases if need_labels or case.image_path is not None]


def _nifti_files(root: Path) -> list[Path]:
    """Returns all NIfTI files below a folder; links are followed, loops are not."""
    files, visited = [], set()
    for folder, subfolders, names in os.walk(root, onerror=_raise, followlinks=True):
        place = os.stat(folder)
        if (place.st_dev, place.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((place.st_dev, place.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        # Hidden files: archives from macOS carry a "._volume-0.nii" beside each volume.
        names = [name for name in sorted(names) if not name.startswith(".")]
        files += [Path(folder, name) for name in names if has_nifti_suffix(name)]
    return files


def _raise(error: OSError) -> None:
    raise error


def _classified(paths: list[Path]) -> list[_File]:
    """Tells images from label maps: by LiTS names, by folders of either kind, by the files' words."""
    roles_in: dict[Path, set[str]] = defaultdict(set)
    for folder in {path.parent for path in paths}:
        roles_in[folder.parent].add(_role(_words(folder.name)))
    files = []
    for path in paths:
        stem, folder = _stem(path), path.parent
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


def _role(words: Sequence[str]) -> str | None:
    if LABEL_WORDS.intersection(words):
        return "label"
    return "image" if IMAGE_WORDS.intersection(words) else None


def _lits_partners_joined(files: list[_File]) -> list[_File]:
    """Puts LiTS files whose partner lies in another folder into one group (volumes/, segmentations/)."""
    lits = [file for file in files if _LITS.match(_stem(file.path))]
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
    alone = len(images) == 1 and len(labels) == 1 and images[0].group == images[0].path.parent
    if alone and not _LITS.match(_stem(images[0].path)):
        # One of each in a folder of their own: the folder names the case, whatever the files' names.
        name = _identifier(_folder_name(group))
        return [Case(name, images[0].path, labels[0].path, source)]
    cases = []
    for key in sorted({file.key for file in files}):
        own_images = [file for file in images if file.key == key]
        own_labels = [file for file in labels if file.key == key]
        one = (own_images or own_labels)[0]
        case_id = _identifier(one.name or _folder_name(group))
        image, label = (own[0].path if own else None for own in (own_images, own_labels))
        if len(own_images) <= 1 and len(own_labels) <= 1:
            cases.append(Case(case_id, image, label, source))
        elif need_labels:
            names = ", ".join(file.path.name for file in own_images + own_labels)
            problem = f"{group}: expected one image and one label map, found {names}"
            cases.append(Case(case_id, image, label, source, _one_line(problem)))
        elif len(own_images) == 1:
            cases.append(Case(case_id, image, None, source))
        else:
            ids = [_identifier(_stem(file.path)) for file in own_images]
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
    return replace(case, problem=_one_line(problem))


def _with_unique_ids(cases: list[Case]) -> list[Case]:
    """Puts the data set's or the folder's name before ids that occur twice."""
    by_id: dict[str, list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        by_id[case.case_id].append(index)
    cases = list(cases)
    for case_id, indices in list(by_id.items()):
        if len(indices) == 1:
            continue
        twins = [cases[index] for index in indices]
        folders = [_identifier(_folder_name(_path(case).parent)) for case in twins]
        for prefixes in (
            [case.source for case in twins],
            folders,
            [f"{case.source}_{folder}" for case, folder in zip(twins, folders, strict=True)],
        ):
            unique = [f"{prefix}_{case_id}" for prefix in prefixes]
            if len(set(unique)) == len(twins) and not by_id.keys() & set(unique):
                break
        else:
            raise InputError(
                _path(twins[1]),
                "a name of its own for each case",
                f"{case_id!r} for {_path(twins[0])} too",
                "Rename one of the files, or their folders.",
            )
        for index, name in zip(indices, unique, strict=True):
            cases[index] = replace(cases[index], case_id=name)
            by_id[name].append(index)
    return cases


def _path(case: Case) -> Path:
    return case.image_path or case.label_path


def _stem(path: Path) -> str:
    suffix = next(suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix))
    return path.name[: -len(suffix)]


def _folder_name(folder: Path) -> str:
    return os.path.basename(os.path.realpath(folder))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]


def _identifier(name: str) -> str:
    """Returns a name that is safe in file names, logs and JSON."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-") or "case"


def _what(path: Path) -> str:
    if not path.exists():
        return "nothing of that name"
    return "a file of another kind" if path.is_file() else "no folder"
