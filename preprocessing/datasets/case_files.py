"""Finds image files below a folder: NIfTI by name, DICOM by content (one header per series)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import BreastTomosynthesisImageStorage

from preprocessing.dicom.deidentify import header_identifiers, pseudonym
from preprocessing.dicom.header import has_image, is_dicom, read_header, text
from preprocessing.errors import InputError
from preprocessing.volumes.nifti import has_nifti_suffix

# 3D-IRCADb's folders: the scan, one folder of masks per structure, and copies of both.
IRCADB_IMAGE, IRCADB_MASKS = "PATIENT_DICOM", "MASKS_DICOM"
_IRCADB_OTHERS = frozenset([IRCADB_MASKS, "LABELLED_DICOM", "MESHES_VTK"])
# Files with these suffixes that are not DICOM are reported as damaged.
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class DicomImage:
    """A volume in DICOM.

    Attributes:
      path: a folder of slices, or a multi-frame file.
      identifiers: what identifies the patient, see `deidentify.header_identifiers`.
      pseudonym: a case id without identifiers: `ct-` or `dbt-` and 12 hexadecimal digits of the
        SHA-256 of the SeriesInstanceUID (for a file, of its SOPInstanceUID).
    """

    path: Path
    identifiers: tuple[str, ...]
    pseudonym: str


def walk_folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yields each folder with the names of its files, sorted, following links except for loops.

    Hidden files and folders are ignored; archives from macOS have a "._volume-0.nii" beside each
    volume.
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


def dicom_images(folders: Iterable[tuple[Path, list[str]]], root: Path) -> list[DicomImage]:
    """Returns the DICOM volumes in folders: series of slices, and multi-frame files."""
    return [image for folder, names in folders for image in _images_in(folder, names, root)]


def dicom_file(path: Path) -> DicomImage:
    """Returns a single file as a volume."""
    try:
        header = read_header(path)
    except InputError:
        return DicomImage(path, (), pseudonym("dicom", path.name))
    return _image(path, header, path.parent)


def _images_in(folder: Path, names: Sequence[str], root: Path) -> list[DicomImage]:
    images: list[DicomImage] = []
    damaged: list[DicomImage] = []
    slices = False
    for name in names:
        path = folder / name
        if has_nifti_suffix(name) or name.upper() == "DICOMDIR":
            continue
        if not (name.lower().endswith(DICOM_SUFFIXES) or is_dicom(path)) or not path.is_file():
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
    return (
        text(header, "SOPClassUID") == BreastTomosynthesisImageStorage
        or text(header, "Modality") == "MG"
    )


def _image(path: Path, header: Dataset, root: Path) -> DicomImage:
    kind = "dbt" if _is_mammogram(header) else "ct"
    series_uid = text(header, "SeriesInstanceUID")
    if not series_uid:
        # The header is cut off, possibly before the patient's name.
        return _unreadable(path, root)
    uid = text(header, "SOPInstanceUID") if path.is_file() else series_uid
    identifiers = tuple(sorted(header_identifiers(header)))
    return DicomImage(path, identifiers, pseudonym(kind, uid or series_uid))


def _unreadable(path: Path, root: Path) -> DicomImage:
    """Returns a file with an unreadable header; each part of its path counts as an identifier."""
    relative = path.relative_to(root)
    return DicomImage(path, relative.parts, pseudonym("dicom", str(relative)))


def _raise(error: OSError) -> None:
    raise error
