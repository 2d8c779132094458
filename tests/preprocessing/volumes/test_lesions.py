"""Heat maps of lesions: values derived by hand, the depth rule, boxes compared with masks."""

import dataclasses

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.errors import InputError
from preprocessing.tasks import PRESETS
from preprocessing.volumes.geometry import Volume, target_grid, to_target_grid
from preprocessing.volumes.lesions import (
    LESION_THRESHOLD,
    LesionBox,
    box_ellipsoid,
    box_heat_map,
    check_boxes,
    mask_heat_map,
)

TASK = PRESETS["dbt_lesion"]
# Columns 8 to 14 and rows 4 to 14 around (11, 9), in slice 10 of 20.
BOX = LesionBox(8, 4, 7, 11, 10, 20, "cancer", "boxes.csv, row 2")
SHAPE = (24, 20, 20)


def grid(shape=SHAPE, spacing=(0.5, 0.5, 1.0), task=TASK, codes="RAS"):
    affine = np.diag([*spacing, 1.0])
    for axis, (code, positive) in enumerate(zip(codes, "RAS", strict=True)):
        affine[axis, axis] *= 1 if code == positive else -1
    return target_grid(shape, affine, task)


def test_ellipsoid_touches_the_boxes_sides_and_is_as_deep_as_it_is_wide():
    centre, radii = box_ellipsoid(BOX, (0.5, 0.5, 1.0))
    assert centre == (11, 9, 10)
    # Sides of 3.5 and 5.5 mm: 4.5 mm deep, 2.25 slices of 1 mm either side.
    assert radii == (3.5, 5.5, 2.25)
    assert box_ellipsoid(BOX, (0.5, 0.5, 2.0))[1][2] == 1.125


def test_depth_is_at_most_a_quarter_of_the_slices_either_side():
    few = dataclasses.replace(BOX, slice_index=3, volume_slices=8)
    assert box_ellipsoid(few, (1.0, 1.0, 1.0))[1] == (3.5, 5.5, 2.0)


def test_depth_rule_on_the_masses_known_depth(real_data):
    """The simulated mass: 41 x 52 columns and rows of 0.2 mm, its bulk 9 slices deep."""
    import nibabel as nib

    folder = real_data / "victre_dbt_insilico"
    mask = np.asarray(nib.load(folder / "mass_positive.nii.gz").dataobj)
    box = LesionBox(146, 318, 41, 52, 29, 52, "cancer")
    _, radii = box_ellipsoid(box, (0.2, 0.2, 1.0))
    assert radii[2] == pytest.approx(4.65)
    voxels = mask.sum(axis=(0, 1))
    within = voxels[29 - 4 : 29 + 5].sum() / voxels.sum()
    assert within > 0.95
    # The ellipsoid holds nearly all of the mass, and not much more than a lobed mass leaves of one.
    space = grid(mask.shape, (0.2, 0.2, 1.0))
    ellipsoid = box_heat_map([box], space).T >= LESION_THRESHOLD
    assert (ellipsoid & (mask > 0)).sum() / mask.sum() > 0.95
    assert mask.sum() / ellipsoid.sum() > 0.55


def test_heat_map_by_hand():
    heat_map = box_heat_map([BOX], grid())
    assert heat_map.dtype == np.uint8
    assert heat_map.shape == (20, 20, 24)
    assert heat_map[10, 9, 11] == 255
    # h = 1 - r^2 / 2 with r = 3 / 3.5 along x: 255 * (1 - 0.36735) = 161.3.
    assert heat_map[10, 9, 14] == 161
    # One slice away r^2 = 1 / 5.0625: 255 * 0.901235 = 229.8.
    assert heat_map[9, 9, 11] == heat_map[11, 9, 11] == 230
    # x 2, y 3, z 1: r^2 = 4 / 12.25 + 9 / 30.25 + 1 / 5.0625 = 0.82158; 255 * 0.58921 = 150.2.
    assert heat_map[11, 12, 13] == 150


def test_label_is_the_inside_of_the_ellipse():
    label = box_heat_map([BOX], grid()) >= LESION_THRESHOLD
    y, x = np.mgrid[:20, :24]
    squares = ((x - 11) / 3.5) ** 2 + ((y - 9) / 5.5) ** 2
    np.testing.assert_array_equal(label[10], squares <= 1)
    columns, rows = (np.flatnonzero(label.any(axis=axes)) for axes in ((0, 1), (0, 2)))
    assert (columns[0], columns[-1]) == (8, 14)
    assert (rows[0], rows[-1]) == (4, 14)
    assert np.flatnonzero(label.any(axis=(1, 2))).tolist() == [8, 9, 10, 11, 12]


def test_slices_out_of_reach_are_exactly_zero():
    heat_map = box_heat_map([BOX], grid())
    # sqrt(2) * 2.25 = 3.18 slices.
    assert np.flatnonzero(heat_map.any(axis=(1, 2))).tolist() == [7, 8, 9, 10, 11, 12, 13]
    assert not box_heat_map([], grid()).any()


def test_overlapping_boxes_take_the_maximum():
    other = dataclasses.replace(BOX, x=12, y=6, slice_index=11)
    both = box_heat_map([BOX, other], grid())
    singles = [box_heat_map([box], grid()) for box in (BOX, other)]
    np.testing.assert_array_equal(both, np.maximum(*singles))


def test_boxes_follow_any_orientation_of_the_file():
    straight = box_heat_map([BOX], grid())
    np.testing.assert_array_equal(box_heat_map([BOX], grid(codes="LPS")), straight[:, ::-1, ::-1])
    np.testing.assert_array_equal(box_heat_map([BOX], grid(codes="LAI")), straight[::-1, :, ::-1])


def test_the_ellipsoid_is_evaluated_on_the_resampled_grid():
    coarse = attrs.evolve(TASK, resampling="in_plane", spacing_mm=(1.0, 1.0, 1.0))
    heat_map = box_heat_map([BOX], grid(task=coarse))
    assert heat_map.shape == (20, 10, 12)
    # Voxel (z, y, x) of the coarse grid lies at columns 2 x + 0.5, rows 2 y + 0.5 of the fine one.
    squares = ((10.5 - 11) / 3.5) ** 2 + ((8.5 - 9) / 5.5) ** 2
    assert heat_map[10, 4, 5] == round(255 * (1 - squares / 2))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_every_box_leaves_a_lesion_on_every_grid(data):
    x, y = data.draw(st.integers(0, 23)), data.draw(st.integers(0, 19))
    box = LesionBox(
        x,
        y,
        data.draw(st.integers(1, 24 - x)),
        data.draw(st.integers(1, 20 - y)),
        data.draw(st.integers(0, 19)),
        20,
        "benign",
    )
    spacing = data.draw(st.floats(0.5, 6))
    task = attrs.evolve(TASK, resampling="full", spacing_mm=(spacing,) * 3)
    space = grid(task=task)
    heat_map = box_heat_map([box], space)
    # Where rounding the grid's size leaves the outermost voxels outside, so it may a lesion there.
    edge = min(box.x, box.y, 24 - x - box.width, 20 - y - box.height) * 0.5 < spacing
    depth_edge = min(box.slice_index, 19 - box.slice_index) < spacing
    assert edge or depth_edge or (heat_map >= LESION_THRESHOLD).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": 20}, r"boxes.csv, row 2: .* 24 columns and 20 rows, found X 20 to 27, Y 4 to 15"),
        ({"y": -1}, "within the image"),
        ({"slice_index": 20}, "a Slice from 0 to 19, found 20"),
        ({"volume_slices": 21}, "expected VolumeSlices 20 .the volume's., found 21"),
        ({"width": 0}, "Width and Height of at least 1, found 0 x 11"),
    ],
)
def test_boxes_that_do_not_fit_name_their_row(change, message):
    with pytest.raises(InputError, match=message):
        check_boxes([dataclasses.replace(BOX, **change)], SHAPE)


def ball(shape, centre, radius, spacing):
    offsets = np.ogrid[tuple(slice(0, n) for n in shape)]
    squares = sum(((o - c) * s) ** 2 for o, c, s in zip(offsets, centre, spacing, strict=True))
    return squares < radius**2


def test_mask_and_box_of_a_ball_agree():
    mask = ball((41, 41, 41), (20, 20, 20), 6.2, (0.5, 0.5, 0.5))
    heat_map = mask_heat_map(mask.astype(np.uint8), (0.5, 0.5, 0.5))
    box = LesionBox(8, 8, 25, 25, 20, 50, "benign")
    with_fewer_slices = dataclasses.replace(box, volume_slices=41)
    # 12.5 voxels either side, which a quarter of the slices cuts to 10.25.
    assert box_ellipsoid(box, (0.5, 0.5, 0.5))[1] == (12.5, 12.5, 12.5)
    assert box_ellipsoid(with_fewer_slices, (0.5, 0.5, 0.5))[1] == (12.5, 12.5, 10.25)
    z, y, x = np.ogrid[-20:21, -20:21, -20:21]
    expected = 255 * np.clip(1 - (z**2 + y**2 + x**2) / 12.5**2 / 2, 0, 1)
    assert heat_map.max() == heat_map[20, 20, 20] == 255
    assert np.abs(heat_map - expected).max() < 255 * 0.06


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_mask_heat_map_is_at_least_one_half_on_the_mask(seed):
    random = np.random.default_rng(seed)
    mask = random.random((6, 9, 8)) < random.choice([0.02, 0.3, 0.9])
    spacing = tuple(random.uniform(0.2, 3, 3))
    heat_map = mask_heat_map(mask.astype(np.uint8), spacing)
    np.testing.assert_array_equal(heat_map >= LESION_THRESHOLD, mask)


def test_regions_are_independent_of_position_and_neighbours():
    mask = ball((12, 20, 20), (6, 10, 10), 3.5, (1, 1, 1)).astype(np.uint8)
    whole = mask_heat_map(mask, (1.0, 1.0, 1.0))
    corner = np.zeros_like(mask)
    corner[:8, :12, :12] = mask[4:, 8:, 8:]
    # What is cut off changes the region; what is only moved does not.
    moved = np.roll(mask, (1, -3, 4), (0, 1, 2))
    np.testing.assert_array_equal(
        mask_heat_map(moved, (1.0, 1.0, 1.0)), np.roll(whole, (1, -3, 4), (0, 1, 2))
    )
    assert mask_heat_map(corner, (1.0, 1.0, 1.0)).max() == 255
    far = mask.copy()
    far[0, 0, 0] = 1
    expected = whole.copy()
    expected[0, 0, 0] = 255
    np.testing.assert_array_equal(mask_heat_map(far, (1.0, 1.0, 1.0)), expected)


def test_resampled_masks_and_boxes_agree():
    mask = np.zeros(SHAPE, np.uint8)
    mask[8:15, 4:15, 8:13] = 1
    coarse = attrs.evolve(TASK, resampling="in_plane", spacing_mm=(1.0, 1.0, 1.0))
    label, space = to_target_grid(Volume(mask, np.diag([0.5, 0.5, 1, 1])), coarse, label=True)
    heat = mask_heat_map(label, space.spacing_mm)
    assert heat.shape == space.shape_zyx
    np.testing.assert_array_equal(heat >= LESION_THRESHOLD, label > 0)
