"""Volumes prepared for a page: grids, crops, boxes, small lesions."""

import itertools
import zlib

import nibabel as nib
import numpy as np
import pytest

from preprocessing.page.volumes import MARGIN_MM, Box, coarsened, kept_regions, page_volume
from preprocessing.tasks import PRESETS
from preprocessing.volumes.geometry import Volume, target_grid

TASK = PRESETS["ct_liver"]
ORIENTATIONS = [
    "".join(codes)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*axes)
]


def label_of(page, part="reference"):
    voxels = np.frombuffer(zlib.decompress(page.blocks[part], -15), np.uint8)
    return voxels.reshape(page.facts["shape"])


def volume(shape=(20, 16, 12), spacing=(1.0, 1.5, 4.0)):
    voxels = np.random.default_rng(0).integers(-1000, 400, shape).astype(np.int16)
    return Volume(voxels, np.diag([*spacing, 1.0]))


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_boxes_follow_their_voxels(codes):
    """In every orientation a box on the page holds the voxels that it holds in the file."""
    canonical = nib.Nifti1Image(volume().voxels, volume().affine)
    wanted = nib.orientations.axcodes2ornt(codes)
    now = nib.orientations.axcodes2ornt("RAS")
    stored = canonical.as_reoriented(nib.orientations.ornt_transform(now, wanted))
    label = np.zeros(stored.shape, np.uint8)
    label[3:6, 2:7, 4:9] = 1
    case = Volume(np.asarray(stored.dataobj), stored.affine)
    box = Box("reference", (3, 2, 4), (3, 5, 5), "")
    page = page_volume(
        case, Volume(label, stored.affine), None, TASK, budget_bytes=10**6, boxes=[box]
    )
    (drawn,) = page.facts["boxes"]
    found = np.argwhere(label_of(page) == 1)
    np.testing.assert_allclose(drawn["low"], found.min(axis=0) - 0.5)
    np.testing.assert_allclose(drawn["high"], found.max(axis=0) + 0.5)
    assert page.facts["orientation"] == "RAS"
    # Slices carry the numbers that they have in the file.
    for axis, (start, step) in enumerate(page.facts["file_index"]):
        along = next(i for i in range(3) if codes[i] in ("SI", "AP", "RL")[axis])
        ends = [start + step * index for index in (0, page.facts["shape"][axis] - 1)]
        assert sorted(ends) == pytest.approx([0, stored.shape[along] - 1])
        assert page.facts["file_shape"][axis] == stored.shape[along]


def test_crop_keeps_a_margin_in_mm():
    case = volume((100, 80, 30), (2.0, 2.0, 5.0))
    label = np.zeros(case.voxels.shape, np.uint8)
    label[40:50, 30:34, 12] = 2
    page = page_volume(case, Volume(label, case.affine), None, TASK, budget_bytes=10**7, crop=True)
    margin = [int(MARGIN_MM / mm) for mm in (5, 2, 2)]
    expected = [n + 2 * m for n, m in zip((1, 4, 10), margin, strict=True)]
    assert page.facts["shape"] == expected
    assert np.count_nonzero(label_of(page) == 2) == 40
    assert page.facts["file_index"] == [[6, 1], [15, 1], [25, 1]]
    assert page.facts["file_shape"] == [30, 80, 100]
    assert "Cropped" in page.note
    nothing = page_volume(
        case, Volume(0 * label, case.affine), None, TASK, budget_bytes=10**7, crop=True
    )
    assert nothing.facts["shape"] == [30, 80, 100]
    assert "Cropped" not in nothing.note


def test_coarser_only_as_far_as_needed():
    space = target_grid((256, 256, 40), np.diag([0.8, 0.8, 5.0, 1.0]), TASK)
    assert coarsened(space, 10**7) == space.spacing_mm
    spacing = coarsened(space, 256 * 256 * 40 / 4)
    # A quarter of the voxels: half the resolution in the plane, slices as they are.
    assert spacing == pytest.approx((1.6, 1.6, 5.0), rel=1e-6)
    spacing = coarsened(space, 1000)
    assert spacing[0] == spacing[1] == spacing[2] > 5


def test_budget_holds_for_the_whole_case():
    case = volume((120, 120, 60), (1.0, 1.0, 2.0))
    label = np.zeros(case.voxels.shape, np.uint8)
    label[20:90, 20:90, 10:50] = 1
    labels = Volume(label, case.affine)
    page = page_volume(case, labels, labels, TASK, budget_bytes=40_000)
    assert sum(map(len, page.blocks.values())) <= 40_000
    assert set(page.blocks) == {"image", "reference", "prediction"}
    assert "Shown at" in page.note
    assert page.facts["spacing_mm"][0] > 1


def test_no_lesion_is_lost():
    """Regions between the coarse grid's samples keep a voxel; others are as nearest voxels say."""
    fine = np.zeros((30, 40, 40), np.uint8)
    fine[4:26, 4:36, 4:36] = 1
    fine[9, 9, 9] = 2
    fine[20, 21, 20] = 2
    nearest = fine[1::4, 1::4, 1::4][:7, :10, :10]
    assert np.count_nonzero(nearest == 2) == 1
    kept = kept_regions(nearest, fine[:28])
    assert np.count_nonzero(kept == 2) == 2
    assert kept[5, 5, 5] == 2
    np.testing.assert_array_equal(kept[kept != 2], nearest[kept != 2])


def test_labels_without_an_image():
    case = volume()
    page = page_volume(
        None, Volume((case.voxels > 0).astype(np.uint8), case.affine), None, TASK,
        budget_bytes=10**5,
    )  # fmt: skip
    assert set(page.blocks) == {"reference"}
    assert "levels" not in page.facts
