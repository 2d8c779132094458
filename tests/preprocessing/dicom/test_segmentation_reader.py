"""DICOM SEG read as label maps on the grid of the image, whatever the order and number of frames."""

import attrs
import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.sr.coding import Code
from pydicom.uid import JPEGLSLossless

from preprocessing.datasets.case import Case
from preprocessing.datasets.reading import read_case_image, read_case_label
from preprocessing.dicom.segmentation import Software, read_source, write_segmentation
from preprocessing.errors import InputError
from preprocessing.tasks import PRESETS
from preprocessing.volumes.geometry import Volume

TASK = PRESETS["ct_liver"]
# Codecs need 32 pixels.
STORED = np.random.default_rng(0).integers(0, 2000, (6, 34, 32)).astype(np.uint16)
LABELS = np.zeros((32, 34, 6), np.uint8)
LABELS[1:6, 2:8, 1:5] = 1
LABELS[2:4, 3:5, 2:4] = 2
TURNED = {"ImageOrientationPatient": [0.8, 0.6, 0, -0.6, 0.8, 0]}
KINDS = [("BINARY", None), ("FRACTIONAL", None), ("LABELMAP", None)]
KINDS += [("LABELMAP", JPEGLSLossless)]


@pytest.fixture
def case(tmp_path, dicom):
    dicom.ct_series(tmp_path / "ct", STORED, **TURNED)
    return Case("x", tmp_path / "ct", tmp_path / "seg.dcm", "set", identifiers=("pid7748123",))


def write(case, kind="BINARY", names=("Liver", "Tumor"), syntax=None, voxels=LABELS, edit=None):
    """Writes label values 1, 2, ... as segments by highdicom, which leaves out empty frames."""
    source = read_source(case.image_path).headers
    kinds = Code("85756007", "SCT", "Tissue"), Code("108369006", "SCT", "Neoplasm")
    segments = [
        hd.seg.SegmentDescription(n, name, *kinds, hd.seg.SegmentAlgorithmTypeValues.MANUAL)
        for n, name in enumerate(names, start=1)
    ]
    frames = voxels.transpose(2, 1, 0)
    if kind == "FRACTIONAL":
        frames = np.stack([frames == n for n in range(1, len(names) + 1)], -1).astype(float)
    written = hd.seg.Segmentation(
        *(list(source), frames, kind, segments, hd.UID(), 1, hd.UID(), 1, "m", "m", "1", "1"),
        **({"transfer_syntax_uid": syntax} if syntax else {}),
    )
    if edit:
        edit(written)
    written.save_as(case.label_path)


def read(case, task=TASK):
    return read_case_label(case, task, read_case_image(case))


@pytest.mark.parametrize(("kind", "syntax"), KINDS)
def test_kinds(case, kind, syntax):
    write(case, kind, syntax=syntax)
    label, image = read(case), read_case_image(case)
    assert np.array_equal(label.voxels, LABELS)
    assert np.array_equal(label.affine, image.affine)


def test_segments_are_mapped_by_their_names(case):
    write(case, names=("Cancer", "LIVER", "Vena cava"))
    expected = np.array([0, 2, 1], np.uint8)[LABELS]
    assert np.array_equal(read(case).voxels, expected)


@pytest.mark.parametrize("names", [("background", "liver", "tumour"), ("background", "liver")])
def test_our_own_segmentations(case, names):
    """With several segments each frame names its own; with one, all of them together may."""
    software = Software("maker", "1", "net", "0")
    source = read_source(case.image_path)
    labels = np.minimum(LABELS, len(names) - 1).astype(np.uint8)
    write_segmentation(case.label_path, labels, names, source, software)
    found = read(case, attrs.evolve(TASK, class_names=names))
    assert np.array_equal(found.voxels, labels)


def test_an_image_in_another_storage_order(case):
    """The image is NIfTI, flipped in x, with z first."""
    write(case)
    image = read_case_image(case)
    turn = np.array([[0, -1.0, 0, 31], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    stored = image.voxels[::-1].transpose(2, 0, 1)
    label = read_case_label(case, TASK, Volume(stored, image.affine @ turn))
    assert np.array_equal(label.voxels, LABELS[::-1].transpose(2, 0, 1))


def moved(written):
    for group in written.PerFrameFunctionalGroupsSequence:
        place = group.PlanePositionSequence[0]
        place.ImagePositionPatient = [float(v) + 0.4 for v in place.ImagePositionPatient]


def without_places(written):
    for group in written.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence


def unknown_segment(written):
    del written.SegmentSequence[1]


@pytest.mark.parametrize(
    ("kind", "edit", "message"),
    [
        ("BINARY", moved, "frames that are slices of the image"),
        ("BINARY", without_places, "expected a DICOM SEG|position, orientation"),
        ("LABELMAP", unknown_segment, "a segment for liver"),
    ],
)
def test_what_does_not_fit_is_refused(case, kind, edit, message):
    write(case, kind, edit=edit)
    with pytest.raises(InputError, match=message):
        read(case)


def test_pixels_of_no_segment(case):
    write(case, "LABELMAP", edit=unknown_segment)
    with pytest.raises(InputError, match="pixels of its segments, found pixels of others"):
        read(case, attrs.evolve(TASK, class_names=("background", "tumour")))


def test_refusals_quote_no_header(case, dicom):
    write(case, names=("Liver of Doehring", "Tumor 1", "Tumor 2"), voxels=LABELS)
    with pytest.raises(InputError) as caught:
        read(case)
    assert "one name of a segment for tumour, found several among 3 segments" in str(caught.value)
    assert not [each for each in dicom.identifiers if each in str(caught.value)]


def test_a_file_without_segments(case):
    write(case)
    damaged = dcmread(case.label_path)
    del damaged.SegmentSequence
    damaged.save_as(case.label_path)
    with pytest.raises(InputError, match=r"expected a DICOM SEG .* found a damaged one"):
        read(case)
