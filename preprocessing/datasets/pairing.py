"""Pairs images with label maps: by a `dataset.json`, or by the names of files and folders."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preprocessing.datasets.case import Case, folder_name, safe_id
from preprocessing.errors import InputError
from preprocessing.volumes.nifti import SUFFIXES

# Words in the names of files and folders, in lower case.
_LABEL = re.compile(
    "labels?|lbl|segs?|segmentations?|masks?|gt|truth|annotations?|reference|labelst[rs]"
)
_IMAGE = re.compile("ct|images?|imgs?|volumes?|vol|scans?|dbt|imagest[rs]")
# Words that indicate a label map only if no other word indicates an image.
_ORGAN = re.compile("liver|tumou?rs?|lesions?|mass")
# Words in the names of DICOM folders that do not distinguish cases.
_ARCHIVE = re.compile("dicom|dcm|series|study|patient")

_DECATHLON_FOLDERS = frozenset(["imagesTr", "labelsTr", "imagesTs", "labelsTs"])
# Images in this folder come without label maps by design.
_UNLABELLED_FOLDER = "imagests"
_LITS = re.compile(r"^(?:test-)?(volume|segmentation)-(\d+)$", re.IGNORECASE)
_NNUNET_CHANNEL = re.compile(r"_0000$")

DATASET_FILE = "dataset.json"
# Files with these suffixes that are not DICOM are reported as damaged.
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
# Larger files are not lists of cases.
_MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class DecathlonSet:
    """Content of a dataset.json."""

    folder: Path
    label_names: tuple[tuple[int, str], ...]  # label values and their names, sorted by value
    pairs: tuple[tuple[Path, Path], ...] | None  # image, label map; None if not listed
    test_images: tuple[Path, ...]  # images without label maps
    problems: tuple[str, ...]  # unusable entries, each in one line


@dataclass(frozen=True)
class _File:
    path: Path
    role: str  # "image" or "label"
    group: Path  # partners are in the same group
    key: str  # partners have the same key
    name: str  # the case's name, if not named after its folder


def read_decathlon(folder: Path) -> DecathlonSet | None:
    """Reads the dataset.json of the Medical Segmentation Decathlon or of nnU-Net in a folder.

    Returns None if there is none, or one of another kind. nnU-Net's names only the labels. Raises
    InputError for other files than JSON, and labels that are not numbers with a name each.
    """
    path = folder / DATASET_FILE
    if not path.is_file():
        return None
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(path, f"at most {_MAX_BYTES} bytes", path.stat().st_size)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(path, "JSON", type(error).__name__) from None
    if not isinstance(content, dict) or "labels" not in content:
        return None
    label_names = _label_names(path, content["labels"])
    pairs, test_images, problems = [], [], []
    lists = {kind: content.get(kind) for kind in ("training", "test")}
    listed = {kind: entries for kind, entries in lists.items() if isinstance(entries, list)}
    for kind, entry in ((kind, entry) for kind, entries in listed.items() for entry in entries):
        named = entry if isinstance(entry, dict) else {"image": entry}
        image, label = (_inside(folder, named.get(name)) for name in ("image", "label"))
        if image is not None and kind == "test":
            test_images.append(image)
        elif image is not None and label is not None:
            pairs.append((image, label))
        else:
            expected = f"files below its folder in each entry of {kind!r}"
            problems.append(str(InputError(path, expected, repr(entry)))[:400])
    training = tuple(pairs) if "training" in listed else None
    return DecathlonSet(folder, label_names, training, tuple(test_images), tuple(problems))


def _label_names(path: Path, labels: Any) -> tuple[tuple[int, str], ...]:
    """Returns (value, name) pairs of {"0": "liver"} (Decathlon) or {"liver": 0} (nnU-Net)."""
    try:
        items = [
            (int(name), value) if isinstance(value, str) else (int(value), name)
            for name, value in labels.items()
        ]
    except (AttributeError, TypeError, ValueError):
        items = []
    values = [value for value, _ in items]
    if not items or len(set(values)) < len(values) or not all(0 <= v < 256 for v in values):
        expected = 'labels such as {"0": "background", "1": "liver"}, each value from 0 to 255 once'
        raise InputError(path, expected, str(labels)[:200])
    return tuple(sorted(items))


def _inside(folder: Path, name: Any) -> Path | None:
    """Returns the file that an entry names; None unless it is below the folder."""
    if not isinstance(name, str) or "\0" in name or not name.strip():
        return None
    relative = Path(name)
    return None if relative.is_absolute() or ".." in relative.parts else folder / relative


def paired(
    files: Sequence[Path], dicom: Sequence[Path], source: str, need_labels: bool
) -> list[Case]:
    """Returns the cases among NIfTI files and DICOM images, paired by their names.

    `source` is the name of the data set; for `need_labels` see `discovery.find_cases`.
    """
    if need_labels:
        files = [file for file in files if file.parent.name.lower() != _UNLABELLED_FOLDER]
    groups: dict[Path, list[_File]] = defaultdict(list)
    # The roles of each folder's subfolders with files, by their names.
    roles_in: dict[Path, set[str]] = defaultdict(set)
    for folder in {path.parent for path in (*files, *dicom)}:
        roles_in[folder.parent].add(_role(_words(folder.name)))
    known = [_classified(path, roles_in) for path in files]
    known += _classified_dicom(files, dicom, roles_in)
    for file in _lits_partners_joined(known):
        groups[file.group].append(file)
    found = []
    for group, members in sorted(groups.items()):
        found += _cases_of_group(group, members, source, need_labels)
    if need_labels:
        return [_with_problem(case) for case in found]
    return [case for case in found if case.image_path is not None]


def stem_of(path: Path) -> str:
    """Returns the name of an image without the suffix of its format."""
    known = (*SUFFIXES, *DICOM_SUFFIXES)
    suffixes = (suffix for suffix in known if path.name.lower().endswith(suffix))
    return path.name[: -len(next(suffixes, "")) or None]


def _classified(path: Path, roles_in: dict[Path, set[str]]) -> _File:
    """Classifies a NIfTI file by its LiTS name, its folder (images, labels), or its own words."""
    stem, folder = stem_of(path), path.parent
    words = _words(stem)
    key = "_".join(_without(words, _LABEL, _IMAGE))
    folder_role = _role(_words(folder.name))
    lits = _LITS.match(stem)
    if lits:
        role = "image" if lits[1].lower() == "volume" else "label"
        name = f"volume-{int(lits[2])}"
        return _File(path, role, folder, name, name)
    both = {"image", "label"} <= roles_in[folder.parent]
    if folder_role and (both or folder.name in _DECATHLON_FOLDERS):
        if folder_role == "image":
            stem, key = _NNUNET_CHANNEL.sub("", stem), _NNUNET_CHANNEL.sub("", key)
        return _File(path, folder_role, folder.parent, key or stem, stem)
    role = _role(words) or ("label" if any(map(_ORGAN.fullmatch, words)) else "image")
    if role == "label":
        key = "_".join(_without(words, _LABEL, _IMAGE, _ORGAN))
    return _File(path, role, folder, key, key)


def _classified_dicom(
    files: Sequence[Path], dicom: Sequence[Path], roles_in: dict[Path, set[str]]
) -> list[_File]:
    """Classifies DICOM images; their label maps lie beside them, inside them, or in a folder above.

    One above (PATIENT/STUDY/SERIES) belongs to the only series below its folder.
    """
    with_nifti = {path.parent for path in files}
    below = Counter(folder for path in dicom for folder in path.parents)
    found = []
    for path in dicom:
        stem, folder = stem_of(path), path.parent
        key = "_".join(_without(_words(stem), _LABEL, _IMAGE, _ARCHIVE))
        name = stem if key else ""
        above = next((each for each in path.parents if each in with_nifti), None)
        lits = _LITS.match(stem)
        group = folder
        if lits and lits[1].lower() == "volume":
            key = name = f"volume-{int(lits[2])}"
        elif path in with_nifti:
            group = path
        elif _role(_words(folder.name)) == "image" and "label" in roles_in[folder.parent]:
            group, key, name = folder.parent, key or stem, stem
        elif above is not None and below[above] == 1:
            group = above
        found.append(_File(path, "image", group, key, name))
    return found


def _role(words: Sequence[str]) -> str:
    """Returns "label", "image", or an empty string if the words indicate neither."""
    if any(map(_LABEL.fullmatch, words)):
        return "label"
    return "image" if any(map(_IMAGE.fullmatch, words)) else ""


def _lits_partners_joined(files: list[_File]) -> list[_File]:
    """Puts LiTS partners from two folders (volumes/, segmentations/) into one group."""
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
        # One image and one label map in a folder are a case, whatever their names.
        return [Case(safe_id(folder_name(group)), images[0].path, labels[0].path, source)]
    cases = []
    for key in sorted({file.key for file in files}):
        own_images = [file for file in images if file.key == key]
        own_labels = [file for file in labels if file.key == key]
        own = own_images + own_labels
        case_id = safe_id(own[0].name or folder_name(group))
        image = own_images[0].path if own_images else None
        label = own_labels[0].path if own_labels else None
        if len(own_images) <= 1 and len(own_labels) <= 1:
            cases.append(Case(case_id, image, label, source))
        elif need_labels:
            names = ", ".join(file.path.name for file in own)
            problem = str(InputError(group, "one image and one label map", names))
            cases.append(Case(case_id, image, label, source, problem))
        elif len(own_images) == 1:
            cases.append(Case(case_id, image, None, source))
        else:
            for file in own_images:
                cases.append(Case(safe_id(stem_of(file.path)), file.path, None, source))
    return cases


def _with_problem(case: Case) -> Case:
    if case.problem or (case.image_path and case.label_path):
        return case
    missing, found = ("a label map", "image") if case.image_path else ("an image", "label map")
    problem = InputError(case.path, f"{missing} beside this {found}", "none")
    return replace(case, problem=str(problem))


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())


def _without(words: Sequence[str], *kinds: re.Pattern[str]) -> list[str]:
    return [word for word in words if not any(kind.fullmatch(word) for kind in kinds)]
