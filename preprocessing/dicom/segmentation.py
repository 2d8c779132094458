"""Label maps as DICOM SEG: each class a segment on the frames of the series that was segmented.

The standard ties a SEG to its source: it stands in the same study and frame of reference, refers to each
source image, and repeats the patient's and the study's attributes. So unlike all other outputs it
carries the patient's identity, as the images do that it is kept with.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from preprocessing.dicom.deidentify import DAMAGE, RedactedPath
from preprocessing.dicom.header import Image, read_image_header
from preprocessing.dicom.multiframe import frame_places
from preprocessing.dicom.planes import plane_of
from preprocessing.dicom.series import find_series
from preprocessing.errors import InputError
from preprocessing.files import atomic_write

# Attributes of patient and study that a SEG must have, empty if need be; archives strip some of them.
_REQUIRED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
_SEXES = ("M", "F", "O")
# So that it sorts behind the images of its study.
_SERIES_NUMBER = 1000

_ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
_ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_TISSUE = Code("85756007", "SCT", "Tissue")
_LIVER = Code("10200004", "SCT", "Liver")
_NEOPLASM = Code("108369006", "SCT", "Neoplasm")
_LESION = Code("52988006", "SCT", "Lesion")
_BREAST = Code("76752008", "SCT", "Breast")

# Property category and type of a class by its name (DICOM PS3.16, CID 7150 and 7151).
CONCEPTS: Mapping[str, tuple[Code, Code]] = {
    "liver": (_ANATOMY, _LIVER),
    "kidney": (_ANATOMY, Code("64033007", "SCT", "Kidney")),
    "spleen": (_ANATOMY, Code("78961009", "SCT", "Spleen")),
    "pancreas": (_ANATOMY, Code("15776009", "SCT", "Pancreas")),
    "lung": (_ANATOMY, Code("39607008", "SCT", "Lung")),
    "breast": (_ANATOMY, _BREAST),
    "tumour": (_ABNORMAL, _NEOPLASM),
    "tumor": (_ABNORMAL, _NEOPLASM),
    "lesion": (_ABNORMAL, _LESION),
}
# Designators that begin with 99 are for codes of one's own.
_OWN_SCHEME = "99AHNET"
_MAMMOGRAPHY = "MG"
# Letters of a text (LO) and of a code (SH) in DICOM.
_LONGEST, _LONGEST_CODE = 64, 16

# Its messages quote headers.
logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True)
class Source:
    """The DICOM images of a volume, which a SEG of it refers to.

    Attributes:
      shown: their name in messages, without identifiers.
      headers: of the slices in the volume's order, or of the one multi-frame file.
      places: of each source frame its slice of the volume; below 0: left out of it.
      turned: whether the volume shows the frames turned by 180 degrees.
    """

    shown: object
    headers: tuple[Dataset, ...]
    places: np.ndarray
    turned: bool = False


@dataclass(frozen=True)
class Software:
    """What made a label map.

    Attributes:
      name, version: of the program.
      algorithm: name of the algorithm.
      serial_number: tells one model from another; at most 64 letters.
    """

    name: str
    version: str
    algorithm: str
    serial_number: str


def read_source(
    path: str | os.PathLike,
    *,
    view: str = "",
    allow: Collection[str] = (),
    identifying: Collection[str] = (),
) -> Source:
    """Reads what a SEG takes over from the images of a volume that `reading.read_dicom` reads.

    Args:
      path: a folder of slices, or a multi-frame file.
      view: as in `frames.read_frames`.
      allow: names of `preprocessing.allowances.ALLOWANCES`.
      identifying: values that no message may show, besides the headers' own.

    Raises:
      InputError: as in `read_dicom`, or headers that don't say where in the patient each frame lies.
    """
    path = Path(path)
    if path.is_dir():
        images: Sequence[Image] = find_series(path, allow=allow, identifying=identifying).images
        places, turned = np.arange(len(images)), False
    else:
        images = [read_image_header(path, identifying)]
        places, turned = frame_places(path, view=view, allow=allow, identifying=identifying)
    shown = RedactedPath(path, images[0].shown.identifying)
    headers = tuple(map(_whole_header, images))
    planes = [plane_of(image, frame) for image in images for frame in range(image.frames)]
    known = all(plane.orientation and plane.pixel_spacing_mm for plane in planes)
    positions = {plane.position_mm for plane in planes} - {None}
    frame_of_reference = all(header.get("FrameOfReferenceUID") for header in headers)
    if not (frame_of_reference and known and len(positions) == len(planes)):
        expected = "FrameOfReferenceUID and a place in the patient for each frame, for a DICOM SEG"
        raise InputError(shown, expected, "none, or not for all")
    return Source(shown, headers, places, turned)


def write_segmentation(
    path: str | os.PathLike,
    labels: np.ndarray,
    class_names: Sequence[str],
    source: Source,
    software: Software,
) -> None:
    """Writes a label map as a binary DICOM SEG; the file appears whole or not at all.

    Args:
      path: output.
      labels: label values uint8 [x, y, z] of the volume that was read from the source.
      class_names: a name a label value, background first; each other one is a segment, whose number is
        the label value.
      source: from `read_source`.
      software: what made the label map.

    Raises:
      InputError: the source's headers are too damaged to be referred to.
    """
    # Seldom needed, and it takes a while to import.
    import highdicom as hd

    frames = _on_source_frames(labels, source)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=software.algorithm,
        family=Code("123110", "DCM", "Artificial Intelligence"),
        version=software.version,
        source=software.name,
    )
    first = source.headers[0]
    regions = _organs(class_names, first)
    segments = []
    for number, name in enumerate(class_names[1:], start=1):
        own = Code(name[:_LONGEST_CODE], _OWN_SCHEME, name[:_LONGEST])
        category, kind = CONCEPTS.get(name.lower(), (_TISSUE, own))
        segments.append(
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=name[:_LONGEST],
                segmented_property_category=category,
                segmented_property_type=kind,
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
                anatomic_regions=regions if category == _ABNORMAL and regions else None,
            )
        )
    try:
        # Warnings quote headers too.
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
            # Texts were decoded from whatever the source has.
            segmentation.SpecificCharacterSet = "ISO_IR 192"
            with atomic_write(path) as temporary:
                segmentation.save_as(temporary, enforce_file_format=True)
    except OSError:
        raise
    except DAMAGE as error:
        expected = "headers that a DICOM SEG can refer to"
        raise InputError(source.shown, expected, type(error).__name__) from None


def _whole_header(image: Image) -> Dataset:
    """Returns all of a header but the pixels, its texts decoded, nothing missing that a SEG must have."""
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
        raise InputError(image.shown, "a DICOM header", found) from None
    return header


def _on_source_frames(labels: np.ndarray, source: Source) -> np.ndarray:
    """Returns the label map as the source has its frames, [frame, row, column]."""
    slices = labels.transpose(2, 1, 0)
    if source.turned:
        slices = slices[:, ::-1, ::-1]
    frames = np.zeros((len(source.places), *slices.shape[1:]), np.uint8)
    inside = source.places >= 0
    frames[inside] = slices[source.places[inside]]
    return frames


def _organs(class_names: Sequence[str], header: Dataset) -> list[Code]:
    """Returns where lesions lie: in the organs that are segmented too, or else in what was scanned."""
    known = [CONCEPTS[name.lower()] for name in class_names if name.lower() in CONCEPTS]
    organs = [kind for category, kind in known if category == _ANATOMY]
    return organs or ([_BREAST] if header.get("Modality") == _MAMMOGRAPHY else [])
