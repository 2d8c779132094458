"""Writes a synthetic tomosynthesis as a DICOM file: Breast Tomosynthesis Image Storage, multi-frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import BreastTomosynthesisImageStorage, ExplicitVRLittleEndian, generate_uid

from preprocessing.files import atomic_write
from preprocessing.volumes.geometry import Volume, spacing_mm


def write_tomosynthesis(
    path: Path, volume: Volume, *, bits: int, patient_id: str, study_uid: str, view: str
) -> None:
    """Writes a volume, uint16 [x, y, z] of `bits` bits, as a frame per slice; atomically.

    Pixel (row, column) of a frame is voxel (x, y) = (column, row); positions and orientation are those of
    the volume's affine. UIDs follow from patient, study and view.
    """
    frames = volume.voxels.transpose(2, 1, 0)
    file = Dataset()
    file.SOPClassUID = BreastTomosynthesisImageStorage
    file.SOPInstanceUID, file.SeriesInstanceUID, file.FrameOfReferenceUID = (
        generate_uid(entropy_srcs=[patient_id, study_uid, view, kind])
        for kind in ("instance", "series", "frame of reference")
    )
    file.StudyInstanceUID, file.PatientID, file.Modality = study_uid, patient_id, "MG"
    file.PatientName = patient_id
    file.ImageType = ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "NONE"]
    file.NumberOfFrames, file.Rows, file.Columns = frames.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = (
        16,
        bits,
        bits - 1,
        0,
    )
    # RAS+ to DICOM's LPS.
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    column_mm, row_mm, slice_mm = spacing_mm(affine)
    cosines = [*affine[:3, 0] / column_mm, *affine[:3, 1] / row_mm]
    anatomy = {"FrameLaterality": view[0].upper()}
    measures = {
        "PixelSpacing": [row_mm, column_mm],
        "SliceThickness": slice_mm,
        "SpacingBetweenSlices": slice_mm,
    }
    file.SharedFunctionalGroupsSequence = [
        _groups(
            PixelMeasuresSequence=measures,
            PlaneOrientationSequence={"ImageOrientationPatient": [float(c) for c in cosines]},
            FrameAnatomySequence=anatomy,
        )
    ]
    file.PerFrameFunctionalGroupsSequence = [
        _groups(PlanePositionSequence={"ImagePositionPatient": _position(affine, number)})
        for number in range(len(frames))
    ]
    file.PixelData = np.ascontiguousarray(frames, "<u2").tobytes()
    file["PixelData"].VR = "OW"
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with atomic_write(path) as temporary:
        file.save_as(temporary, enforce_file_format=True)


def _position(affine: np.ndarray, number: int) -> list[float]:
    return [round(float(value), 6) for value in affine[:3, 3] + number * affine[:3, 2]]


def _groups(**groups: dict) -> Dataset:
    item = Dataset()
    for name, elements in groups.items():
        inner = Dataset()
        for keyword, value in elements.items():
            setattr(inner, keyword, value)
        setattr(item, name, Sequence([inner]))
    return item
