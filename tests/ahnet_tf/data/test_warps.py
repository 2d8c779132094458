"""Warps: quarter turns against NumPy, anisotropic ones and slices by hand, planes that never fold."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline
from scipy.ndimage import map_coordinates

from ahnet_tf.data.augmentation import (
    elastic_displacement,
    source_positions,
    warp_along_z,
    warp_in_plane,
)

OUTSIDE = -1024.0


def patch(shape=(3, 8, 8), seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": tf.constant(rng.integers(-200, 250, shape).astype(np.float32)),
        "label": tf.constant(rng.integers(0, 3, shape).astype(np.uint8)),
        "weight": tf.ones(shape),
        "heat_map": tf.constant(rng.random(shape, np.float32)),
    }


def turned(arrays, degrees, spacing=(1.0, 1.0), zoom=1.0):
    shape_yx = tuple(arrays["label"].shape[1:])
    source = source_positions(shape_yx, tf.constant(spacing), math.radians(degrees), zoom)
    return {name: np.asarray(v) for name, v in warp_in_plane(arrays, source, OUTSIDE).items()}


@pytest.mark.parametrize("quarters", [-1, 0, 1, 2, 3])
def test_quarter_turns_are_those_of_numpy(quarters):
    arrays = patch()
    found = turned(arrays, 90 * quarters)
    for name, values in arrays.items():
        expected = np.rot90(values, quarters, axes=(1, 2))
        assert found[name].dtype == expected.dtype
        np.testing.assert_allclose(found[name], expected, atol=2e-3, err_msg=name)


def test_a_quarter_turn_is_one_in_millimetres():
    """Voxels 2 mm high and 1 mm wide: a bar over 5 voxels of x covers 3 of y once it is turned."""
    label = np.zeros((1, 7, 13), np.uint8)
    label[0, 3, 4:9] = 1
    arrays = {
        "image": tf.constant(label, tf.float32),
        "label": tf.constant(label),
        "weight": tf.ones(label.shape),
    }
    found = turned(arrays, 90, spacing=(2.0, 1.0))["label"][0]
    # Rows 2 mm apart look at columns 2 voxels apart: 4, 6 and 8 of the bar's.
    assert found[:, 6].tolist() == [0, 0, 1, 1, 1, 0, 0]
    # Columns 1 mm apart look half a row up or down; what lies further out saw no bar.
    assert found[:, [3, 4, 8, 9]].sum() == 0


def test_voxels_from_outside_have_no_weight():
    """A plane of 7 by 13, turned, is 7 wide: of the 13 columns only the middle 7 have a source."""
    found = turned(patch((2, 7, 13)), 90)
    assert (found["weight"][:, :, 3:10] == 1).all()
    for outside in (found["weight"][:, :, :3], found["weight"][:, :, 10:]):
        assert (outside == 0).all()
    assert (found["image"][found["weight"] == 0] == OUTSIDE).all()
    assert (found["label"][found["weight"] == 0] == 0).all()
    assert (found["heat_map"][found["weight"] == 0] == 0).all()


def test_voxels_interpolated_from_padding_have_no_weight():
    arrays = patch((2, 8, 8))
    weight = np.ones((2, 8, 8), np.float32)
    weight[:, :, 5:] = 0
    image = np.where(weight > 0, 100.0, OUTSIDE).astype(np.float32)
    arrays |= {"weight": tf.constant(weight), "image": tf.constant(image)}
    for degrees in (1, 10, 30, 45, 90):
        found = turned(arrays, degrees)
        np.testing.assert_allclose(found["image"][found["weight"] == 1], 100, atol=2)
        assert 0 < found["weight"].mean() < 1


def test_zoom_grows_the_content_about_the_centre():
    label = np.zeros((1, 17, 17), np.uint8)
    label[0, 6:11, 6:11] = 1
    arrays = {
        "image": tf.constant(label, tf.float32),
        "label": tf.constant(label),
        "weight": tf.ones(label.shape),
    }
    found = turned(arrays, 0, spacing=(3.0, 1.0), zoom=2.0)
    # Voxels whose source lies within 2.5 of the centre: within 5; 5 itself lies half-way between
    # voxels 10 and 11 (and 5 and 6), and rounds to the even one.
    assert found["label"][0, 8].tolist() == [0] * 3 + [1] * 11 + [0] * 3
    assert (found["weight"] == 1).all()
    small = turned(arrays, 0, zoom=0.5)
    assert small["label"][0, 8].sum() == 3
    assert small["weight"][0, 8].tolist() == [0] * 4 + [1] * 9 + [0] * 4


def test_slices_are_interpolated_and_padded_beyond_the_patch():
    column = np.ones((5, 1, 1), np.float32)
    arrays = {
        "image": tf.constant(np.reshape([0, 10, 30, 70, 150], (5, 1, 1)), tf.float32),
        "label": tf.constant(np.reshape([1, 2, 3, 4, 5], (5, 1, 1)), tf.uint8),
        "weight": tf.constant(column),
        "heat_map": tf.constant(np.reshape([0, 1, 0, 1, 0], (5, 1, 1)), tf.float32),
    }
    source_z = tf.constant([-0.1, 0.25, 2.0, 3.75, 4.1])
    found = {
        name: v.numpy()[:, 0, 0] for name, v in warp_along_z(arrays, source_z, OUTSIDE).items()
    }
    np.testing.assert_allclose(found["image"], [OUTSIDE, 2.5, 30, 130, OUTSIDE])
    assert found["label"].tolist() == [0, 1, 3, 5, 0]
    assert found["weight"].tolist() == [0, 1, 1, 1, 0]
    np.testing.assert_allclose(found["heat_map"], [0, 0.25, 0, 0.25, 0])
    assert {name: v.dtype for name, v in found.items()} == {
        name: v.numpy().dtype for name, v in arrays.items()
    }
    # The second slice is padding: what is mixed with it is, too, and its neighbours are not.
    arrays["weight"] = tf.constant(np.reshape([1, 0, 1, 1, 1], (5, 1, 1)), tf.float32)
    found = warp_along_z(arrays, tf.constant([0.0, 0.25, 1.75, 2.0, 2.5]), OUTSIDE)
    assert found["weight"].numpy()[:, 0, 0].tolist() == [1, 0, 0, 1, 1]


@settings(max_examples=20, deadline=None)
@given(
    st.floats(-180, 180),
    st.floats(0.7, 1.5),
    st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)),
    st.integers(0, 2**31 - 1),
)
def test_resampling_is_scipys(degrees, zoom, spacing, seed):
    """Independent: SciPy's linear and nearest interpolation at the same positions."""
    arrays = patch((2, 9, 12), seed)
    source = source_positions((9, 12), tf.constant(spacing), math.radians(degrees), zoom)
    found = {name: v.numpy() for name, v in warp_in_plane(arrays, source, OUTSIDE).items()}
    where = np.moveaxis(source.numpy(), -1, 0).astype(np.float64)
    kept = found["weight"][0] == 1
    inside = ((where >= 0) & (where <= np.array([8, 11])[:, None, None])).all(0)
    assert (kept[inside] == 1).all()
    for z in range(2):
        for name in ("image", "heat_map"):
            expected = map_coordinates(arrays[name][z].numpy(), where, order=1, mode="nearest")
            np.testing.assert_allclose(found[name][z][kept], expected[kept], atol=0.05)
        halfway = (np.abs(where - np.floor(where) - 0.5) < 1e-3).any(0)
        sure = kept & ~halfway
        nearest = arrays["label"][z].numpy()[
            tuple(np.rint(where).astype(int).clip(0, [[[8]], [[11]]]))
        ]
        np.testing.assert_array_equal(found["label"][z][sure], nearest[sure])


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)),
    st.floats(8, 60),
    st.floats(0, 0.249),
    st.floats(0, math.tau),
    st.floats(0.5, 2),
    st.integers(0, 2**31 - 1),
)
def test_planes_never_fold(spacing, grid_mm, share, angle, zoom, seed):
    """The determinant of the field's derivative stays above 0: neighbours keep their order."""
    spacing = tf.constant(spacing)
    displacement = elastic_displacement((24, 31), spacing, share * grid_mm, grid_mm, (seed, 0))
    assert np.abs(displacement).max() <= share * grid_mm + 1e-4
    source = source_positions((24, 31), spacing, angle, zoom, displacement).numpy()
    along_y = (source[1:] - source[:-1])[:, :-1]
    along_x = (source[:, 1:] - source[:, :-1])[:-1]
    assert (along_y[..., 0] * along_x[..., 1] - along_y[..., 1] * along_x[..., 0]).min() > 0


def test_displacement_is_the_b_spline_of_its_control_points():
    """Independent: SciPy's B-splines, one axis after the other, over the same control points."""
    grid_mm, spacing = 10.0, (2.0, 1.5)
    found = elastic_displacement((11, 9), tf.constant(spacing), 2.0, grid_mm, (7, 8)).numpy()
    # 20 mm and 12 mm: control points at -10, 0, ..., 40 and -10, ..., 30 mm.
    control = tf.random.stateless_uniform((6, 5, 2), (7, 8), -2.0, 2.0).numpy()
    knots = [np.arange(-3, n + 1) * grid_mm for n in (6, 5)]
    y = BSpline(knots[0], control, 3)(np.arange(11) * spacing[0])
    x = BSpline(knots[1], np.moveaxis(y, 1, 0), 3)(np.arange(9) * spacing[1])
    np.testing.assert_allclose(found, np.moveaxis(x, 0, 1), atol=1e-5)
