"""Finds the cases of data sets: what `preprocessing.datasets.layouts` makes of files below folders.

Every image becomes a case, and every other file that could be one is passed over with a reason. A
defect of one file, list or table concerns nothing else.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import BreastTomosynthesisImageStorage

from preprocessing.datasets import layouts, pairing
from preprocessing.datasets.case import (
    Case,
    folder_name,
    printable,
    redact_message,
    safe_id,
)
from preprocessing.datasets.completion import completed, passed_over_lines
from preprocessing.datasets.layouts import DicomImage, Found
from preprocessing.datasets.unique_ids import ANONYMOUS_SOURCE, with_unique_ids
from preprocessing.dicom.deidentify import (
    DAMAGE,
    header_identifiers,
    is_identifying,
    patient_pseudonym,
    pseudonym,
)
from preprocessing.dicom.header import has_image, is_dicom, read_header, sop_class, text
from preprocessing.errors import InputError
from preprocessing.volumes.nifti import has_nifti_suffix
from preprocessing.volumes.nifti_bytes import what_is

# Files that hold volumes in other formats, or packed.
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")
_OTHER_FORMATS = (".nrrd", ".mha", ".mhd", ".mgz", ".hdr", ".npz")
# SOP classes of DICOM segmentations, which stand at the beginning of a file.
_SEGMENTATION = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.66\.[47]")
_SEGMENTATION_BYTES = re.compile(_SEGMENTATION.pattern.encode() + rb"[\0A-Z\x02-\x1f]")
_HEADER_BYTES = 2048


@dataclass(frozen=True)
class Discovery:
    """The cases below some folders, and what else is there; no line contains an identifier."""

    cases: list[Case]
    passed_over: list[str] = field(default_factory=list)  # "PATH: reason"
    renamed: list[str] = field(default_factory=list)  # "PATH: case A renamed to B"

    def record(self) -> dict[str, list[str]]:
        """Returns what is not a case as plain data, for manifests and reports."""
        return {"passed_over": self.passed_over, "renamed": self.renamed}

    def lines(self) -> list[str]:
        """Returns what is not a case as lines to print."""
        passed = [f"passed over: {line}" for line in self.passed_over]
        return passed + [f"renamed: {line}" for line in self.renamed]


def find_cases(paths: Sequence[str | os.PathLike], *, need_labels: bool) -> list[Case]:
    """Finds all cases below some folders; see `discover`."""
    return discover(paths, need_labels=need_labels).cases


def discover(paths: Sequence[str | os.PathLike], *, need_labels: bool) -> Discovery:
    """Finds all cases below some folders, in the order of the folders and of their layouts.

    Paths are data-set folders, case folders, folders of DICOM slices, or single images. With
    `need_labels` a case needs an image and a label map, and those without a partner have a
    `problem`; otherwise every image is a case. Raises InputError if a path does not exist, or there
    is no case at all.
    """
    if not paths:
        raise InputError("inputs", "a folder of cases, a NIfTI or a DICOM file", "none")
    different: dict[str, Path] = {}
    for path in paths:
        different.setdefault(os.path.realpath(path), Path(path))
        if not os.path.exists(path):
            expected = "a folder of cases, a NIfTI or a DICOM file"
            raise InputError(path, expected, what_is(Path(path)))
    cases: list[Case] = []
    passed: list[str] = []
    errors: list[InputError] = []
    owners: dict[str, Path] = {}
    for root in different.values():
        try:
            found, lines = _cases_below(root, need_labels)
        except InputError as error:
            errors.append(error)
            passed.append(str(error))
            continue
        passed += lines
        # Inputs may be inside one another.
        for case in found:
            place = case.image_path or case.label_path
            if not place or owners.setdefault(os.path.realpath(place), root) == root:
                cases.append(case)
    if not cases:
        raise errors[0]
    cases, renamed = with_unique_ids(cases)
    return Discovery(cases, list(map(printable, passed)), renamed)


def _cases_below(root: Path, need_labels: bool) -> tuple[list[Case], list[str]]:
    """Returns the cases below a path and the lines about what is passed over.

    Raises InputError if there are none.
    """
    found = Found(safe_id(folder_name(root if root.is_dir() else root.parent)), need_labels)
    if root.is_dir():
        found.folders = dict(walk_folders(root, found))
        found.files = nifti_files(found.folders.items())
        layouts.read_tables(found)
        for folder, names in found.folders.items():
            _find_dicom(folder, names, root, found)
    elif root.is_file() and has_nifti_suffix(root):
        found.files = [root]
    elif root.is_file() and is_dicom(root):
        _find_dicom(root.parent, [root.name], root, found)
    else:
        raise InputError(root, "a folder of cases, a NIfTI or a DICOM file", what_is(root))
    found.dicom = list(found.images)
    for read_layout in layouts.LAYOUTS:
        read_layout(found)
    cases = completed(found)
    cases = _without_identifiers(cases, [*found.dicom, *found.segmentations], root)
    lines = passed_over_lines(found, cases, root)
    if not cases:
        expected = "NIfTI images (.nii, .nii.gz), for example volume-0.nii.gz, or DICOM ones"
        more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
        remedy = f"Passed over: {'; '.join(lines[:3])}{more}" if lines else ""
        raise InputError(root, expected, "none in this folder or below", printable(remedy))
    return cases, lines


def _without_identifiers(cases: list[Case], dicom: Sequence[DicomImage], root: Path) -> list[Case]:
    """Adds the identifiers of DICOM headers to cases, and renames cases named after them."""
    images = {image.path: image for image in dicom}
    everybody: Collection[str] = {each for image in dicom for each in image.identifiers}
    renamed = []
    for case in cases:
        image = images.get(case.path)
        if image is not None:
            identifiers, own = image.identifiers, image.pseudonym
            case = replace(case, patient=image.patient)
        elif case.boxes is None and dicom:
            # A NIfTI file among DICOM files may be named after any of their patients.
            names = "/".join(case.path.parts)
            identifiers = tuple(sorted(each for each in everybody if is_identifying(names, [each])))
            below = case.path.relative_to(root) if case.path.is_relative_to(root) else case.path
            own = pseudonym("case", str(below))
        else:
            identifiers, own = case.identifiers, case.pseudonym
        case = replace(case, identifiers=identifiers, pseudonym=own)
        if own and is_identifying(case.case_id, identifiers):
            case = replace(case, case_id=own)
        if own and is_identifying(case.source, identifiers):
            case = replace(case, source=ANONYMOUS_SOURCE)
        renamed.append(replace(case, problem=redact_message(case, case.problem)))
    return renamed


def walk_folders(root: Path, found: Found | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Yields each folder with the names of its files, sorted, following links except for loops.

    Hidden files and folders are ignored: archives from macOS have "._volume-0.nii" and the like.
    `found` takes unreadable folders, and 3D-IRCADb's that hold no scans, which are not entered.
    """

    def passed(error: OSError) -> None:
        if found is not None:
            reason = f"can't be read: {error.strerror}"
            found.pass_over(Path(os.fsdecode(error.filename or root)), reason)

    visited = set()
    for folder, subfolders, names in os.walk(root, onerror=passed, followlinks=True):
        try:
            place = os.stat(folder)
        except OSError as error:
            passed(error)
            subfolders.clear()
            continue
        if (place.st_dev, place.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((place.st_dev, place.st_ino))
        if found is not None:
            others = [each for each in subfolders if each in layouts.IRCADB_OTHERS]
            found.ircadb += [Path(folder, each) for each in sorted(others)]
            subfolders[:] = set(subfolders) - set(others)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield Path(folder), [name for name in sorted(names) if not name.startswith(".")]


def nifti_files(folders: Iterable[tuple[Path, list[str]]]) -> list[Path]:
    """Returns the files that are named like NIfTI."""
    return [folder / name for folder, names in folders for name in names if has_nifti_suffix(name)]


def _find_dicom(folder: Path, names: Sequence[str], root: Path, found: Found) -> None:
    """Adds the DICOM volumes among the files of a folder: a series of slices, multi-frame files.

    Also adds segmentations, and passes over other objects, archives and other formats. The folder
    is below `root`; from there on, paths of unreadable files identify patients.
    """
    frames: list[DicomImage] = []
    damaged: list[DicomImage] = []
    slices: list[Path] = []
    series: DicomImage | None = None
    for name in names:
        path = folder / name
        if has_nifti_suffix(name) or not os.path.isfile(path):
            continue
        if name.upper() == "DICOMDIR":
            found.pass_over(path, "an index of DICOM files")
        elif name.lower().endswith(_ARCHIVE_SUFFIXES):
            found.pass_over(path, "an archive; unpack it to use what it holds")
        elif name.lower().endswith(_OTHER_FORMATS):
            found.pass_over(path, "neither NIfTI nor DICOM")
        elif name.lower().endswith(pairing.DICOM_SUFFIXES) or is_dicom(path):
            if _starts_as_segmentation(path) and _add_segmentation(path, root, found):
                continue
            if series is not None and not frames:
                # The remaining files are checked when the series is read, damaged ones too.
                continue
            try:
                header = read_header(path)
            except InputError:
                damaged.append(_unreadable(path, root))
                continue
            if not has_image(header):
                reason = "a DICOM object without an image"
                found.pass_over(path, reason, header_identifiers(header))
            elif path == root or _is_volume(header):
                frames.append(_image(path, header, root))
            else:
                slices.append(path)
                series = series or _image(folder, header, root)
    if series is None:
        found.images += frames + damaged
    elif all(image.series_uids == series.series_uids for image in frames):
        found.images.append(series)
    else:
        found.images += frames + damaged
        for path in slices:
            reason = "a single slice beside multi-frame files of other series"
            found.pass_over(path, reason, series.identifiers)


def _starts_as_segmentation(path: Path) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return _SEGMENTATION_BYTES.search(file.read(_HEADER_BYTES)) is not None
    return False


def _add_segmentation(path: Path, root: Path, found: Found) -> bool:
    """Adds a file to the segmentations if it is one; returns whether it is."""
    try:
        header = read_header(path)
        if not _SEGMENTATION.fullmatch(sop_class(header)):
            return False
        tags = ["ReferencedSeriesSequence"]
        sequence = dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)
        items = sequence.get("ReferencedSeriesSequence") or ()
        uids = frozenset(text(item, "SeriesInstanceUID") for item in items) - {""}
    except (InputError, *DAMAGE):
        return False
    found.segmentations.append(replace(_image(path, header, root), series_uids=uids))
    return True


def _is_volume(header: Dataset) -> bool:
    """Returns whether an image is one by itself, rather than a slice."""
    return text(header, "NumberOfFrames") not in ("", "0", "1") or _is_mammogram(header)


def _is_mammogram(header: Dataset) -> bool:
    is_tomosynthesis = sop_class(header) == BreastTomosynthesisImageStorage
    return is_tomosynthesis or text(header, "Modality") == "MG"


def _image(path: Path, header: Dataset, root: Path) -> DicomImage:
    kind = "dbt" if _is_mammogram(header) else "ct"
    series_uid = text(header, "SeriesInstanceUID")
    if not series_uid:
        # The header is cut off, possibly before the patient's name.
        return _unreadable(path, root)
    uid = text(header, "SOPInstanceUID") if path.is_file() else series_uid
    identifiers = tuple(sorted(header_identifiers(header)))
    own = pseudonym(kind, uid or series_uid)
    patient = patient_pseudonym(text(header, "PatientID"))
    return DicomImage(path, identifiers, own, frozenset([series_uid]), patient)


def _unreadable(path: Path, root: Path) -> DicomImage:
    """Returns a file with an unreadable header; each part of its path counts as an identifier."""
    relative = path.relative_to(root if path != root else root.parent)
    return DicomImage(path, relative.parts, pseudonym("dicom", str(relative)))
