"""Writes label maps as DICOM SEG, one segment per class, on the frames of the source images.

The standard demands that a SEG refers to each source image and repeats the attributes of patient
and study. Unlike all other outputs it thus contains the patient's identity.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from preprocessing.dicom.deidentify import DAMAGE, RedactedPath
from preprocessing.dicom.geometry import plane_of
from preprocessing.dicom.header import Image, read_image_header
from preprocessing.dicom.multiframe import frame_places
from preprocessing.dicom.series import DEFAULTS, ReadOptions, find_series
from preprocessing.errors import InputError
from preprocessing.files import atomic_write

# Attributes of patient and study that a SEG must have, possibly empty; some archives remove them.
_REQUIRED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
_SEXES = ("M", "F", "O")
# High, so that the SEG is listed after the images of its study.
_SERIES_NUMBER = 1000

_ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
_ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_TISSUE = Code("85756007", "SCT", "Tissue")
_NEOPLASM = Code("108369006", "SCT", "Neoplasm")
_BREAST = Code("76752008", "SCT", "Breast")

# Property category and type by class name (DICOM PS3.16, CID 7150 and 7151).
CONCEPTS: Mapping[str, tuple[Code, Code]] = {
    "liver": (_ANATOMY, Code("10200004", "SCT", "Liver")),
    "kidney": (_ANATOMY, Code("64033007", "SCT", "Kidney")),
    "spleen": (_ANATOMY, Code("78961009", "SCT", "Spleen")),
    "pancreas": (_ANATOMY, Code("15776009", "SCT", "Pancreas")),
    "lung": (_ANATOMY, Code("39607008", "SCT", "Lung")),
    "breast": (_ANATOMY, _BREAST),
    "tumour": (_ABNORMAL, _NEOPLASM),
    "tumor": (_ABNORMAL, _NEOPLASM),
    "lesion": (_ABNORMAL, Code("52988006", "SCT", "Lesion")),
}
# Designators of private coding schemes begin with 99.
_OWN_SCHEME = "99AHNET"
# Maximum lengths in DICOM of a text (LO) and of a code (SH).
_TEXT_LENGTH, _CODE_LENGTH = 64, 16

# highdicom's messages may contain patient data.
logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True)
class Source:
    """The DICOM images of a volume, to which a SEG refers."""

    name: RedactedPath
    headers: tuple[Dataset, ...]  # of the slices in volume order, or of the one multi-frame file
    places: np.ndarray  # the z of each frame in the volume; negative if left out
    rotated: bool = False  # whether the volume has the frames rotated by 180 degrees


@dataclass(frozen=True)
class Software:
    """The program and the model that made a label map, in texts of at most 64 characters."""

    name: str
    version: str
    algorithm: str
    serial_number: str


def read_source(path: str | os.PathLike, options: ReadOptions = DEFAULTS) -> Source:
    """Reads what a SEG needs from the images of a volume; arguments as for `read_dicom`.

    Raises as `read_dicom`, and InputError for headers without the position of each frame.
    """
    path = Path(path)
    if path.is_dir():
        images: Sequence[Image] = find_series(path, options).images
        places, rotated = np.arange(len(images)), False
    else:
        images = [read_image_header(path, options.identifiers)]
        places, rotated = frame_places(path, options)
    name = RedactedPath(path, images[0].name.identifiers)
    headers = tuple(map(_whole_header, images))
    planes = [plane_of(image, frame) for image in images for frame in range(image.frames)]
    known = all(plane.orientation and plane.pixel_spacing_mm for plane in planes)
    positions = {plane.position_mm for plane in planes} - {None}
    frame_of_reference = all(header.get("FrameOfReferenceUID") for header in headers)
    if not (frame_of_reference and known and len(positions) == len(planes)):
        expected = "FrameOfReferenceUID and a place in the patient for each frame, for a DICOM SEG"
        raise InputError(name, expected, "none, or not for all")
    return Source(name, headers, places, rotated)


def write_segmentation(
    path: str | os.PathLike,
    labels: np.ndarray,
    class_names: Sequence[str],
    source: Source,
    software: Software,
) -> None:
    """Writes a label map, uint8 [x, y, z] of the volume of the source, as a binary DICOM SEG.

    `class_names` has a name per label value, background first; each other class becomes a segment
    numbered like its label value. The file is written atomically. Raises InputError if the source's
    headers are too damaged to refer to.
    """
    # Imported here because it is slow and seldom needed.
    import highdicom as hd

    slices = labels.transpose(2, 1, 0)
    if source.rotated:
        slices = slices[:, ::-1, ::-1]
    frames = np.zeros((len(source.places), *slices.shape[1:]), np.uint8)
    inside = source.places >= 0
    frames[inside] = slices[source.places[inside]]
    algorithm = hd.AlgorithmIdentificationSequence(
        name=software.algorithm,
        family=Code("123110", "DCM", "Artificial Intelligence"),
        version=software.version,
        source=software.name,
    )
    first = source.headers[0]
    # Lesions are in the organs among the classes, or else in the breast.
    known = [CONCEPTS[name.lower()] for name in class_names if name.lower() in CONCEPTS]
    regions = [kind for category, kind in known if category == _ANATOMY]
    if not regions and first.get("Modality") == "MG":
        regions = [_BREAST]
    segments = []
    for number, name in enumerate(class_names[1:], start=1):
        own = Code(name[:_CODE_LENGTH], _OWN_SCHEME, name[:_TEXT_LENGTH])
        category, kind = CONCEPTS.get(name.lower(), (_TISSUE, own))
        segments.append(
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=name[:_TEXT_LENGTH],
                segmented_property_category=category,
                segmented_property_type=kind,
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
                anatomic_regions=regions if category == _ABNORMAL and regions else None,
            )
        )
    try:
        # Warnings may contain patient data too.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            segmentation = hd.seg.Segmentation(
                source_images=source.headers,
                pixel_array=frames,
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=segments,
                series_instance_uid=hd.UID(),
                series_number=_SERIES_NUMBER + int(first.get("SeriesNumber") or 0),
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer=software.name,
                manufacturer_model_name=software.algorithm,
                software_versions=software.version,
                device_serial_number=software.serial_number,
                series_description=f"{software.algorithm} segmentation",
            )
            # All texts have been decoded from the source's character set.
            segmentation.SpecificCharacterSet = "ISO_IR 192"
            with atomic_write(path) as temporary:
                segmentation.save_as(temporary, enforce_file_format=True)
    except OSError:
        raise
    except DAMAGE as error:
        expected = "headers that a DICOM SEG can refer to"
        raise InputError(source.name, expected, type(error).__name__) from None


def _whole_header(image: Image) -> Dataset:
    """Returns a complete header with decoded texts and all elements that a SEG requires."""
    try:
        header = dcmread(image.path, stop_before_pixels=True, force=True)
        header.decode()
        for keyword in _REQUIRED:
            if keyword not in header:
                setattr(header, keyword, None)
        if header.PatientSex not in _SEXES:
            header.PatientSex = None
    except DAMAGE as error:
        found = f"a damaged one ({type(error).__name__})"
        raise InputError(image.name, "a DICOM header", found) from None
    return header
