"""Lesions of heat maps: peaks, suppression and boxes computed by hand, and masses of phantoms."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ahnet_tf.inference.lesion_nms import DetectionSettings, detect_lesions
from preprocessing.datasets.detection_table import (
    DETECTION_COLUMNS,
    Detection,
    read_detections,
    write_detections,
)
from preprocessing.errors import SettingsError
from preprocessing.phantom.dbt import make_case
from preprocessing.tasks import PRESETS
from preprocessing.volumes.geometry import from_target_grid, spacing_mm, target_grid
from preprocessing.volumes.lesions import box_heat_map


def line(*values):
    """A heat map along x."""
    return np.array(values, np.float32).reshape(-1, 1, 1)


def test_a_peak_its_score_and_the_box_above_half_of_it():
    # Half of 0.8 is 0.4: x 2 to 4. The voxel of 0.5 behind a gap is another peak, 3 mm away.
    heat_map = line(0, 0.3, 0.5, 0.8, 0.4, 0.1, 0.5)
    one_mm = (1.0, 1.0, 1.0)
    near = detect_lesions(heat_map, one_mm, DetectionSettings(0.1, minimum_distance_mm=3.5))
    assert near == [Detection(pytest.approx(0.8), x=2, y=0, z=0, width=3, height=1, depth=1)]
    far = detect_lesions(heat_map, one_mm, DetectionSettings(0.1, minimum_distance_mm=3.0))
    assert far[:1] == near
    assert far[1:] == [Detection(0.5, x=6, y=0, z=0, width=1, height=1, depth=1)]
    assert detect_lesions(heat_map, one_mm, DetectionSettings(0.9)) == []


def test_a_peak_on_a_broad_foot_is_no_wider_than_its_top():
    # Half of 0.5 is below the foot of 43 voxels; at three quarters, 0.375, the top is 3 voxels wide,
    # so a side is below sqrt(2) (1 + 1) = 2.8 voxels away.
    foot = [0.3] * 20
    (found,) = detect_lesions(line(*foot, 0.4, 0.5, 0.4, *foot), (1.0, 1.0, 1.0))
    assert (found.x, found.width) == (19, 5)


@given(st.integers(1, 12), st.floats(0.05, 0.95), st.floats(0.2, 1.0))
@settings(deadline=None, max_examples=40)
def test_a_target_has_the_size_of_its_lesion_at_every_height(voxels, rest, height):
    """A radius between two voxels holds the lower number of them on either side."""
    distance = np.abs(np.arange(61) - 30) / (voxels + rest)
    target = height * np.maximum(0, 1 - distance**2 / 2)
    (found,) = detect_lesions(line(*target), (1.0, 1.0, 1.0))
    assert (found.x, found.width) == (30 - voxels, 2 * voxels + 1)


@pytest.mark.parametrize(("axis", "counts"), [(0, 1), (1, 1), (2, 1 / 3)])
def test_distances_are_in_mm_and_a_third_of_them_along_z(axis, counts):
    """Peaks three voxels apart; 10 mm are between three times 3 and three times 3.5 mm."""
    heat_map = np.moveaxis(line(1, 0, 0, 0.9), 0, axis)
    settings_10_mm = DetectionSettings(minimum_distance_mm=10 * counts)
    assert len(detect_lesions(heat_map, (3.0, 3.0, 3.0), settings_10_mm)) == 1
    assert len(detect_lesions(heat_map, (3.5, 3.5, 3.5), settings_10_mm)) == 2


def test_a_plateau_is_one_peak_in_its_middle():
    # Longer than the minimum distance; the second plateau's middle is 10 mm from the first one's.
    heat_map = line(*[1] * 9, 0, *[0.6] * 5)
    found = detect_lesions(heat_map, (1.0, 1.0, 1.0), DetectionSettings(minimum_distance_mm=5))
    assert [(each.x, each.width) for each in found] == [(0, 9), (10, 5)]
    whole = detect_lesions(np.ones((3, 4, 5)), (1.0, 1.0, 1.0))
    assert whole == [Detection(1.0, x=0, y=0, z=0, width=3, height=4, depth=5)]


def test_a_shoulder_is_no_peak_and_touching_lesions_share_their_voxels():
    # A plateau of 0.6 next to 1 is no maximum.
    step = line(0, 0.6, 0.6, 0.6, 1, 0)
    assert len(detect_lesions(step, (1.0, 1.0, 1.0), DetectionSettings(minimum_distance_mm=0))) == 1
    # Above half of both peaks everywhere; split half-way, at x = 4 (equally near: in both).
    ridge = line(0, 0.7, 1, 0.8, 0.7, 0.8, 0.9, 0.7, 0)
    found = detect_lesions(ridge, (1.0, 1.0, 1.0), DetectionSettings(minimum_distance_mm=2))
    assert [(each.x, each.width) for each in found] == [(1, 4), (4, 4)]


def test_voxels_belong_to_the_nearest_peak_in_mm():
    """On a plateau of three peaks, with voxels of other sizes along each axis; those half-way to both."""
    spacing_mm, peaks = np.array([2.0, 0.5, 1.0]), np.array([[2, 3, 1], [2, 13, 1], [7, 22, 3]])
    heat = np.full((9, 27, 5), 0.9, np.float32)
    heat[tuple(peaks.T)] = 1
    away_mm = np.linalg.norm((np.indices(heat.shape).T[..., None, :] - peaks) * spacing_mm, axis=-1)
    # Ties are exact to the last bits of a square root.
    own = away_mm.T.min(axis=0) + 1e-9 >= away_mm.T
    found = detect_lesions(heat, tuple(spacing_mm), DetectionSettings(minimum_distance_mm=1))
    boxes = {((each.x, each.y, each.z), (each.width, each.height, each.depth)) for each in found}
    extents = [np.argwhere(each) for each in own]
    assert boxes == {
        (tuple(e.min(axis=0)), tuple(e.max(axis=0) - e.min(axis=0) + 1)) for e in extents
    }


def test_similar_scores_everywhere_are_processed_quickly():
    """Noise above the threshold everywhere: thousands of peaks, each connected to the whole volume."""
    heat_map = np.random.default_rng(0).uniform(0.4, 0.6, (200, 150, 6)).astype(np.float32)
    found = detect_lesions(heat_map, (1.0, 1.0, 1.0), DetectionSettings(most=2))
    assert len(found) == 2
    assert found[0].score == heat_map.max()
    assert max(max(each.width, each.height) for each in found) <= 81


def test_the_highest_are_kept():
    heat_map = np.zeros((9, 9, 1), np.float32)
    heat_map[::4, ::4, 0] = np.arange(1, 10).reshape(3, 3) / 10
    found = detect_lesions(heat_map, (5.0, 5.0, 1.0), DetectionSettings(0.05, most=3))
    assert [each.score for each in found] == pytest.approx([0.9, 0.8, 0.7])
    assert [(each.x, each.y) for each in found] == [(8, 8), (8, 4), (8, 0)]


@given(st.integers(0, 2**32 - 1), st.floats(0, 6))
@settings(deadline=None, max_examples=40)
def test_properties_of_suppression(seed, distance_mm):
    """Scores decrease, peaks keep their distance, and every peak lies in its box."""
    heat_map = np.random.default_rng(seed).random((6, 5, 4)).astype(np.float32)
    detection = DetectionSettings(0.8, most=1000, minimum_distance_mm=distance_mm)
    found = detect_lesions(heat_map, (1.0, 1.0, 2.0), detection)
    scores = np.array([each.score for each in found])
    assert (np.diff(scores) <= 0).all()
    assert len(found) == 0 or scores[0] == heat_map.max()
    peaks = np.array([np.argwhere(heat_map == score)[0] for score in scores]).reshape(-1, 3)
    apart = np.linalg.norm((peaks[:, None] - peaks) * (1, 1, 2 / 3), axis=-1)
    assert (apart[~np.eye(len(peaks), dtype=bool)] >= distance_mm).all()
    for lesion, peak in zip(found, peaks, strict=True):
        first = np.array((lesion.x, lesion.y, lesion.z))
        size = np.array((lesion.width, lesion.height, lesion.depth))
        assert (first <= peak).all()
        assert (peak < first + size).all()


@pytest.mark.slow
def test_masses_of_phantoms_are_located():
    """Training targets of phantoms in either orientation, detected on the grid of the file."""
    masses = 0
    for number in (0, 2, 4):
        case = make_case(5, number)
        space = target_grid(case.image.voxels.shape, case.image.affine, PRESETS["dbt_lesion_small"])
        heat_map = box_heat_map(case.boxes, space).astype(np.float32) / 255
        on_file_grid = from_target_grid(heat_map, space, label=False)
        found = detect_lesions(on_file_grid, spacing_mm(case.image.affine))
        assert len(found) == len(case.boxes)
        for box in case.boxes:
            (lesion,) = [
                each for each in found if abs(each.x - box.x) < 5 and abs(each.y - box.y) < 5
            ]
            assert lesion.score > 0.9
            assert abs(lesion.width - box.width) <= 4
            assert abs(lesion.height - box.height) <= 4
            assert abs(lesion.z + (lesion.depth - 1) / 2 - box.slice_index) <= 1
            masses += 1
    assert masses >= 4


def test_written_detections_are_read_back(tmp_path):
    lesion = Detection(0.123456789, x=1, y=2, z=3, width=4, height=5, depth=6)
    path = tmp_path / "lesions.csv"
    write_detections(path, [(("P", "S", "lcc"), lesion)])
    header, row = path.read_text(encoding="utf-8").splitlines()
    assert header == ",".join(DETECTION_COLUMNS)
    assert row == "P,S,lcc,0.123457,3,1,2,6,4,5"
    found, _ = read_detections(path)
    assert found == {("P", "S", "lcc"): [dataclasses.replace(lesion, score=0.123457)]}


@pytest.mark.parametrize(
    "wrong",
    [
        *({"threshold": value} for value in (0, 1.1, True, float("nan"))),
        *({"most": value} for value in (0, 2.5, True)),
        *({"minimum_distance_mm": value} for value in (-1, float("inf"), float("nan"))),
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong)).partition("_")[0]):
        DetectionSettings(**wrong)
