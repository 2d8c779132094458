"""Finds the cases of a data set: which image belongs to which label map.

Understood are LiTS (`volume-N.nii`, `segmentation-N.nii`), the Medical Segmentation Decathlon and
nnU-Net (`imagesTr`, `labelsTr`), a folder with one subfolder a case (`ct.nii.gz`, `label.nii.gz`), and
pairs named alike in one folder (`a_ct.nii.gz`, `a_seg.nii.gz`) or in two (`images/a.nii.gz`,
`labels/a.nii.gz`). Every image ends in a case; what has no partner is a case with a problem.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preprocessing.errors import InputError
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
    """

    case_id: str
    image_path: Path | None
    label_path: Path | None
    source: str
    problem: str = ""


@dataclass(frozen=True)
class _File:
    path: Path
    role: str  # "image" or "label"
    group: Path  # partners are looked for within one group
    key: str  # partners have the same key


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
    seen: set[Path] = set()
    for path in map(Path, paths):
        resolved = path.resolve()
        if resolved in seen:
            continue
        seen.add(resolved)
        cases += _cases_below(path, need_labels)
    return _with_unique_ids(cases)


def _cases_below(path: Path, need_labels: bool) -> list[Case]:
    if path.is_file() and has_nifti_suffix(path):
        files, source = [path], path.resolve().parent.name
    elif path.is_dir():
        files, source = _nifti_files(path), path.resolve().name
    else:
        raise InputError(path, "a folder of cases or a NIfTI file", _what(path))
    if not files:
        raise InputError(
            path,
            "NIfTI files (.nii, .nii.gz), for example volume-0.nii.gz and segmentation-0.nii.gz",
            "none in this folder or below",
        )
    source = _identifier(source) or "input"
    classified = [_classified(file, path) for file in files]
    if need_labels:
        classified = [f for f in classified if f.path.parent.name.lower() not in UNLABELLED_FOLDERS]
    groups: dict[Path, list[_File]] = defaultdict(list)
    for file in _lits_partners_joined(classified):
        groups[file.group].append(file)
    found = []
    for group, members in sorted(groups.items()):
        found += _cases_of_group(group, members, source)
    if need_labels:
        return [_with_problem(case) for case in found]
    return [case for case in found if case.image_path is not None]


def _nifti_files(root: Path) -> list[Path]:
    """Returns all NIfTI files below a folder; links are followed, loops are not."""
    files, visited = [], set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
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


def _classified(path: Path, root: Path) -> _File:
    """Tells image from label map, by LiTS name, then by the folder's name, then by the file's."""
    stem = _stem(path)
    lits = _LITS.match(stem)
    if lits:
        role = "image" if lits[1].lower() == "volume" else "label"
        return _File(path, role, path.parent, f"volume-{int(lits[2])}")
    folder_role = _role(_words(path.parent.name)) if path.parent != root.parent else None
    if folder_role and set(_words(path.parent.name)) <= LABEL_WORDS | IMAGE_WORDS | {"tr", "ts"}:
        key = _NNUNET_CHANNEL.sub("", stem) if folder_role == "image" else stem
        return _File(path, folder_role, path.parent.parent, key)
    words = _words(stem)
    role = _role(words)
    if role is None:
        role = "label" if ORGAN_WORDS.intersection(words) else "image"
    named = LABEL_WORDS | IMAGE_WORDS | (ORGAN_WORDS if role == "label" else set())
    return _File(path, role, path.parent, "_".join(word for word in words if word not in named))


def _role(words: Sequence[str]) -> str | None:
    if LABEL_WORDS.intersection(words):
        return "label"
    return "image" if IMAGE_WORDS.intersection(words) else None


def _lits_partners_joined(files: list[_File]) -> list[_File]:
    """Puts LiTS files whose partner lies in another folder into one group (volumes/, segmentations/)."""
    lits = [file for file in files if _LITS.match(_stem(file.path))]
    here = Counter((file.group, file.key) for file in lits)
    alone = [file for file in lits if here[file.group, file.key] == 1]
    roles = Counter((file.key, file.role) for file in alone)
    joined = []
    for file in files:
        if file in alone and roles[file.key, "image"] == roles[file.key, "label"] == 1:
            partner = next(f for f in alone if f.key == file.key and f.role == "image")
            file = replace(file, group=partner.group)
        joined.append(file)
    return joined


def _cases_of_group(group: Path, files: list[_File], source: str) -> list[Case]:
    images = [file for file in files if file.role == "image"]
    labels = [file for file in files if file.role == "label"]
    lits = any(_LITS.match(_stem(file.path)) for file in files)
    if len(images) == 1 and len(labels) <= 1 and not lits:
        label = labels[0].path if labels else None
        name = group.resolve().name if labels or not images[0].key else _stem(images[0].path)
        return [Case(_identifier(name), images[0].path, label, source)]
    cases = []
    for key in sorted({file.key for file in files}):
        own_images = [file.path for file in images if file.key == key]
        own_labels = [file.path for file in labels if file.key == key]
        case_id = _identifier(key or group.resolve().name)
        if len(own_images) <= 1 and len(own_labels) <= 1:
            image, label = (paths[0] if paths else None for paths in (own_images, own_labels))
            cases.append(Case(case_id, image, label, source))
            continue
        names = ", ".join(path.name for path in own_images + own_labels)
        problem = f"{group}: expected one image and one label map, found {names}"
        for image in own_images or [None]:
            own_id = case_id if len(own_images) < 2 else _identifier(_stem(image))
            cases.append(Case(own_id, image, None, source, " ".join(problem.split())))
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
    return replace(case, problem=" ".join(problem.split()))


def _with_unique_ids(cases: list[Case]) -> list[Case]:
    """Puts the folder's or the data set's name before ids that occur twice."""
    for prefix in (lambda case: _path(case).resolve().parent.name, lambda case: case.source):
        counts = Counter(case.case_id for case in cases)
        cases = [
            replace(case, case_id=_identifier(f"{prefix(case)}_{case.case_id}"))
            if counts[case.case_id] > 1
            else case
            for case in cases
        ]
    first: dict[str, Case] = {}
    for case in cases:
        twin = first.setdefault(case.case_id, case)
        if twin is not case:
            raise InputError(
                _path(case),
                "a name of its own for each case",
                f"{case.case_id!r} for {_path(twin)} too",
                "Rename one of the files, or their folders.",
            )
    return cases


def _path(case: Case) -> Path:
    return case.image_path or case.label_path


def _stem(path: Path) -> str:
    suffix = next(suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix))
    return path.name[: -len(suffix)]


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]


def _identifier(name: str) -> str:
    """Returns a name that is safe in file names, logs and JSON."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-") or "case"


def _what(path: Path) -> str:
    if not path.exists():
        return "nothing of that name"
    return "a file of another kind" if path.is_file() else "no folder"
