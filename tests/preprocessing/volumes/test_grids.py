"""Label maps on the grid of their image: the same place, stored in any order, and nothing else."""

import itertools

import numpy as np
import pytest

from preprocessing.errors import InputError
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.grids import on_grid

AFFINE = np.array([[-0.7, 0.1, 0, 30], [0.1, 0.7, 0, -40], [0, 0, 5, 100], [0, 0, 0, 1.0]])
SHAPE = (5, 4, 3)
LABEL = np.arange(60).reshape(SHAPE).astype(np.uint8)
IMAGE = Volume(np.zeros(SHAPE, np.int16), AFFINE)
ALLOW = ("label_geometry",)


def refusal(affine, voxels=LABEL, allow=()):
    with pytest.raises(InputError) as caught:
        on_grid(Volume(voxels, affine), IMAGE, "seg.nii", allow=allow)
    return str(caught.value)


def moved(*mm):
    affine = AFFINE.copy()
    affine[:3, 3] += mm
    return affine


def test_the_images_affine_is_taken():
    label = on_grid(Volume(LABEL, AFFINE + 1e-4), IMAGE, "seg.nii")
    assert np.array_equal(label.voxels, LABEL)
    assert np.array_equal(label.affine, AFFINE)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product([False, True], repeat=3)))
def test_every_storage_order_of_the_same_place(axes, flips):
    """A voxel of the stored map has the value of the voxel of `LABEL` at the same place in mm."""
    stored = LABEL.transpose(axes)
    to_label = np.zeros((4, 4))
    to_label[3, 3] = 1
    for position, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        to_label[axis, position] = -1 if flip else 1
        to_label[axis, 3] = SHAPE[axis] - 1 if flip else 0
        stored = np.flip(stored, position) if flip else stored
    label = on_grid(Volume(stored, AFFINE @ to_label), IMAGE, "seg.nii")
    assert np.array_equal(label.voxels, LABEL)
    assert np.array_equal(label.affine, AFFINE)


def test_shapes():
    line = refusal(AFFINE, LABEL[:, :, :2])
    assert line == (
        "seg.nii: expected a label map of the image's shape (5, 4, 3), found shape (5, 4, 2)"
    )
    # Axes that only the shape suggests to be turned are not.
    assert "found shape (4, 5, 3)" in refusal(AFFINE, LABEL.transpose(1, 0, 2), ALLOW)


def test_another_place_with_its_distance_in_mm():
    assert "corners up to 5 mm apart" in refusal(moved(3, 0, 4))
    # Three slices at 100, 105, 110 mm, and at 100, 95, 90 mm.
    assert "corners up to 20 mm apart" in refusal(AFFINE @ np.diag([1, 1, -1, 1]))
    # A tenth of the smallest spacing, 0.0707 mm.
    assert on_grid(Volume(LABEL, moved(0.07, 0, 0)), IMAGE, "seg.nii")
    assert "mm apart" in refusal(moved(0.0715, 0, 0))


@pytest.mark.parametrize("affine", [np.eye(4), np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_a_lost_affine_is_taken_on_request(affine):
    assert refusal(affine).endswith(
        "With --allow label_geometry, a label map of the image's shape whose affine differs is "
        "taken voxel by voxel."
    )
    label = on_grid(Volume(LABEL, affine), IMAGE, "seg.nii", allow=ALLOW)
    assert np.array_equal(label.voxels, LABEL)
    assert np.array_equal(label.affine, AFFINE)
    assert "label_geometry" not in refusal(affine, LABEL[1:])


def test_storage_order_is_respected_on_request_too():
    turn = np.diag([-1.0, 1, 1, 1])
    turn[0, 3] = SHAPE[0] - 1
    label = on_grid(Volume(LABEL[::-1], AFFINE @ turn), IMAGE, "seg.nii", allow=ALLOW)
    assert np.array_equal(label.voxels, LABEL)
