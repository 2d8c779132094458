"""Small NIfTI and DICOM files as bytes, with any values in their headers."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

SHAPE = (12, 10, 6)
# That of the DICOM slices below.
AFFINE = np.array([[-0.8, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2.5, 5], [0, 0, 0, 1.0]])
CT_CLASS, DBT_CLASS = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.13.1.3"


def nifti_file(voxels: np.ndarray, path: str, changes: dict[str, Any]) -> bytes:
    """Returns a NIfTI file, compressed if its name says so, with changed fields of its header."""
    image = nib.Nifti1Image(voxels, AFFINE)
    image.header.set_xyzt_units("mm")
    content = bytearray(image.to_bytes())
    header = np.ndarray((), nib.Nifti1Header.template_dtype, content)
    with np.errstate(invalid="ignore", over="ignore"):
        for name, value in changes.items():
            header[name] = value
    return gzip.compress(bytes(content), 1) if path.lower().endswith(".gz") else bytes(content)


def slice_file(stored: np.ndarray, z: int, series: str) -> Callable[[dict[str, Any]], bytes]:
    """Returns what makes a CT slice [x, y] of a series with changed elements; None removes one."""

    def make(changes: dict[str, Any]) -> bytes:
        header = _dataset(stored.T, CT_CLASS, "CT")
        header.SeriesInstanceUID, header.InstanceNumber = series, z + 1
        header.SOPInstanceUID = generate_uid(entropy_srcs=[series, str(z)])
        header.ImagePositionPatient = [-10, -20, 5 + 2.5 * z]
        return _dicom(header, changes)

    return make


def frames_file(
    stored: np.ndarray, sop_class: str, modality: str, changes: dict[str, Any]
) -> bytes:
    """Returns a multi-frame file of voxels [x, y, z] with changed elements."""
    header = _dataset(stored.T, sop_class, modality)
    header.NumberOfFrames = stored.shape[2]
    header.SeriesInstanceUID = generate_uid(entropy_srcs=[str(stored.sum())])
    frames = []
    for z in range(stored.shape[2]):
        position = Dataset()
        position.ImagePositionPatient = [-10, -20, 5 + 2.5 * z]
        frame = Dataset()
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    header.PerFrameFunctionalGroupsSequence = frames
    return _dicom(header, changes)


def segmentation_file(
    slices: Sequence[Callable[[dict[str, Any]], bytes]], random: np.random.Generator
) -> Callable[[dict[str, Any]], bytes]:
    """Returns what makes a SEG, or a Label Map SEG, of the slices of a series."""
    kinds, number = hd.seg.SegmentationTypeValues, str(random.integers(2**31))
    kind = random.choice([kinds.BINARY, kinds.LABELMAP])

    def make(changes: dict[str, Any]) -> bytes:
        label = np.zeros((len(slices), SHAPE[1], SHAPE[0]), np.uint8)
        label[2:5, 3:7, 3:9] = 1
        label[3, 4:6, 4:6] = 2
        segments = [
            hd.seg.SegmentDescription(
                number,
                name,
                codes.SCT.Organ,
                codes.SCT.Liver,
                hd.seg.SegmentAlgorithmTypeValues.MANUAL,
            )
            for number, name in ((1, "liver"), (2, "tumour"))
        ]
        segmentation = hd.seg.Segmentation(
            [dcmread(io.BytesIO(each({}))) for each in slices],
            label,
            kind,
            segments,
            generate_uid(entropy_srcs=["series", number]),
            2,
            generate_uid(entropy_srcs=["object", number]),
            1,
            "manufacturer",
            "model",
            "1",
            "0",
        )
        for keyword, value in changes.items():
            if value is not None:
                setattr(segmentation, keyword, value)
            elif keyword in segmentation:
                delattr(segmentation, keyword)
        stream = io.BytesIO()
        segmentation.save_as(stream)
        return stream.getvalue()

    return make


def _dataset(stored: np.ndarray, sop_class: str, modality: str) -> Dataset:
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = sop_class
    header.SOPInstanceUID = generate_uid(entropy_srcs=[str(zlib.crc32(stored.tobytes()))])
    header.StudyInstanceUID, header.FrameOfReferenceUID = "1.2.3.4.5.6", "1.2.3.4.5.7"
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID"):
        setattr(header, keyword, "")
    header.AccessionNumber = header.StudyDate = header.StudyTime = ""
    header.Modality, header.ImageType = modality, ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.Rows, header.Columns = stored.shape[-2:]
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    header.PixelRepresentation, header.SamplesPerPixel = 0, 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.RescaleSlope, header.RescaleIntercept = 1, -1024 if modality == "CT" else 0
    header.PixelSpacing, header.SliceThickness = [0.8, 0.8], 2.5
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.PixelData = stored.astype("<u2").tobytes()
    return header


def _dicom(header: Dataset, changes: dict[str, Any]) -> bytes:
    for keyword, value in changes.items():
        if value is None:
            if keyword in header:
                delattr(header, keyword)
        else:
            setattr(header, keyword, value)
    header.file_meta.MediaStorageSOPClassUID = header.get("SOPClassUID") or CT_CLASS
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    stream = io.BytesIO()
    header.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
