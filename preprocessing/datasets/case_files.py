"""Which files below a folder are images: NIfTI by name, DICOM by content, one header a series."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import BreastTomosynthesisImageStorage

from preprocessing.dicom.deidentify import identifiers, pseudonym
from preprocessing.dicom.header import has_image, is_dicom, read_header, text
from preprocessing.errors import InputError
from preprocessing.volumes.nifti import has_nifti_suffix

# Folders of 3D-IRCADb: the scan, a folder of masks a structure, and what repeats the two.
IRCADB_IMAGE, IRCADB_MASKS = "PATIENT_DICOM", "MASKS_DICOM"
_IRCADB_OTHERS = frozenset([IRCADB_MASKS, "LABELLED_DICOM", "MESHES_VTK"])
# A file of these names that is no DICOM is a damaged one.
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class DicomImage:
    """A volume in DICOM.

    Attributes:
      path: a folder of slices, or a file of many frames.
      identifiers: what names the patient in it, see `identity.identifiers`.
      pseudonym: a case id that tells nobody: `ct-` or `dbt-` and 12 hexadecimal digits of the SHA-256
        of the series' UID (of the file's own for a file).
    """

    path: Path
    identifiers: tuple[str, ...]
    pseudonym: str


def walk_folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yields each folder with its files' names, sorted; links are followed, loops are not.

    Hidden ones are left out: archives from macOS carry a "._volume-0.nii" beside each volume.
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
    """Returns the DICOM volumes in folders: series of slices, and files of many frames.

    Of a folder of slices one header is read; of one with multi-frame files each file's.
    """
    return [
        image
        for folder, names in folders
        for image in _images_of(
            folder,
            [name for name in names if not has_nifti_suffix(name) and name.upper() != "DICOMDIR"],
            root,
        )
    ]


def dicom_file(path: Path) -> DicomImage:
    """Returns a single file as a volume."""
    try:
        header = read_header(path)
    except InputError:
        return DicomImage(path, (), pseudonym("dicom", path.name))
    return _found(path, header, path.parent)


def _images_of(folder: Path, names: list[str], root: Path) -> list[DicomImage]:
    files: list[DicomImage] = []
    damaged: list[DicomImage] = []
    slices = False
    for name in names:
        path = folder / name
        if not (name.lower().endswith(_DICOM_SUFFIXES) or is_dicom(path)) or not path.is_file():
            continue
        try:
            header = read_header(path)
        except InputError:
            damaged.append(_unreadable(path, root))
            continue
        if not has_image(header):
            continue
        if _is_volume(header):
            files.append(_found(path, header, root))
        elif not slices:
            slices = True
            series = _found(folder, header, root)
            if not files:
                # Slices: the reader looks at the rest, damaged ones included.
                return [series]
            files.append(series)
    return files + damaged


def _is_volume(header: Dataset) -> bool:
    """Returns whether a file is a volume of its own, and not a slice of one."""
    return text(header, "NumberOfFrames") not in ("", "0", "1") or _is_mammogram(header)


def _is_mammogram(header: Dataset) -> bool:
    return (
        text(header, "SOPClassUID") == BreastTomosynthesisImageStorage
        or text(header, "Modality") == "MG"
    )


def _found(path: Path, header: Dataset, root: Path) -> DicomImage:
    kind = "dbt" if _is_mammogram(header) else "ct"
    series_uid = text(header, "SeriesInstanceUID")
    if not series_uid:
        # Cut off before it, and maybe before the patient's name too.
        return _unreadable(path, root)
    uid = text(header, "SOPInstanceUID") if path.is_file() else series_uid
    return DicomImage(path, tuple(sorted(identifiers(header))), pseudonym(kind, uid or series_uid))


def _unreadable(path: Path, root: Path) -> DicomImage:
    """Returns a file whose header can't be read: any name on the way to it may be its patient's."""
    relative = path.relative_to(root)
    return DicomImage(path, relative.parts, pseudonym("dicom", str(relative)))


def _raise(error: OSError) -> None:
    raise error
