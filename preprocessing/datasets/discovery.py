"""Finds the cases of a data set: which image belongs to which label map.

Understood are LiTS (`volume-N.nii`, `segmentation-N.nii`), the Medical Segmentation Decathlon
(`dataset.json`) and nnU-Net (`imagesTr`, `labelsTr`), 3D-IRCADb (`PATIENT_DICOM`, `MASKS_DICOM`), a
folder with one subfolder a case (`ct.nii.gz`, `label.nii.gz`), and pairs named alike in one folder
(`a_ct.nii.gz`, `a_seg.nii.gz`) or in two (`images/a.nii.gz`, `labels/a.nii.gz`). An image may be DICOM: a
folder of slices or a multi-frame file. A folder with BCS-DBT's tables holds what those name
(`preprocessing.datasets.bcs_dbt`). Every image ends in a case; what has no partner is a case with a problem.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from preprocessing.datasets.bcs_dbt import Tables, find_volumes, read_tables
from preprocessing.datasets.case import (
    Case,
    folder_name,
    identifier,
    redact_case_path,
    redact_message,
)
from preprocessing.datasets.case_files import (
    IRCADB_IMAGE,
    IRCADB_MASKS,
    DicomImage,
    dicom_file,
    dicom_images,
    nifti_files,
    walk_folders,
)
from preprocessing.datasets.decathlon import FILE, DecathlonSet, read_decathlon
from preprocessing.datasets.pairing import UNLABELLED_FOLDERS, paired, stem_of
from preprocessing.dicom.deidentify import is_identifying, pseudonym
from preprocessing.dicom.header import is_dicom
from preprocessing.errors import InputError
from preprocessing.volumes.nifti import has_nifti_suffix

# What a data set is called whose folder's name would tell somebody.
ANONYMOUS_SOURCE = "dicom"


def find_cases(paths: Sequence[str | os.PathLike], *, need_labels: bool) -> list[Case]:
    """Finds all cases below some folders, in the order of the folders and of their names.

    Args:
      paths: data-set folders, case folders, folders of DICOM slices, or single images.
      need_labels: True: a case is an image with its label map, and whatever lacks its partner is
        returned with a `problem`. False: every image is a case, whether it has a label map or not.

    Raises:
      InputError: a path doesn't exist, or holds no image; or two cases can't be told apart.
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
        files, dicom, source = [path], [], folder_name(path.parent)
        sets: list[DecathlonSet] = []
    elif path.is_file() and is_dicom(path):
        files, dicom, source = [], [dicom_file(path)], folder_name(path.parent)
        sets = []
    elif path.is_dir():
        folders = list(walk_folders(path))
        tables = read_tables(path)
        if tables is not None:
            return cases_of_tables(tables, nifti_files(folders), need_labels=need_labels)
        files, dicom, source = nifti_files(folders), dicom_images(folders, path), folder_name(path)
        found_sets = [read_decathlon(folder) for folder, names in folders if FILE in names]
        sets = [each for each in found_sets if each is not None]
    else:
        raise InputError(path, "a folder of cases, a NIfTI or a DICOM file", _what(path))
    source = identifier(source)
    found = []
    for each in sets:
        own = [file for file in files if each.folder in file.parents]
        files = [file for file in files if each.folder not in file.parents]
        found += _cases_of_decathlon(each, own, source, need_labels)
    ircadb = [image for image in dicom if _ircadb_masks(image.path)]
    found += [
        Case(identifier(folder_name(each.path.parent)), each.path, _ircadb_masks(each.path), source)
        for each in ircadb
    ]
    rest = [image.path for image in dicom if image not in ircadb]
    found += _paired(files, rest, source, need_labels)
    if not need_labels:
        found = [case for case in found if case.image_path is not None]
    if not found:
        raise InputError(
            path,
            "NIfTI images (.nii, .nii.gz), for example volume-0.nii.gz, or DICOM ones",
            "none in this folder or below",
        )
    return _anonymous(found, dicom, path)


def _paired(
    files: Sequence[Path], dicom: Sequence[Path], source: str, need_labels: bool
) -> list[Case]:
    if need_labels:
        files = [file for file in files if file.parent.name.lower() not in UNLABELLED_FOLDERS]
    return paired(files, dicom, source, need_labels)


def _ircadb_masks(path: Path) -> Path | None:
    """Returns the masks of a 3D-IRCADb scan; None for what is none, or has none."""
    masks = path.parent / IRCADB_MASKS
    return masks if path.name == IRCADB_IMAGE and masks.is_dir() else None


def cases_of_tables(tables: Tables, files: list[Path], *, need_labels: bool) -> list[Case]:
    """Returns the DBT volumes that tables of boxes name; masks beside them are kept as label maps.

    Args:
      tables: of the data set; paths in them count from `tables.folder`.
      files: the NIfTI files below that folder.
      need_labels: as in `find_cases`; False leaves out rows without a volume.

    Raises:
      InputError: there are no such cases.
    """
    source = identifier(folder_name(tables.folder))
    masks = {case.image_path: case.label_path for case in paired(files, [], source, False)}
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
    cases = [case for case in cases if need_labels or case.image_path is not None]
    if not cases:
        raise InputError(tables.folder, "volumes that its tables name", "none")
    return cases


def _cases_of_decathlon(
    decathlon: DecathlonSet, files: Sequence[Path], source: str, need_labels: bool
) -> list[Case]:
    """Returns the cases that a dataset.json lists, and those of files beside it that it doesn't."""
    listed = dict.fromkeys(decathlon.pairs or ())
    cases = [Case(_id_of(image), image, label, source) for image, label in listed]
    if not need_labels:
        cases += [Case(_id_of(path), path, None, source) for path in decathlon.test_images]
    known = {path for pair in listed for path in pair} | set(decathlon.test_images)
    others = _paired([file for file in files if file not in known], [], source, need_labels)
    if decathlon.pairs is not None and need_labels:
        expected = f"expected this case in {decathlon.folder / FILE}, found none"
        others = [replace(each, problem=f"{_path(each)}: {expected}") for each in others]
    cases += others
    for number, problem in enumerate(decathlon.problems if need_labels else (), start=1):
        cases.append(Case(f"{source}_entry-{number}", None, None, source, problem))
    return [replace(case, label_names=decathlon.label_names) for case in cases]


def _id_of(image: Path) -> str:
    return identifier(stem_of(image).removesuffix("_0000"))


def _anonymous(cases: list[Case], dicom: Sequence[DicomImage], root: Path) -> list[Case]:
    """Gives cases the identifiers of their headers, and another name to one that holds them."""
    if not dicom:
        return cases
    images = {image.path: image for image in dicom}
    everybody = frozenset().union(*(image.identifiers for image in dicom))
    return [_without_identifiers(case, images, everybody, root) for case in cases]


def _without_identifiers(
    case: Case, images: dict[Path, DicomImage], everybody: Collection[str], root: Path
) -> Case:
    image = images.get(case.image_path)
    if image is not None:
        identifiers, own = image.identifiers, image.pseudonym
    else:
        # A NIfTI file between DICOM ones may carry the name of any of their patients.
        names = "/".join(_path(case).parts)
        identifiers = tuple(sorted(each for each in everybody if is_identifying(names, [each])))
        own = pseudonym("case", str(_path(case).relative_to(root)))
    case = replace(case, identifiers=identifiers, pseudonym=own)
    if is_identifying(case.case_id, identifiers):
        case = replace(case, case_id=own)
    if is_identifying(case.source, identifiers):
        case = replace(case, source=ANONYMOUS_SOURCE)
    return replace(case, problem=redact_message(case, case.problem))


def _with_unique_ids(cases: list[Case]) -> list[Case]:
    """Puts the data set's or the folder's name before ids that occur twice; DICOM takes pseudonyms."""
    counts = Counter(case.case_id for case in cases)
    cases = [
        replace(case, case_id=case.pseudonym)
        if counts[case.case_id] > 1 and case.pseudonym
        else case
        for case in cases
    ]
    by_id: dict[str, list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        by_id[case.case_id].append(index)
    for case_id, indices in list(by_id.items()):
        if len(indices) == 1:
            continue
        twins = [cases[index] for index in indices]
        folders = [_folder_id(case) for case in twins]
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
                redact_case_path(twins[1], _path(twins[1])),
                "a name of its own for each case",
                f"{case_id!r} for {redact_case_path(twins[0], _path(twins[0]))} too",
                "Rename one of the files, or their folders.",
            )
        for index, name in zip(indices, unique, strict=True):
            cases[index] = replace(cases[index], case_id=name)
            by_id[name].append(index)
    return cases


def _folder_id(case: Case) -> str:
    name = identifier(folder_name(_path(case).parent))
    return ANONYMOUS_SOURCE if is_identifying(name, case.identifiers) else name


def _path(case: Case) -> Path:
    """Returns the file that a case is known by."""
    return case.image_path or case.label_path or Path(case.source)


def _what(path: Path) -> str:
    if not path.exists():
        return "nothing of that name"
    return "a file of another kind" if path.is_file() else "no folder"
