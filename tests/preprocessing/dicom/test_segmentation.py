"""DICOM SEG, read back by pydicom and highdicom, voxel by voxel on the slices of the source."""

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import SegmentationStorage

from preprocessing.dicom.multiframe import read_dicom
from preprocessing.dicom.segmentation import Software, read_source, write_segmentation
from preprocessing.dicom.series import ReadOptions
from preprocessing.errors import InputError

SOFTWARE = Software("maker", "1.2", "net", "0123abcd")
CLASSES = ("background", "liver", "tumour")
AXIAL = {"PlaneOrientationSequence": {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}}
MEASURES = {"PixelMeasuresSequence": {"PixelSpacing": [0.8, 0.7], "SliceThickness": 2.5}}


def stored(shape=(6, 9, 7), seed=0):
    return np.random.default_rng(seed).integers(0, 4000, shape).astype(np.uint16)


def thirds(volume):
    """Returns a label map with all three labels, derived from the voxels themselves."""
    return np.digitize(volume.voxels, [300, 2000]).astype(np.uint8)


def segmented(path, output, classes=CLASSES, **options):
    options = ReadOptions(**options)
    volume = read_dicom(path, options)
    labels = thirds(volume) % len(classes)
    write_segmentation(output, labels, classes, read_source(path, options), SOFTWARE)
    return volume, labels, dcmread(output)


def frames_of(written):
    """Yields for each frame of a SEG its segment number, position, source reference and pixels."""
    pixels = written.pixel_array.reshape(-1, written.Rows, written.Columns)
    for frame, group in zip(pixels, written.PerFrameFunctionalGroupsSequence, strict=True):
        named = group
        # highdicom 0.28 says once for all frames which segment they show, if there is only one.
        if "SegmentIdentificationSequence" not in group and len(written.SegmentSequence) == 1:
            (named,) = written.SharedFunctionalGroupsSequence
        segment = named.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        position = group.PlanePositionSequence[0].ImagePositionPatient
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        yield segment, tuple(map(float, position)), source, frame


def test_each_segment_lies_on_the_source_slices(tmp_path, dicom):
    dicom.ct_series(tmp_path / "ct", stored())
    _, labels, written = segmented(tmp_path / "ct", tmp_path / "seg.dcm")
    sources = {each.SOPInstanceUID: each for each in map(dcmread, (tmp_path / "ct").iterdir())}
    seen = np.zeros_like(labels)
    for segment, position, reference, frame in frames_of(written):
        source = sources[reference.ReferencedSOPInstanceUID]
        assert position == tuple(map(float, source.ImagePositionPatient))
        # Derived from the source's own pixels in HU, as is the label map.
        expected = np.digitize(source.pixel_array.astype(int) - 1024, [300, 2000]) == segment
        assert np.array_equal(frame, expected)
        seen[:, :, source.InstanceNumber - 1] += segment * frame.T
    assert np.array_equal(seen, labels)
    assert set(np.unique(labels)) == {0, 1, 2}
    shared = written.SharedFunctionalGroupsSequence[0]
    assert shared.PixelMeasuresSequence[0].PixelSpacing == [0.8, 0.7]
    assert shared.PixelMeasuresSequence[0].SpacingBetweenSlices == 2.5
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == [1, 0, 0, 0, 1, 0]


def test_highdicom_reads_the_same_volume(tmp_path, dicom):
    """Oblique slices, stored from top to bottom."""
    turned = {"ImageOrientationPatient": [0.8, 0.6, 0, -0.6, 0.8, 0]}
    dicom.ct_series(tmp_path / "ct", stored()[::-1], step=(0, 0, -2.5), **turned)
    volume, labels, _ = segmented(tmp_path / "ct", tmp_path / "seg.dcm")
    segmentation = hd.seg.segread(tmp_path / "seg.dcm")
    found = segmentation.get_volume(combine_segments=True)
    # highdicom's volume is [slice, row, column] in LPS.
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    theirs = to_ras @ found.affine @ np.eye(4)[[2, 1, 0, 3]].T
    array = found.array
    if not np.allclose(theirs, volume.affine, atol=1e-4):
        # It may run either way along the normal.
        theirs = theirs @ [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, len(array) - 1], [0, 0, 0, 1]]
        array = array[::-1]
    np.testing.assert_allclose(theirs, volume.affine, atol=1e-4)
    assert np.array_equal(array.transpose(2, 1, 0), labels)


def test_it_belongs_to_the_patient_and_the_study(tmp_path, dicom):
    named = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg"}
    dicom.ct_series(tmp_path / "ct", stored(), PatientSex="unknown", StudyTime=None, **named)
    classes = ("background", "Läsion", "tumour")
    _, _, written = segmented(tmp_path / "ct", tmp_path / "seg.dcm", classes)
    source = dcmread(next((tmp_path / "ct").iterdir()))
    assert written.SOPClassUID == SegmentationStorage
    assert written.Modality == "SEG"
    for keyword in (
        *("PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyDate", "StudyID"),
        *("AccessionNumber", "FrameOfReferenceUID"),
    ):
        assert written[keyword].value == source[keyword].value
    assert str(written.PatientName) == "Müller^Jörg"
    # Attributes that the source lacks, or with invalid values, are empty.
    assert written.PatientSex in (None, "")
    assert written.StudyTime in (None, "")
    assert written.SeriesInstanceUID != source.SeriesInstanceUID
    (series,) = written.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert len(series.ReferencedInstanceSequence) == 6
    assert written.SegmentSequence[0].SegmentLabel == "Läsion"
    assert written.DeviceSerialNumber == "0123abcd"


def test_segments_have_coded_concepts(tmp_path, dicom):
    dicom.ct_series(tmp_path / "ct", stored())
    _, _, written = segmented(tmp_path / "ct", tmp_path / "a.dcm")
    liver, tumour = written.SegmentSequence
    assert coded(liver.SegmentedPropertyCategoryCodeSequence) == ("91723000", "SCT")
    assert coded(liver.SegmentedPropertyTypeCodeSequence) == ("10200004", "SCT")
    assert coded(tumour.SegmentedPropertyCategoryCodeSequence) == ("49755003", "SCT")
    assert coded(tumour.SegmentedPropertyTypeCodeSequence) == ("108369006", "SCT")
    assert coded(tumour.AnatomicRegionSequence) == ("10200004", "SCT")
    assert "AnatomicRegionSequence" not in liver
    assert [each.SegmentNumber for each in (liver, tumour)] == [1, 2]
    for each in (liver, tumour):
        assert each.SegmentAlgorithmType == "AUTOMATIC"
        assert each.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "1.2"
    _, _, written = segmented(tmp_path / "ct", tmp_path / "b.dcm", ("background", "bezoar"))
    (own,) = written.SegmentSequence
    assert coded(own.SegmentedPropertyTypeCodeSequence) == ("bezoar", "99AHNET")
    assert own.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "bezoar"


def coded(sequence):
    return sequence[0].CodeValue, sequence[0].CodingSchemeDesignator


def test_empty_label_map(tmp_path, dicom):
    dicom.ct_series(tmp_path / "ct", stored())
    source = read_source(tmp_path / "ct")
    write_segmentation(
        tmp_path / "seg.dcm", np.zeros((7, 9, 6), np.uint8), CLASSES, source, SOFTWARE
    )
    written = dcmread(tmp_path / "seg.dcm")
    assert len(written.SegmentSequence) == 2
    assert not written.pixel_array.any()


@pytest.mark.parametrize("view", ["", "lcc", "rcc"])
def test_frames_of_one_file(tmp_path, dicom, view):
    """A breast with frames stored against the normal; a view rotates it by 180 degrees."""
    values = stored()
    # Bright at the left edge.
    values[:, :, 0] = 4000
    values[:, :, -1] = 100
    positions = [(-20, -30, -z) for z in range(6)]
    dataset = dicom.multi_frame(values, positions=positions, shared=AXIAL | MEASURES)
    path = dicom.save(dataset, tmp_path / "dbt.dcm")
    classes = ("background", "lesion")
    volume, labels, written = segmented(path, tmp_path / "seg.dcm", classes, view=view)
    edge = volume.voxels[-1 if view == "rcc" else 0]
    assert (edge == 4000).all()
    places = []
    for _, position, reference, frame in frames_of(written):
        (number,) = np.atleast_1d(reference.ReferencedFrameNumber)
        places.append(int(number) - 1)
        assert position == tuple(map(float, positions[number - 1]))
        expected = np.digitize(values[number - 1], [300, 2000]) % 2
        assert np.array_equal(frame, expected)
    assert sorted(places) == list(range(6))
    assert labels.any()
    assert coded(written.SegmentSequence[0].SegmentedPropertyTypeCodeSequence) == (
        *("52988006", "SCT"),
    )
    assert coded(written.SegmentSequence[0].AnatomicRegionSequence) == ("76752008", "SCT")


def test_sources_without_positions_are_refused(tmp_path, dicom):
    dicom.ct_series(tmp_path / "PID7748123", stored(), FrameOfReferenceUID=None)
    with pytest.raises(InputError, match="FrameOfReferenceUID") as caught:
        read_source(tmp_path / "PID7748123")
    assert "PID7748123" not in str(caught.value)
    # A tomosynthesis without the positions of its frames.
    path = dicom.save(dicom.multi_frame(stored()), tmp_path / "dbt.dcm")
    with pytest.raises(InputError, match=r"place in the patient.*found none"):
        read_source(path)
