"""Geometry: orientation, slice axis, resampling, and the exact conversion back."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.errors import InputError
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import (
    Volume,
    axis_codes,
    from_target_grid,
    slice_axis,
    spacing_mm,
    target_grid,
    to_target_grid,
)

AXIS_CODES = [
    "".join(ends)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for ends in itertools.product(*order)
]


def task(resampling="keep", spacing=None, dtype="int16"):
    return Task("t", ("background", "organ"), (-200, 250), dtype, 0, resampling, spacing)


def affine_of(codes, spacing_by_world_axis=(0.7, 0.8, 5.0), origin=(11.0, -7.0, 300.0)):
    """Returns an affine with axis codes, and spacings along the world axes R, A, S."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, code in enumerate(codes):
        world = next(i for i, ends in enumerate(("RL", "AP", "SI")) if code in ends)
        affine[world, axis] = spacing_by_world_axis[world] * (1 if code in "RAS" else -1)
    affine[:3, 3] = origin
    return affine


def rotated(affine, degrees, axis):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.eye(4)
    i, j = [k for k in range(3) if k != axis]
    turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
    return turn @ affine


@pytest.mark.parametrize("codes", AXIS_CODES)
def test_conversion_back_is_exact_for_every_axis_code(codes):
    voxels = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
    volume = Volume(voxels, affine_of(codes))
    array, space = to_target_grid(volume, task())
    assert from_target_grid(array, space).tolist() == voxels.tolist()
    # Compare with nibabel's own reorientation.
    canonical = nib.as_closest_canonical(nib.Nifti1Image(voxels, volume.affine))
    assert array.tolist() == np.asarray(canonical.dataobj).transpose(2, 1, 0).tolist()
    assert space.spacing_mm == pytest.approx((0.7, 0.8, 5.0))
    np.testing.assert_allclose(space.affine, canonical.affine, atol=1e-9)


def test_there_are_48_axis_codes():
    assert len(set(AXIS_CODES)) == 48


@pytest.mark.parametrize("codes", ["RAS", "PSL", "IRA"])
def test_oblique_grids_keep_their_rotation_and_their_voxels(codes):
    affine = rotated(rotated(affine_of(codes), 17, 0), -11, 2)
    voxels = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
    array, space = to_target_grid(Volume(voxels, affine), task())
    assert sorted(array.ravel()) == sorted(voxels.ravel())
    assert from_target_grid(array, space).tolist() == voxels.tolist()
    # Every voxel keeps its position: compare the positions of equal values.
    for value in (0, 17, 59):
        (index,), (turned,) = np.argwhere(voxels == value), np.argwhere(array == value)
        place = affine @ [*index, 1]
        np.testing.assert_allclose(np.array(space.affine) @ [*turned[::-1], 1], place, atol=1e-6)


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ((0.7, 0.7, 5.0), 2),
        ((0.7, 3.0, 0.7), 1),
        ((4.0, 1.0, 1.0), 0),
        ((1.0, 1.0, 1.0), 2),
        # Thin axial slices with coarser pixels stay axial.
        ((0.976, 0.976, 0.8), 2),
        ((0.976, 0.976, 0.5), 2),
    ],
)
def test_slice_axis(spacing, expected):
    assert slice_axis(spacing) == expected


def test_coronal_slices_become_the_first_tensor_axis():
    voxels = np.zeros((6, 3, 8), np.int16)
    voxels[1, 2, 5] = 9
    volume = Volume(voxels, np.diag([0.7, 4.0, 0.9, 1.0]))
    array, space = to_target_grid(volume, task())
    assert space.shape_zyx == (3, 8, 6)
    assert space.spacing_mm == (0.7, 0.9, 4.0)
    assert array[2, 5, 1] == 9
    assert from_target_grid(array, space).tolist() == voxels.tolist()


def test_resampled_grid_has_the_tasks_spacing_and_the_inputs_centre():
    affine = rotated(affine_of("LPS"), 8, 1)
    space = target_grid((50, 60, 7), affine, task("full", (2.5, 2.5, 4.0)))
    assert space.spacing_mm == (2.5, 2.5, 4.0)
    assert space.shape_zyx == (9, 19, 14)  # 35/4 -> 9, 48/2.5 -> 19, 35/2.5 -> 14
    np.testing.assert_allclose(spacing_mm(np.array(space.affine)), (2.5, 2.5, 4.0))
    centre = np.array(space.affine) @ [*(np.array(space.shape_zyx[::-1]) - 1) / 2, 1]
    np.testing.assert_allclose(centre, affine @ [24.5, 29.5, 3, 1])
    assert axis_codes(np.array(space.affine)) == "RAS"


def test_in_plane_resampling_leaves_the_slices_alone():
    voxels = np.arange(8 * 8 * 3, dtype=np.int16).reshape(8, 8, 3)
    array, space = to_target_grid(
        Volume(voxels, np.diag([1.0, 1, 5, 1])), task("in_plane", (2.0, 2.0, 1.0))
    )
    assert array.shape == (3, 4, 4)
    assert space.spacing_mm == (2.0, 2.0, 5.0)
    # A linear ramp stays one: away from the border each new voxel is the mean of its four.
    means = voxels.transpose(2, 1, 0).reshape(3, 4, 2, 4, 2).mean((2, 4))
    assert abs(array - means)[:, 1:3, 1:3].max() <= 0.5


def test_linear_resampling_by_hand():
    voxels = np.array([0, 40, 80], np.int16).reshape(3, 1, 1)
    array, _ = to_target_grid(
        Volume(voxels, np.diag([2.0, 2, 2, 1])), task("full", (1.0, 1.0, 1.0))
    )
    # Voxel centres at -0.25, 0.25, ... of the old grid; beyond its centres the edge value holds.
    assert array[0, 0].tolist() == [0, 10, 30, 50, 70, 80]


def test_coarser_grid_does_not_alias_fine_stripes():
    stripes = np.tile(np.array([0, 1000], np.int16), 40)[:, None, None] + np.zeros(
        (80, 8, 8), np.int16
    )
    array, _ = to_target_grid(
        Volume(stripes, np.diag([1.0, 1, 1, 1])), task("full", (4.0, 4.0, 1.0))
    )
    inner = array[:, :, 3:-3]
    assert abs(inner - 500).max() < 30


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_labels_on_a_finer_grid_come_back_exactly(data):
    shape = data.draw(st.tuples(*[st.integers(1, 6)] * 3))
    codes = data.draw(st.sampled_from(AXIS_CODES))
    factor = data.draw(st.floats(1.0, 4.0))
    voxels = data.draw(st.integers(0, 2**32 - 1).map(np.random.default_rng)).integers(
        0, 3, shape, np.uint8
    )
    affine = affine_of(codes, (1.5, 2.0, 5.0))
    finer = task("full", (1.5 / factor, 2.0 / factor, 5.0 / factor))
    array, space = to_target_grid(Volume(voxels, affine), finer, label=True)
    assert array.dtype == np.uint8
    assert array.shape == space.shape_zyx
    assert np.array_equal(from_target_grid(array, space), voxels)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_conversion_back_takes_the_nearest_voxel_of_any_grid(data):
    shape = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    affine = affine_of(data.draw(st.sampled_from(AXIS_CODES)), (0.8, 0.8, 3.0))
    spacing = data.draw(st.tuples(st.floats(0.4, 4), st.floats(0.4, 4), st.floats(1, 9)))
    space = target_grid(shape, affine, task("full", spacing))
    array = np.arange(np.prod(space.shape_zyx)).reshape(space.shape_zyx)
    back = from_target_grid(array, space)
    assert back.shape == shape
    # Brute force in millimetres: no grid voxel is nearer (along any axis) than the one taken.
    to_grid = np.linalg.inv(np.array(space.affine)) @ affine
    for index in itertools.product(*(sorted({0, n // 2, n - 1}) for n in shape)):
        wanted = np.clip((to_grid @ [*index, 1])[:3], 0, np.array(space.shape_zyx[::-1]) - 1)
        taken = np.argwhere(array == back[index])[0][::-1]
        assert np.all(np.abs(taken - wanted) <= 0.5 + 1e-6)


def test_real_values_are_interpolated_back():
    space = target_grid((4, 1, 1), np.eye(4), task("full", (2.0, 1.0, 1.0)))
    back = from_target_grid(np.array([[[0.0, 1.0]]], np.float32), space, label=False)
    assert back[:, 0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]


@pytest.mark.parametrize("codes", AXIS_CODES)
@pytest.mark.parametrize("resampling", ["keep", "in_plane", "full"])
def test_labels_come_back_exactly_with_every_resampling(codes, resampling):
    voxels = np.random.default_rng(0).integers(0, 3, (7, 6, 5), np.uint8)
    affine = rotated(affine_of(codes), 13, 1)
    finer = task(resampling, (0.61, 0.77, 1.9))
    array, space = to_target_grid(Volume(voxels, affine), finer, label=True)
    assert (array.size == voxels.size) == (resampling == "keep")
    assert np.array_equal(from_target_grid(array, space), voxels)


@pytest.mark.parametrize("tilt_degrees", [-30, -12.5, 7, 25])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA", "AIL"])
def test_sheared_grids_of_tilted_gantries(codes, tilt_degrees):
    # A tilted gantry moves each slice along y by the same step: the grid is no longer orthogonal.
    affine = affine_of(codes)
    slices = codes.index("S") if "S" in codes else codes.index("I")
    affine[1, slices] = 5.0 * np.tan(np.deg2rad(tilt_degrees))
    voxels = np.random.default_rng(1).integers(0, 3, (6, 7, 8), np.uint8)
    for policy in (task(), task("in_plane", (0.5, 0.5, 1)), task("full", (0.5, 0.5, 2.5))):
        array, space = to_target_grid(Volume(voxels, affine), policy, label=True)
        assert axis_codes(np.array(space.affine)) == "RAS"
        assert np.array_equal(from_target_grid(array, space), voxels)
        # Equal voxels have equal positions in mm, with the shear.
        to_grid = np.linalg.inv(np.array(space.affine)) @ affine
        for index in itertools.product((0, 3, 5), repeat=3):
            x, y, z = np.floor((to_grid @ [*index, 1])[:3] + 0.5).astype(int)
            assert array[z, y, x] == voxels[index]


def test_very_anisotropic_and_tiny_volumes():
    for shape, affine in [
        ((5, 4, 3), np.diag([0.1, 0.1, 50.0, 1])),
        ((1, 1, 1), np.diag([1.0, 1.0, 1.0, 1])),
        ((1, 9, 2), np.diag([3.0, 0.2, 0.4, 1])),
    ]:
        voxels = np.random.default_rng(2).integers(0, 3, shape, np.uint8)
        finer = task("full", (0.1, 0.1, 0.2))
        array, space = to_target_grid(Volume(voxels, affine), finer, label=True)
        assert np.array_equal(from_target_grid(array, space), voxels)
        image, _ = to_target_grid(Volume(voxels.astype(np.int16), affine), finer)
        assert image.shape == array.shape


def test_single_slice():
    voxels = np.arange(20, dtype=np.uint8).reshape(4, 5, 1) % 2
    array, space = to_target_grid(
        Volume(voxels, np.diag([1.0, 1, 1.6, 1])), task("full", (0.5, 0.5, 5.0)), label=True
    )
    assert array.shape == (1, 10, 8)
    assert np.array_equal(from_target_grid(array, space), voxels)


def test_image_is_rounded_and_clipped_to_the_stored_dtype():
    voxels = np.array([-2e6, -0.6, 0.4, 1.5, 2.5, 2e6]).reshape(6, 1, 1)
    array, _ = to_target_grid(Volume(voxels, np.eye(4)), task())
    assert array.ravel().tolist() == [-32768, -1, 0, 2, 2, 32767]
    array, _ = to_target_grid(Volume(voxels, np.eye(4)), task(dtype="uint16"))
    assert array.ravel().tolist() == [0, 0, 0, 2, 2, 65535]


def test_kept_grid_is_not_copied():
    voxels = np.zeros((4, 5, 6), np.int16, order="F")
    array, _ = to_target_grid(Volume(voxels, affine_of("LPS")), task())
    assert np.shares_memory(array, voxels)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4)),
        np.full((4, 4), np.nan),
        np.eye(3),
        np.diag([1e300, 1, 1, 1]),
        np.diag([1e-30, 1e30, 1, 1]),
        # Two axes in one direction, except for rounding.
        np.array([[1, 1, 0, 0], [0, 1e-16, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        # Three in a plane.
        np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]),
    ],
)
def test_impossible_affines_are_refused(bad):
    with pytest.raises(InputError, match="invertible"):
        target_grid((2, 2, 2), bad, task())


@pytest.mark.parametrize("label", [False, True])
def test_a_resampled_grid_has_an_upper_bound(label):
    # 0.8 m x 0.8 m x 2.5 m a voxel: 10 x 800 / 0.8 = 10,000 voxels of 0.8 mm, and so on.
    volume = Volume(np.ones((10, 20, 4), np.uint8), np.diag([800.0, 800, 2500, 1]))
    message = r"at most \d+ voxels, found 10000 x 20000 x 4000 voxels, .*take {} GiB"
    size = "745.1" if label else "1,490.1"
    with pytest.raises(InputError, match=message.format(size)):
        to_target_grid(volume, task("full", (0.8, 0.8, 2.5)), label=label)
    # Unchanged grids need no memory.
    assert to_target_grid(volume, task(), label=label)[0].shape == (4, 20, 10)


def test_wrong_shapes_are_refused():
    with pytest.raises(InputError, match="three axes"):
        to_target_grid(Volume(np.zeros((2, 2)), np.eye(4)), task())
    space = target_grid((2, 3, 4), np.eye(4), task())
    with pytest.raises(InputError, match=r"\(4, 3, 2\)"):
        from_target_grid(np.zeros((2, 3, 4)), space)
