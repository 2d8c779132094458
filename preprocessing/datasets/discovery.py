"""Finds the cases of a data set.

Supported layouts are LiTS (`volume-N.nii`, `segmentation-N.nii`), the Medical Segmentation
Decathlon (`dataset.json`) and nnU-Net (`imagesTr`, `labelsTr`), 3D-IRCADb (`PATIENT_DICOM`,
`MASKS_DICOM`), one subfolder per case (`ct.nii.gz`, `label.nii.gz`), pairs with similar names in
one folder (`a_ct.nii.gz`, `a_seg.nii.gz`) or two (`images/a.nii.gz`, `labels/a.nii.gz`), and
BCS-DBT's tables (`preprocessing.datasets.bcs_dbt`). An image may be DICOM: a folder of slices or a
multi-frame file. Every image becomes a case; images without a partner become cases with a problem.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import BreastTomosynthesisImageStorage

from preprocessing.datasets import pairing
from preprocessing.datasets.bcs_dbt import cases_of_tables, read_tables
from preprocessing.datasets.case import Case, folder_name, redact_case_path, redact_message, safe_id
from preprocessing.dicom.deidentify import header_identifiers, is_identifying, pseudonym
from preprocessing.dicom.header import has_image, is_dicom, read_header, text
from preprocessing.errors import InputError
from preprocessing.volumes.nifti import has_nifti_suffix
from preprocessing.volumes.nifti_bytes import what_is

# Name of a data set whose folder name contains an identifier.
ANONYMOUS_SOURCE = "dicom"
# 3D-IRCADb's folders: the scan, one folder of masks per structure, and copies of both.
IRCADB_IMAGE, IRCADB_MASKS = "PATIENT_DICOM", "MASKS_DICOM"
_IRCADB_OTHERS = frozenset([IRCADB_MASKS, "LABELLED_DICOM", "MESHES_VTK"])


@dataclass(frozen=True)
class _DicomImage:
    """A volume in DICOM."""

    path: Path  # a folder of slices, or a multi-frame file
    identifiers: tuple[str, ...]  # see `deidentify.header_identifiers`
    pseudonym: str  # a case id from the SeriesInstanceUID (for a file, its SOPInstanceUID)


def find_cases(paths: Sequence[str | os.PathLike], *, need_labels: bool) -> list[Case]:
    """Finds all cases below some folders, in the order of the folders and of their names.

    Paths are data-set folders, case folders, folders of DICOM slices, or single images. With
    `need_labels` a case needs an image and a label map, and those without a partner have a
    `problem`; otherwise every image is a case. Raises InputError if a path does not exist or has no
    image, or two cases would get the same id.
    """
    different: dict[str, Path] = {}
    for path in paths:
        different.setdefault(os.path.realpath(path), Path(path))
    return _with_unique_ids([c for p in different.values() for c in _cases_below(p, need_labels)])


def _cases_below(path: Path, need_labels: bool) -> list[Case]:
    files: list[Path] = []
    dicom: list[_DicomImage] = []
    cases: list[Case] = []
    source = safe_id(folder_name(path if path.is_dir() else path.parent))
    if path.is_dir():
        folders = list(walk_folders(path))
        files, tables = nifti_files(folders), read_tables(path)
        if tables is not None:
            return cases_of_tables(tables, files, need_labels=need_labels)
        dicom = [image for below in folders for image in _dicom_images(*below, path)]
        listing = [folder for folder, names in folders if pairing.DATASET_FILE in names]
        for listed in filter(None, map(pairing.read_decathlon, listing)):
            own = [file for file in files if listed.folder in file.parents]
            files = [file for file in files if listed.folder not in file.parents]
            cases += _cases_of_decathlon(listed, own, source, need_labels)
    elif path.is_file() and has_nifti_suffix(path):
        files = [path]
    elif path.is_file() and is_dicom(path):
        dicom = [_dicom_file(path)]
    else:
        raise InputError(path, "a folder of cases, a NIfTI or a DICOM file", what_is(path))
    others = []
    for image in dicom:
        masks = image.path.parent / IRCADB_MASKS
        if image.path.name == IRCADB_IMAGE and masks.is_dir():
            case_id = safe_id(folder_name(image.path.parent))
            cases.append(Case(case_id, image.path, masks, source))
        else:
            others.append(image.path)
    cases += pairing.paired(files, others, source, need_labels)
    if not need_labels:
        cases = [case for case in cases if case.image_path is not None]
    if not cases:
        expected = "NIfTI images (.nii, .nii.gz), for example volume-0.nii.gz, or DICOM ones"
        raise InputError(path, expected, "none in this folder or below")
    return _without_identifiers(cases, dicom, path)


def _cases_of_decathlon(
    listed: pairing.DecathlonSet, files: Sequence[Path], source: str, need_labels: bool
) -> list[Case]:
    """Returns the cases in a dataset.json, and those of the other files below its folder."""
    pairs = dict.fromkeys(listed.pairs or ())
    cases = [Case(_id_of(image), image, label, source) for image, label in pairs]
    if not need_labels:
        cases += [Case(_id_of(path), path, None, source) for path in listed.test_images]
    known = {path for pair in pairs for path in pair} | set(listed.test_images)
    others = pairing.paired([file for file in files if file not in known], [], source, need_labels)
    for case in others:
        if listed.pairs is not None and need_labels:
            expected = f"this case in {listed.folder / pairing.DATASET_FILE}"
            case = replace(case, problem=str(InputError(case.path, expected, "none")))
        cases.append(case)
    for number, problem in enumerate(listed.problems if need_labels else (), start=1):
        cases.append(Case(f"{source}_entry-{number}", None, None, source, problem))
    return [replace(case, label_names=listed.label_names) for case in cases]


def _id_of(image: Path) -> str:
    return safe_id(pairing.stem_of(image).removesuffix("_0000"))


def _without_identifiers(cases: list[Case], dicom: Sequence[_DicomImage], root: Path) -> list[Case]:
    """Adds the identifiers of DICOM headers to cases, and renames cases named after them."""
    if not dicom:
        return cases
    images = {image.path: image for image in dicom}
    everybody: Collection[str] = {each for image in dicom for each in image.identifiers}
    renamed = []
    for case in cases:
        image = None if case.image_path is None else images.get(case.image_path)
        if image is not None:
            identifiers, own = image.identifiers, image.pseudonym
        else:
            # A NIfTI file among DICOM files may be named after any of their patients.
            names = "/".join(case.path.parts)
            identifiers = tuple(sorted(each for each in everybody if is_identifying(names, [each])))
            own = pseudonym("case", str(case.path.relative_to(root)))
        case = replace(case, identifiers=identifiers, pseudonym=own)
        if is_identifying(case.case_id, identifiers):
            case = replace(case, case_id=own)
        if is_identifying(case.source, identifiers):
            case = replace(case, source=ANONYMOUS_SOURCE)
        renamed.append(replace(case, problem=redact_message(case, case.problem)))
    return renamed


def _with_unique_ids(cases: list[Case]) -> list[Case]:
    """Makes ids unique, with pseudonyms, or else the data set's or folder's name as a prefix."""
    counts = Counter(case.case_id for case in cases)
    cases = list(cases)
    by_id: dict[str, list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        if counts[case.case_id] > 1 and case.pseudonym:
            cases[index] = replace(case, case_id=case.pseudonym)
        by_id[cases[index].case_id].append(index)
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
            first, second = (redact_case_path(case, case.path) for case in twins[:2])
            found, remedy = f"{case_id!r} for {first} too", "Rename one of the files or folders."
            raise InputError(second, "a name of its own for each case", found, remedy)
        for index, name in zip(indices, unique, strict=True):
            cases[index] = replace(cases[index], case_id=name)
            by_id[name].append(index)
    return cases


def _folder_id(case: Case) -> str:
    name = safe_id(folder_name(case.path.parent))
    return ANONYMOUS_SOURCE if is_identifying(name, case.identifiers) else name


def walk_folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yields each folder with the names of its files, sorted, following links except for loops.

    Hidden files and folders are ignored: archives from macOS have "._volume-0.nii" and the like.
    """
    visited = set()
    for folder, subfolders, names in os.walk(root, onerror=_raise, followlinks=True):
        place = os.stat(folder)
        if (place.st_dev, place.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((place.st_dev, place.st_ino))
        if IRCADB_IMAGE in subfolders:
            subfolders[:] = set(subfolders) - _IRCADB_OTHERS
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield Path(folder), [name for name in sorted(names) if not name.startswith(".")]


def nifti_files(folders: Iterable[tuple[Path, list[str]]]) -> list[Path]:
    """Returns the files that are named like NIfTI."""
    return [folder / name for folder, names in folders for name in names if has_nifti_suffix(name)]


def _dicom_file(path: Path) -> _DicomImage:
    """Returns a single file as a volume."""
    try:
        header = read_header(path)
    except InputError:
        return _DicomImage(path, (), pseudonym("dicom", path.name))
    return _image(path, header, path.parent)


def _dicom_images(folder: Path, names: Sequence[str], root: Path) -> list[_DicomImage]:
    """Returns the DICOM volumes among the files of a folder: a series of slices, multi-frame files.

    The folder is below `root`; from there on, paths of unreadable files identify patients.
    """
    images: list[_DicomImage] = []
    damaged: list[_DicomImage] = []
    slices = False
    for name in names:
        path = folder / name
        if has_nifti_suffix(name) or name.upper() == "DICOMDIR" or not path.is_file():
            continue
        if not (name.lower().endswith(pairing.DICOM_SUFFIXES) or is_dicom(path)):
            continue
        try:
            header = read_header(path)
        except InputError:
            damaged.append(_unreadable(path, root))
            continue
        if not has_image(header):
            continue
        multi_frame = text(header, "NumberOfFrames") not in ("", "0", "1")
        if multi_frame or _is_mammogram(header):
            images.append(_image(path, header, root))
        elif not slices:
            slices = True
            series = _image(folder, header, root)
            if not images:
                # The remaining files are checked when the series is read, damaged ones too.
                return [series]
            images.append(series)
    return images + damaged


def _is_mammogram(header: Dataset) -> bool:
    sop_class = text(header, "SOPClassUID")
    return sop_class == BreastTomosynthesisImageStorage or text(header, "Modality") == "MG"


def _image(path: Path, header: Dataset, root: Path) -> _DicomImage:
    kind = "dbt" if _is_mammogram(header) else "ct"
    series_uid = text(header, "SeriesInstanceUID")
    if not series_uid:
        # The header is cut off, possibly before the patient's name.
        return _unreadable(path, root)
    uid = text(header, "SOPInstanceUID") if path.is_file() else series_uid
    identifiers = tuple(sorted(header_identifiers(header)))
    return _DicomImage(path, identifiers, pseudonym(kind, uid or series_uid))


def _unreadable(path: Path, root: Path) -> _DicomImage:
    """Returns a file with an unreadable header; each part of its path counts as an identifier."""
    relative = path.relative_to(root)
    return _DicomImage(path, relative.parts, pseudonym("dicom", str(relative)))


def _raise(error: OSError) -> None:
    raise error
