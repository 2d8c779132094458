"""Patches: the exact tiling, and the balanced draw for training."""

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.records.case_volume import CaseVolume
from preprocessing.records.patches import (
    QUANTILE_VOXELS,
    evaluation_tiles,
    intensity_quantiles,
    training_patches,
)
from preprocessing.tasks import PRESETS
from preprocessing.volumes.geometry import count_labels_by_slice, target_grid

TASK = attrs.evolve(PRESETS["ct_liver"], patch_shape_zyx=(4, 8, 6), patches_per_case=40)


def volume_of(image, label, task, case_id="a"):
    counts = count_labels_by_slice(label, len(task.class_names))
    grid = target_grid(image.shape[::-1], np.diag([1.0, 1, 5, 1]), TASK)
    return CaseVolume(case_id, "s", image, label, None, counts, grid)


def draw(image, label, *, case_id="a", seed=0, task=TASK):
    return list(training_patches(volume_of(image, label, task, case_id), task, seed=seed))


def tiles(image, label, task=TASK):
    return list(evaluation_tiles(volume_of(image, label, task), task))


shapes = st.tuples(*[st.integers(1, 19)] * 3)


@given(shapes, shapes.map(lambda shape: tuple(min(n, 9) for n in shape)))
@settings(max_examples=60, deadline=None)
def test_tiles_hold_every_voxel_exactly_once(shape, patch_shape):
    task = attrs.evolve(TASK, patch_shape_zyx=patch_shape)
    image = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    label = (image % 3).astype(np.uint8)
    seen = np.zeros(shape, int)
    for index, patch in enumerate(tiles(image, label, task)):
        assert patch.index == index
        assert patch.image_zyx.shape == patch.label_zyx.shape == patch_shape
        inside = tuple(map(slice, patch.valid_zyx))
        place = tuple(
            slice(o, o + n) for o, n in zip(patch.origin_zyx, patch.valid_zyx, strict=True)
        )
        seen[place] += 1
        assert np.array_equal(patch.image_zyx[inside], image[place])
        assert np.array_equal(patch.label_zyx[inside], label[place])
        # A patch ends beyond the volume only where the volume is smaller.
        ends = np.add(patch.origin_zyx, patch_shape)
        assert (ends <= np.maximum(shape, patch_shape)).all()
        whole = image[tuple(map(slice, patch.origin_zyx, ends))]
        assert np.array_equal(patch.image_zyx[tuple(map(slice, whole.shape))], whole)
        padding = np.ones(patch_shape, bool)
        padding[tuple(map(slice, whole.shape))] = False
        assert (patch.image_zyx[padding] == task.outside_value).all()
        assert not patch.label_zyx[padding].any()
    assert (seen == 1).all()


def test_tiles_lie_within_the_volume():
    """Seven voxels in tiles of four: three count in the first tile, and its fourth is the second's."""
    image = np.arange(7, dtype=np.int16).reshape(7, 1, 1)
    task = attrs.evolve(TASK, patch_shape_zyx=(4, 1, 1))
    first, last = tiles(image, np.zeros(image.shape, np.uint8), task)
    assert first.image_zyx.ravel().tolist() == [0, 1, 2, 3]
    assert last.image_zyx.ravel().tolist() == [3, 4, 5, 6]
    places = [(each.origin_zyx[0], each.valid_zyx[0]) for each in (first, last)]
    assert places == [(0, 3), (3, 4)]


@pytest.fixture(scope="module")
def volume():
    random = np.random.default_rng(0)
    image = random.integers(-1000, 1000, (12, 30, 26)).astype(np.int16)
    label = np.zeros(image.shape, np.uint8)
    label[3:9, 8:24, 6:20] = 1
    label[5, 12, 10:12] = 2
    return image, label


def test_same_case_seed_and_settings_same_patches(volume):
    first, again = draw(*volume), draw(*volume)
    assert [patch.origin_zyx for patch in first] == [patch.origin_zyx for patch in again]
    origins = {
        tuple(patch.origin_zyx for patch in draw(*volume, **other))
        for other in ({}, {"case_id": "b"}, {"seed": 1})
    }
    assert len(origins) == 3


def test_the_drawn_patches_are_pinned(volume):
    # Records made by one release must be those of the next: a fixed draw, written down.
    origins = [patch.origin_zyx for patch in draw(*volume)[:3]]
    assert origins == [(3, 8, 7), (5, 14, 13), (3, 8, 7)]


def test_foreground_share_is_kept_and_classes_are_balanced(volume):
    patches = draw(*volume)
    assert len(patches) == 40
    foreground = patches[:30]
    assert all(patch.label_zyx.any() for patch in foreground)
    # The tumour has 2 of 1344 foreground voxels, but is aimed at half of the time.
    tumour = sum(2 in patch.label_zyx for patch in foreground)
    assert 9 <= tumour <= 24
    for patch in patches:
        ends = np.add(patch.origin_zyx, TASK.patch_shape_zyx)
        assert (ends <= volume[0].shape).all()
        assert patch.valid_zyx == TASK.patch_shape_zyx
        z, y, x = patch.origin_zyx
        assert np.array_equal(patch.image_zyx, volume[0][z : z + 4, y : y + 8, x : x + 6])


def test_every_voxel_of_a_class_is_drawn(volume):
    label = np.zeros((6, 5, 4), np.uint8)
    label[[0, 2, 2, 5], [1, 0, 4, 3], [2, 3, 1, 0]] = 1
    task = attrs.evolve(
        TASK, patch_shape_zyx=(1, 1, 1), patches_per_case=60, foreground_fraction=1.0
    )
    patches = draw(label.astype(np.int16), label, task=task)
    assert {patch.origin_zyx for patch in patches} == {(0, 1, 2), (2, 0, 3), (2, 4, 1), (5, 3, 0)}


def test_without_foreground_patches_lie_anywhere(volume):
    image, label = volume
    patches = draw(image, np.zeros_like(label))
    assert len(patches) == 40
    assert len({patch.origin_zyx for patch in patches}) > 30


def test_a_volume_smaller_than_the_patch_is_padded():
    image = np.full((2, 3, 26), 7, np.int16)
    (patch, *_) = draw(image, np.ones(image.shape, np.uint8))
    assert patch.valid_zyx == (2, 3, 6)
    assert patch.image_zyx.shape == (4, 8, 6)
    assert patch.image_zyx[2:].max() == TASK.outside_value


def test_facts_of_the_whole_case_are_in_every_patch(volume):
    image, label = volume
    for patch in (draw(*volume)[0], tiles(*volume)[-1]):
        assert patch.case_label_voxels == tuple(np.bincount(label.ravel()))
        assert patch.volume_shape_zyx == image.shape
        assert patch.spacing_mm == (1.0, 1.0, 5.0)
        expected = np.quantile(image, [0.01, 0.5, 0.99], method="lower")
        assert patch.intensity_quantiles == tuple(expected)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_quantiles_reach_the_dtypes_ends(dtype):
    ends = np.iinfo(dtype)
    values = np.array([[[ends.min, ends.max, ends.max]]], dtype)
    assert intensity_quantiles(values) == (ends.min, ends.max, ends.max)


def test_label_counts_by_slice():
    label = np.array([[[0, 1], [1, 1]], [[0, 0], [0, 2]]], np.uint8)
    assert count_labels_by_slice(label, 4).tolist() == [[1, 3, 0, 0], [3, 0, 1, 0]]


@pytest.mark.parametrize("axes", [(1,), (2,), (0, 1, 2)])
def test_a_flipped_view_gives_the_same_patches_as_its_copy(volume, axes):
    views = [np.flip(each, axes) for each in volume]
    copies = [np.ascontiguousarray(each) for each in views]
    assert not any(view.flags.c_contiguous for view in views)
    for cut in (draw, tiles):
        for patch, expected in zip(cut(*views), cut(*copies), strict=True):
            assert np.array_equal(patch.image_zyx, expected.image_zyx)
            assert np.array_equal(patch.label_zyx, expected.label_zyx)
            assert patch.origin_zyx == expected.origin_zyx
            assert patch.intensity_quantiles == expected.intensity_quantiles
    counts = [count_labels_by_slice(labels, 4).tolist() for labels in (views[1], copies[1])]
    assert counts[0] == counts[1]


def test_quantiles_of_a_large_volume_come_from_a_grid_of_its_voxels():
    shape = (17, 256, 256)
    image = np.random.default_rng(0).normal(0, 300, shape).astype(np.int16)
    assert image.size > 4 * QUANTILE_VOXELS
    grid = image[:, ::2, ::2]
    found = intensity_quantiles(image)
    assert found == tuple(np.quantile(grid, [0.01, 0.5, 0.99], method="lower"))
    # Normal deviates: -2.326, 0 and 2.326 standard deviations.
    assert np.abs(np.array(found) - [-698, 0, 698]).max() < 8
