"""Overlays: choice of slices, orientations, and the colours of the picture."""

import itertools

import attrs
import nibabel as nib
import numpy as np
import pytest
from matplotlib import colors, image
from scipy import ndimage

from ahnet_tf.report.overlay import (
    BOX_COLOUR,
    DPI,
    WIDTH_INCHES,
    _box_numbers,
    focus_voxel,
    overlay_case,
    reformatted_plane,
    slices_to_show,
)
from preprocessing.datasets.detection_table import Detection
from preprocessing.errors import InputError
from preprocessing.page.contents import CLASS_COLOURS
from preprocessing.tasks import PRESETS
from preprocessing.volumes.geometry import Volume, axis_codes, to_target_grid

TASK = PRESETS["ct_liver"]
ORIENTATIONS = [
    "".join(codes)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*axes)
]


@pytest.fixture(scope="module")
def case():
    """[z, y, x], RAS: liver at the patient's right, a tumour anterior in it, on slices 3-6 of 12."""
    random = np.random.default_rng(0)
    voxels = random.normal(-100, 20, (12, 40, 48))
    reference = np.zeros(voxels.shape, np.uint8)
    reference[3:7, 10:30, 28:44] = 1
    reference[5, 24:28, 32:36] = 2
    voxels[reference > 0] += 150
    return voxels.astype(np.int16), reference


def draw(path, voxels, prediction, reference):
    volume = Volume(voxels.T, np.diag([1.0, 1.0, 4.0, 1.0]))
    reference = None if reference is None else reference.T
    overlay_case(path, volume, prediction.T, reference, TASK, "a case")
    return image.imread(path)[..., :3]


def pixels_near(picture, colour, tolerance=0.12):
    return (np.abs(picture - np.array(colors.to_rgb(colour))).max(axis=-1) < tolerance).sum()


def test_slices_follow_the_content(case):
    _, reference = case
    # 16 x 20 liver voxels on slices 3-6 weigh as much as 16 tumour voxels on slice 5 alone.
    slices = slices_to_show([reference], 3, 4)
    assert set(slices) <= {3, 4, 5, 6}
    assert 5 in slices
    # A false alarm far away draws slices to it.
    prediction = reference.copy()
    prediction[10, 0, 0] = 2
    assert 10 in slices_to_show([prediction, reference], 3, 4)
    nothing = np.zeros_like(reference)
    assert slices_to_show([nothing], 3, 4) == [1, 4, 7, 10]
    assert slices_to_show([nothing[:1], nothing[:1]], 3, 4) == [0]


def test_planes_go_through_the_tumour(case):
    z, y, x = focus_voxel([case[1]], 3)
    assert z == 5
    assert 24 <= y < 28
    assert 32 <= x < 36
    assert focus_voxel([np.zeros((4, 6, 8), np.uint8)], 3) == (2, 3, 4)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_orientation_on_disk_does_not_matter(codes):
    """Isotropic voxels in 48 orders on disk give the same three planes, right side up."""
    voxels = np.random.default_rng(1).integers(0, 99, (5, 6, 7)).astype(np.int16)
    canonical, wanted = (nib.orientations.axcodes2ornt(each) for each in ("RAS", codes))
    stored = nib.Nifti1Image(voxels, np.eye(4)).as_reoriented(
        nib.orientations.ornt_transform(canonical, wanted)
    )
    assert "".join(nib.aff2axcodes(stored.affine)) == codes
    volume = Volume(np.asarray(stored.dataobj), stored.affine)
    array, space = to_target_grid(volume, PRESETS["ct_liver"])
    orientation = axis_codes(np.array(space.affine))
    box = (slice(None),) * 3
    planes = [
        reformatted_plane((array, array), axis, 2, box, space.spacing_mm, orientation)
        for axis in range(3)
    ]
    assert [plane.name.split()[0] for plane in planes] == ["axial", "coronal", "sagittal"]
    # Rows from the bottom: posterior to anterior, inferior to superior; columns: right to left of
    # the patient, anterior to posterior.
    np.testing.assert_array_equal(planes[0].image, voxels[::-1, :, 2].T)
    np.testing.assert_array_equal(planes[1].image, voxels[::-1, 2, :].T)
    np.testing.assert_array_equal(planes[2].image, voxels[2, ::-1, :].T)
    assert [plane.letters for plane in planes] == [tuple("RLPA"), tuple("RLIS"), tuple("APIS")]


@pytest.mark.slow
def test_picture_shows_reference_and_prediction_apart(case, tmp_path):
    voxels, reference = case
    blue, orange = CLASS_COLOURS[:2]
    perfect = draw(tmp_path / "a.png", voxels, reference, reference)
    missed = draw(tmp_path / "b.png", voxels, np.zeros_like(reference), reference)
    alone = draw(tmp_path / "c.png", voxels, reference, None)
    # The outlines are there with and without a prediction; the areas only with one.
    for picture in (perfect, missed, alone):
        assert pixels_near(picture, blue) > 500
        assert pixels_near(picture, orange) > 100
    is_bluish = [((picture[..., 2] - picture[..., 0]) > 0.1).sum() for picture in (perfect, missed)]
    assert is_bluish[0] > 5 * is_bluish[1]


def test_nothing_found_and_one_slice(case, tmp_path):
    voxels, reference = case
    nothing = np.zeros_like(reference)
    picture = draw(tmp_path / "a.png", voxels, nothing, None)
    assert picture.shape[1] == WIDTH_INCHES * DPI
    draw(tmp_path / "b.png", voxels[:1], reference[3:4], reference[4:5])
    assert (tmp_path / "b.png").stat().st_size > 10_000


def test_detections_are_drawn_as_boxes(tmp_path):
    """Without any label the box chooses the planes: it is in all six."""
    volume = Volume(np.full((60, 50, 20), 300, np.uint16), np.diag([1.0, 1.0, 2.0, 1.0]))
    nothing = np.zeros(volume.voxels.shape, np.uint8)
    pictures = []
    for detections in ([], [Detection(0.91, 20, 10, 5, 14, 12, 6)]):
        path = tmp_path / f"{len(detections)}.png"
        # As stored: a uniform volume has no breast to normalise by.
        task = attrs.evolve(PRESETS["dbt_lesion"], normalization="none")
        overlay_case(path, volume, nothing, None, task, "a case", detections)
        picture = image.imread(path)[..., :3]
        is_box = np.abs(picture - np.array(colors.to_rgb(BOX_COLOUR))).max(axis=-1) < 0.12
        pictures.append(ndimage.label(is_box, np.ones((3, 3)))[1])
    # Besides the boxes there are the digits of their scores.
    assert pictures[0] == 0
    assert pictures[1] >= 6


def test_of_overlapping_boxes_the_stronger_one_is_whole():
    strong, weak = Detection(0.9, 2, 3, 1, 4, 4, 2), Detection(0.5, 4, 3, 1, 4, 4, 2)
    numbers = _box_numbers((10, 10, 4), [strong, weak])
    assert np.argwhere(numbers == 1).tolist() == np.argwhere(numbers[:6] == 1).tolist()
    assert (numbers == 1).sum() == 4 * 4 * 2
    assert (numbers == 2).sum() == 2 * 4 * 2
    # Partly outside of the volume.
    assert _box_numbers((4, 4, 4), [Detection(0.9, 2, 2, 3, 9, 9, 9)]).sum() == 2 * 2 * 1


def test_case_from_disk(case, tmp_path):
    voxels, reference = case
    affine = np.diag([-1.0, -1.0, 4.0, 1.0])
    volume = Volume(voxels.transpose(2, 1, 0)[::-1, ::-1], affine)
    labels = reference.transpose(2, 1, 0)[::-1, ::-1]
    overlay_case(tmp_path / "a.png", volume, labels, labels, PRESETS["ct_liver"], "a case")
    expected = draw(tmp_path / "b.png", voxels, reference, reference)
    np.testing.assert_array_equal(image.imread(tmp_path / "a.png")[..., :3], expected)


def test_shapes_must_agree(case, tmp_path):
    voxels, reference = case
    with pytest.raises(InputError, match="prediction"):
        draw(tmp_path / "a.png", voxels, reference[1:], None)
    with pytest.raises(InputError, match="reference"):
        draw(tmp_path / "a.png", voxels, reference, reference[1:])
    assert not list(tmp_path.iterdir())
