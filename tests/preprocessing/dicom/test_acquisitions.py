"""Phases, passes, echoes and kernels that share a folder or a file, and slabs of one volume."""

import numpy as np
import pytest

from preprocessing.dicom.multiframe import read_dicom
from preprocessing.dicom.series import ReadOptions
from preprocessing.errors import InputError

STORED = np.random.default_rng(2).integers(0, 4000, (8, 5, 4)).astype(np.uint16)
HU = STORED.transpose(2, 1, 0).astype(np.int16) - 1024


def write(dicom, folder, places, tags, *, stored=STORED, prefix=""):
    """Writes slices at z = places (mm), with the tags of each slice; returns the folder."""
    for number, (values, z, own) in enumerate(zip(stored, places, tags, strict=False)):
        one = dicom.ct_slice(values, (0, 0, z), InstanceNumber=number, **own)
        dicom.save(one, folder / f"{prefix}{number}")
    return folder


def refusal(path, *allow):
    with pytest.raises(InputError) as caught:
        read_dicom(path, ReadOptions(allow=allow))
    return str(caught.value)


DIFFERENT = [
    ("AcquisitionNumber", 1, 2),
    ("TemporalPositionIdentifier", 1, 2),
    ("TriggerTime", 100, 600.5),
    ("NominalPercentageOfCardiacPhase", 35, 75),
    ("ContrastBolusAgent", None, "Iohexol"),
    ("ContrastBolusStartTime", "101500", "101630"),
    ("EchoNumbers", 1, 2),
    ("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "PRIMARY", "AXIAL"]),
    ("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL", "A"], ["ORIGINAL", "PRIMARY", "AXIAL", "B"]),
    ("ConvolutionKernel", "B30f", "B60f"),
    ("ConvolutionKernel", ["I30f", "3"], ["I70f", "3"]),
    ("KVP", 80, 140),
    ("FilterType", "BODY", "HEAD"),
    ("SliceThickness", 1, 5),
    ("ReconstructionDiameter", 300, 420),
    ("AcquisitionTime", "101500", "101630.5"),
]


@pytest.mark.parametrize(("keyword", "one", "other"), DIFFERENT)
@pytest.mark.parametrize("places", [[0, 0, 2, 2, 4, 4, 6, 6], range(8)])
def test_two_acquisitions_at_equal_or_interleaved_places(
    tmp_path, dicom, keyword, one, other, places
):
    # Every second slice is of the other acquisition; the last one of neither is there.
    write(dicom, tmp_path, list(places)[:7], [{keyword: v} for v in (one, other) * 4])
    message = refusal(tmp_path, "duplicate_slices", "gaps")
    assert f"2 acquisitions that differ in {keyword} (4 slices, 3 slices)" in message
    assert "--allow mixed_series" in message
    assert not any(f" {value}" in message for value in dicom.identifiers)
    volume = read_dicom(tmp_path, ReadOptions(allow=["mixed_series"]))
    assert np.array_equal(volume.voxels, HU[:, :, [0, 2, 4, 6]])
    assert volume.affine[2, 2] == 2


@pytest.mark.parametrize("keyword", ["AcquisitionNumber", "TriggerTime", "ContrastBolusStartTime"])
@pytest.mark.parametrize("slabs", [[1, 1, 1, 2, 2, 3, 3, 3], [2, 2, 3, 3, 3, 1, 1, 1], range(8)])
def test_slabs_that_do_not_overlap_are_one_volume(tmp_path, dicom, keyword, slabs):
    write(dicom, tmp_path, range(8), [{keyword: str(value)} for value in slabs])
    assert np.array_equal(read_dicom(tmp_path).voxels, HU)


def test_passes_at_places_in_between_with_a_time_for_each_slice(tmp_path, dicom):
    # Of two passes with four slices each, the SOPInstanceUIDs choose the first one.
    tags = [
        {"AcquisitionTime": f"1000{second:02}", "SOPInstanceUID": f"1.2.3.{second}"}
        for second in range(8)
    ]
    write(dicom, tmp_path / "again", [0, 2, 4, 6, 1, 3, 5, 7], tags)
    message = refusal(tmp_path / "again", "duplicate_slices", "gaps")
    assert "2 acquisitions that differ in AcquisitionTime (4 slices, 4 slices)" in message
    volume = read_dicom(tmp_path / "again", ReadOptions(allow=["mixed_series"]))
    assert np.array_equal(volume.voxels, HU[:, :, :4])
    assert volume.affine[2, 2] == 2
    # There and back: the slice at the turn may be of either pass.
    write(dicom, tmp_path / "back", [0, 2, 4, 6, 7, 5, 3, 1], tags)
    message = refusal(tmp_path / "back", "duplicate_slices", "gaps")
    assert "2 acquisitions that differ in AcquisitionTime (5 slices, 3 slices)" in message


def test_times_that_jitter_are_one_volume(tmp_path, dicom):
    tags = [{"AcquisitionTime": f"1000{second:02}"} for second in (1, 0, 3, 2, 5, 4, 7, 6)]
    write(dicom, tmp_path, range(8), tags)
    assert np.array_equal(read_dicom(tmp_path).voxels, HU)


def test_slabs_that_overlap_are_refused(tmp_path, dicom):
    # The second breath hold begins at the place where the first one ends.
    tags = [{"AcquisitionNumber": number} for number in (1, 1, 1, 1, 2, 2, 2)]
    write(dicom, tmp_path, [0, 1, 2, 3, 3, 4, 5], tags)
    message = refusal(tmp_path, "duplicate_slices")
    assert "2 acquisitions that differ in AcquisitionNumber (4 slices, 3 slices)" in message


@pytest.mark.parametrize(
    ("keyword", "one", "other"), [d for d in DIFFERENT if d[0] in ("ConvolutionKernel", "KVP")]
)
def test_a_kernel_or_an_energy_does_not_change_along_a_volume(tmp_path, dicom, keyword, one, other):
    write(dicom, tmp_path, range(8), [{keyword: one}] * 5 + [{keyword: other}] * 3)
    assert f"differ in {keyword} (5 slices, 3 slices)" in refusal(tmp_path, "gaps")


def test_numbers_written_differently_are_equal(tmp_path, dicom):
    write(dicom, tmp_path, range(8), [{"KVP": kvp} for kvp in ("120", "120.0") * 4])
    assert np.array_equal(read_dicom(tmp_path).voxels, HU)


def test_slabs_of_one_phase_stay_together(tmp_path, dicom):
    """A phase in two breath holds, and another one in a single one over both."""
    tags = [{"AcquisitionNumber": number} for number in (1, 1, 2, 2, 3, 3, 3)]
    write(dicom, tmp_path, [0, 1, 2, 3, 0.5, 1.5, 2.5], tags)
    assert "in AcquisitionNumber (4 slices, 3 slices)" in refusal(tmp_path)
    volume = read_dicom(tmp_path, ReadOptions(allow=["mixed_series"]))
    assert np.array_equal(volume.voxels, HU[:, :, :4])
    # Both in two breath holds, one after the other.
    folder = tmp_path / "both"
    tags = [{"AcquisitionNumber": number} for number in (9, 9, 10, 10, 11, 11, 12)]
    write(dicom, folder, [0, 1, 2, 3, 0, 1, 2], tags)
    assert "in AcquisitionNumber (4 slices, 3 slices)" in refusal(folder)
    volume = read_dicom(folder, ReadOptions(allow=["mixed_series"]))
    assert np.array_equal(volume.voxels, HU[:, :, :4])


def test_slabs_that_may_belong_to_either_phase_are_on_their_own(tmp_path, dicom):
    """Two phases at one place of the table, then two at the next: in which order?"""
    tags = [{"AcquisitionNumber": number} for number in (1, 1, 2, 2, 3, 3, 4, 4)]
    write(dicom, tmp_path, [0, 1, 0, 1, 2, 3, 2, 3], tags)
    assert "4 acquisitions that differ in AcquisitionNumber (2 slices, 2" in refusal(tmp_path)
    volume = read_dicom(tmp_path, ReadOptions(allow=["mixed_series"]))
    assert volume.voxels.shape == (4, 5, 2)


def test_phases_whose_slices_have_numbers_of_their_own(tmp_path, dicom):
    tags = [{"TriggerTime": time} for time in (99, 101, 100, 98, 603, 600, 605)]
    write(dicom, tmp_path, [0, 1, 2, 3, 0, 1, 2], tags)
    message = refusal(tmp_path, "duplicate_slices")
    assert "2 acquisitions that differ in TriggerTime (4 slices, 3 slices)" in message


def test_of_equally_large_acquisitions_the_choice_is_stable(tmp_path, dicom):
    """The SOPInstanceUIDs decide, whatever the names of the files."""
    chosen = []
    for order in ("ab", "ba"):
        for name, kernel, uid in zip(order, ("B30f", "B60f"), "12", strict=True):
            tags = [
                {"ConvolutionKernel": kernel, "SOPInstanceUID": f"1.2.{uid}.{z}"} for z in "123"
            ]
            stored = STORED[3 * int(uid) - 3 :]
            write(dicom, tmp_path / order, range(3), tags, stored=stored, prefix=name)
        volume = read_dicom(tmp_path / order, ReadOptions(allow=["mixed_series"]))
        chosen.append(volume.voxels)
    assert np.array_equal(chosen[0], HU[:, :, :3])
    assert np.array_equal(chosen[1], HU[:, :, :3])


SHARED = {
    "PlaneOrientationSequence": {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
    "PixelMeasuresSequence": {"PixelSpacing": [0.8, 0.7]},
    "PixelValueTransformationSequence": {"RescaleSlope": 1, "RescaleIntercept": -1024},
}


@pytest.mark.parametrize(
    ("group", "keyword", "one", "other"),
    [
        ("FrameContentSequence", "TemporalPositionIndex", 1, 2),
        ("FrameContentSequence", "FrameAcquisitionNumber", 1, 2),
        ("CTReconstructionSequence", "ConvolutionKernel", "B30f", "B60f"),
        ("CTXRayDetailsSequence", "KVP", 80, 140),
        ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase", 35, 75),
        ("CTImageFrameTypeSequence", "FrameType", ["ORIGINAL", "PRIMARY", "VOLUME"], ["DERIVED"]),
    ],
)
def test_acquisitions_in_one_multi_frame_file(tmp_path, dicom, group, keyword, one, other):
    for name, places in (("equal", [0, 0, 2, 2, 4, 4, 6]), ("between", range(7))):
        dataset = dicom.multi_frame(
            STORED[:7],
            positions=[(0, 0, z) for z in places],
            per_frame=[{group: {keyword: value}} for value in ((one, other) * 4)[:7]],
            shared=SHARED,
            ct=True,
        )
        path = dicom.save(dataset, tmp_path / name)
        message = refusal(path, "duplicate_slices")
        assert f"2 acquisitions that differ in {keyword} (4 slices, 3 slices)" in message
        volume = read_dicom(path, ReadOptions(allow=["mixed_series"]))
        assert np.array_equal(volume.voxels, HU[:, :, [0, 2, 4, 6]])


def test_slabs_in_one_multi_frame_file(tmp_path, dicom):
    dataset = dicom.multi_frame(
        STORED,
        positions=[(0, 0, z) for z in range(8)],
        per_frame=[
            {"FrameContentSequence": {"FrameAcquisitionNumber": 1 + z // 4}} for z in range(8)
        ],
        shared=SHARED,
        ct=True,
    )
    assert np.array_equal(read_dicom(dicom.save(dataset, tmp_path / "a")).voxels, HU)
