"""Kinds of DICOM objects: what is no image, no slice, or not what a task expects."""

import numpy as np
import pytest
from pydicom.uid import (
    BreastProjectionXRayImageStorageForPresentation,
    BreastTomosynthesisImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    EncapsulatedPDFStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    MRImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    ParametricMapStorage,
    PositronEmissionTomographyImageStorage,
    RTDoseStorage,
    RTImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    SpatialRegistrationStorage,
    SurfaceSegmentationStorage,
)

from preprocessing.dicom.fitness import header_findings
from preprocessing.dicom.header import has_image, read_header
from preprocessing.dicom.multiframe import read_dicom

STORED = np.random.default_rng(3).integers(0, 4000, (4, 5, 6)).astype(np.uint16)
HU = STORED.transpose(2, 1, 0).astype(np.int16) - 1024
LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"
LOCALIZER = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


@pytest.mark.parametrize(
    ("sop_class", "tags"),
    [
        (SegmentationStorage, {}),
        (LABEL_MAP_SEGMENTATION, {}),
        ("1.2.840.10008.5.1.4.1.1.66.99", {}),
        (SurfaceSegmentationStorage, {}),
        (SpatialRegistrationStorage, {}),
        (ParametricMapStorage, {}),
        (GrayscaleSoftcopyPresentationStateStorage, {}),
        ("1.2.840.10008.5.1.4.1.1.11.99", {}),
        (EncapsulatedPDFStorage, {}),
        (RTDoseStorage, {}),
        (RTImageStorage, {}),
        ("1.3.46.670589.5.0.1", {"Modality": "SEG"}),
        ("1.2.840.10008.99", {"Modality": "RTSTRUCT"}),
        (SecondaryCaptureImageStorage, {"ImagePositionPatient": None}),
        (MultiFrameGrayscaleWordSecondaryCaptureImageStorage, {"ImagePositionPatient": None}),
    ],
)
def test_objects_without_an_image_do_not_count(tmp_path, dicom, sop_class, tags):
    dicom.ct_series(tmp_path, STORED)
    other = {"SOPClassUID": sop_class, "SeriesInstanceUID": "1.2.3", **tags}
    path = dicom.save(dicom.ct_slice(STORED[0], (0, 0, 0), **other), tmp_path / "a.dcm")
    assert not has_image(read_header(path))
    assert np.array_equal(read_dicom(tmp_path).voxels, HU)


@pytest.mark.parametrize(
    "tags", [{}, {"SOPClassUID": "1.2.840.10008.99"}, {"SOPClassUID": MRImageStorage}]
)
def test_images_count(tmp_path, dicom, tags):
    path = dicom.save(dicom.ct_slice(STORED[0], (0, 0, 0), **tags), tmp_path / "a.dcm")
    assert has_image(read_header(path))


def test_an_empty_position_is_no_place(tmp_path, dicom):
    one = dicom.ct_slice(STORED[0], (0, 0, 0), SOPClassUID=SecondaryCaptureImageStorage)
    one.ImagePositionPatient = None
    assert not has_image(read_header(dicom.save(one, tmp_path / "a.dcm")))


ASIDE = [
    ("localizer", {"ImageType": LOCALIZER, "ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}),
    ("localizer", {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 TOP"]}),
    ("secondary_capture", {"SOPClassUID": SecondaryCaptureImageStorage}),
    ("screen", {"ImageType": ["DERIVED", "SECONDARY", "OTHER", "CT_SOM5 PROT"]}),
]


@pytest.mark.parametrize(("code", "tags"), ASIDE)
def test_localizers_and_copies_beside_slices_are_left_out(tmp_path, dicom, code, tags):
    dicom.ct_series(tmp_path, STORED)
    other = dicom.ct_slice(STORED[0][:3], (0, 0, 3), **tags)
    path = dicom.save(other, tmp_path / "0.dcm")
    assert np.array_equal(read_dicom(tmp_path).voxels, HU)
    assert header_findings(tmp_path, "int16") == ()
    assert header_findings(path, "int16")[0][:2] == ("error", code)


def test_a_colour_page_beside_slices_is_left_out(tmp_path, dicom):
    dicom.ct_series(tmp_path, STORED)
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "BitsAllocated": 8}
    path = dicom.save(dicom.ct_slice(STORED[0], (0, 0, 0), **tags), tmp_path / "0.dcm")
    assert header_findings(path, "int16") == (
        ("error", "screen", "a screen, not slices of a volume"),
    )
    assert np.array_equal(read_dicom(tmp_path).voxels, HU)


@pytest.mark.parametrize(("code", "tags"), ASIDE)
def test_a_folder_of_nothing_else_is_read_and_named(tmp_path, dicom, code, tags):
    # With an own orientation, positions along it.
    step = (0, 2.5, 0) if "ImageOrientationPatient" in tags else (0, 0, 2.5)
    dicom.ct_series(tmp_path, STORED, step=step, **tags)
    assert read_dicom(tmp_path).voxels.shape == (6, 5, 4)
    assert ("error", code) in [finding[:2] for finding in header_findings(tmp_path, "int16")]


DERIVED = ["DERIVED", "SECONDARY"]
CODES = [
    ({}, "int16", None),
    ({}, "uint16", ("error", "modality")),
    ({"Modality": "MR"}, "int16", ("error", "modality")),
    ({"Modality": "Doehring"}, "int16", ("error", "modality")),
    ({"Modality": None}, "int16", None),  # by its SOP class
    ({"Modality": None, "SOPClassUID": "1.2.3.4"}, "int16", ("warning", "modality")),
    ({"SOPClassUID": MRImageStorage}, "int16", ("error", "modality")),
    ({"SOPClassUID": PositronEmissionTomographyImageStorage}, "int16", ("error", "modality")),
    ({"SOPClassUID": BreastTomosynthesisImageStorage}, "int16", ("error", "modality")),
    ({"SOPClassUID": BreastTomosynthesisImageStorage}, "uint16", None),
    ({"SOPClassUID": LABEL_MAP_SEGMENTATION}, "int16", ("error", "no_image")),
    ({"Modality": "MG"}, "uint16", None),  # as older scanners store tomosynthesis
    ({"Modality": "MG"}, "int16", ("error", "modality")),
    (
        {"SOPClassUID": DigitalMammographyXRayImageStorageForPresentation, "Modality": None},
        "uint16",
        None,
    ),
    (
        {"SOPClassUID": BreastProjectionXRayImageStorageForPresentation},
        *("uint16", ("error", "derived")),
    ),
    ({"Modality": "MG", "ImageType": [*DERIVED, "GENERATED_2D"]}, "uint16", ("error", "derived")),
    ({"Modality": "MG", "ImageType": [*DERIVED, "TOMOSYNTHESIS"]}, "uint16", None),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, "int16", None),
    ({"ImageType": [*DERIVED, "MPR"]}, "int16", ("warning", "derived")),
    ({"ImageType": [*DERIVED, "CSA MIP"]}, "int16", ("error", "derived")),
    ({"ImageType": [*DERIVED, "PROJECTION IMAGE"]}, "int16", ("error", "derived")),
    ({"ImageType": [*DERIVED, "AXIAL", "ELECTRON_DENSITY"]}, "int16", ("error", "derived")),
    ({"RescaleType": "HU"}, "int16", None),
    ({"RescaleType": "hu"}, "int16", None),
    ({"RescaleType": "US"}, "int16", ("warning", "units")),
    ({"RescaleType": "MGML"}, "int16", ("error", "units")),
]


@pytest.mark.parametrize(("tags", "image_dtype", "expected"), CODES)
def test_findings(tmp_path, dicom, tags, image_dtype, expected):
    path = dicom.save(dicom.ct_slice(STORED[0], (0, 0, 0), **tags), tmp_path / "a.dcm")
    findings = header_findings(path, image_dtype)
    assert [finding[:2] for finding in findings][:1] == ([] if expected is None else [expected])
    assert "Doehring" not in str(findings)


def test_units_of_frames(tmp_path, dicom):
    shared = {"PixelValueTransformationSequence": {"RescaleType": "MGML"}}
    dataset = dicom.multi_frame(STORED, shared=shared, ct=True)
    ((severity, code, text),) = header_findings(dicom.save(dataset, tmp_path / "a"), "int16")
    assert (severity, code, text) == ("error", "units", "a RescaleType other than HU")
