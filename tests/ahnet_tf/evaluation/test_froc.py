"""FROC of BCS-DBT: each rule by hand, laws, and the challenge's procedure written out plainly."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ahnet_tf.evaluation.froc import (
    ScoredVolume,
    count,
    curve,
    froc_scores,
    match_volume,
    score_names,
)
from preprocessing.datasets.detection_table import Detection
from preprocessing.volumes.lesions import LesionBox

SLICES = 40


def box(x=1000, y=1000, width=30, height=40, slice_index=20):
    return LesionBox(x, y, width, height, slice_index, SLICES, "cancer")


def at(x, y, z, score=0.5):
    """A detection with this centre: 8 x 6 voxels, 5 slices deep, so half a slice after the third."""
    return Detection(score, x - 4, y - 3, z - 2.5, 8, 6, 5)


def hits(detections, *boxes):
    return match_volume(detections, boxes).hits.tolist()


def scores(*volumes):
    return dict(zip(score_names(), froc_scores(count(volumes))[0], strict=True))


def volume(boxes, *detections):
    """A volume of (score, number of the box hit or -1)."""
    found = np.array([each[0] for each in detections], float)
    return ScoredVolume(boxes, found, np.array([each[1] for each in detections], int))


def at_rates(found, rates=(1, 2, 3, 4)):
    return [found[f"sensitivity_at_{rate}_fp_volumes_with_boxes"] for rate in rates]


def test_reach_in_the_plane():
    # The small box's half diagonal is 25, so 100 counts; its centre is (1015, 1020).
    assert hits([at(1115, 1020, 20), at(1115.5, 1020, 20)], box()) == [0, -1]
    assert hits([at(1015 + 60, 1020 - 80, 20), at(1015 + 60, 1020 - 80.5, 20)], box()) == [0, -1]
    # Half the diagonal of 300 x 400 is 250; centre (1150, 1200).
    large = box(width=300, height=400)
    assert hits([at(1400, 1200, 20), at(1400.5, 1200, 20)], large) == [0, -1]


def test_reach_in_depth_is_a_quarter_of_the_slices():
    found = hits([at(1015, 1020, 20 + dz) for dz in (10, 10.5, -10, -10.5)], box())
    assert found == [0, -1, 0, -1]
    # Z is the first slice: a detection from slice 28 on, 5 deep, has its middle at 30.5.
    assert hits([Detection(0.5, 1011, 1017, 28, 8, 6, 5)], box()) == [-1]
    assert hits([Detection(0.5, 1011, 1017, 27.5, 8, 6, 5)], box()) == [0]


def test_nearest_of_several_in_three_dimensions():
    first, second = box(slice_index=12), box(x=1010, slice_index=20)
    # To the first 0 in the plane and 8 slices, to the second 10 columns and 0 slices.
    assert hits([at(1015, 1020, 20)], first, second) == [0]
    # Two slices further: 10 slices against 10 columns and 2 slices, sqrt(104).
    assert hits([at(1015, 1020, 22)], first, second) == [0]
    assert hits([at(1016, 1020, 22)], first, second) == [1]
    assert hits([at(1015, 1020, 20)], box(), box()) == [0]  # the first of equals


def test_no_second_choice_where_the_nearest_is_taken():
    """A detection whose nearest box is hit already counts neither way and doesn't find another."""
    near, far = box(), box(x=1050)
    matched = match_volume([at(1015, 1020, 20, 0.9), at(1020, 1020, 20, 0.8)], [near, far])
    assert matched.hits.tolist() == [0, 0]
    assert at_rates(scores(matched)) == [0.5] * 4


def test_further_hits_count_neither_way():
    once = volume(2, (0.9, 0), (0.5, -1), (0.4, 1), (0.3, -1))
    again = volume(2, (0.9, 0), (0.9, 0), (0.5, -1), (0.4, 1), (0.4, 0), (0.3, -1))
    assert scores(once) == scores(again)
    # Found by the surest of its hits, whatever their order.
    assert scores(volume(1, (0.1, 0), (0.9, 0), (0.5, -1))) == scores(
        volume(1, (0.9, 0), (0.5, -1))
    )


def test_curve_and_interpolation_by_hand():
    one = volume(3, (0.9, 0), (0.8, -1), (0.7, -1), (0.6, 1), (0.5, -1), (0.4, -1))
    # Points: nothing; at 0.9 (0, 1/3); at 0.6 (2, 2/3); the end (4, 2/3).
    false_positives, found = curve(count([one]))
    assert false_positives.tolist() == [0, 0, 2, 4]
    assert found.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3])
    assert at_rates(scores(one)) == pytest.approx([1 / 2, 2 / 3, 2 / 3, 2 / 3])
    mean = scores(one)["sensitivity_mean_volumes_with_boxes"]
    assert mean == pytest.approx((1 / 2 + 3 * 2 / 3) / 4)


def test_equal_scores_are_one_threshold():
    one = volume(1, (0.5, -1), (0.5, 0), (0.5, -1))
    # From (0, 0) straight to (2, 1): the order of equals can't help.
    assert at_rates(scores(one)) == [0.5, 1, 1, 1]


def test_rates_are_per_volume():
    one = volume(1, (0.9, -1), (0.8, -1), (0.7, 0))
    # With boxes alone 2 false positives in 1 volume; over both volumes 1 a volume.
    found = scores(one, volume(0))
    assert at_rates(found) == [0.5, 1, 1, 1]
    assert found["sensitivity_at_2_fp_all_volumes"] == 1
    # A volume without boxes contributes its own false positives: 4 of them over two volumes
    # make 3 a volume where the box is found, 2/3 of the way.
    noisy = volume(0, *[(0.95, -1)] * 4)
    found = scores(one, noisy)
    assert at_rates(found) == [0.5, 1, 1, 1]
    assert found["sensitivity_at_2_fp_all_volumes"] == pytest.approx(2 / 3)


def test_a_perfect_detector():
    lesions = [box(), box(x=1500), box(y=1500, slice_index=3)]
    detections = [Detection(1, b.x, b.y, b.slice_index - 1, b.width, b.height, 2) for b in lesions]
    for number in (1, 3):
        found = scores(match_volume(detections[:number], lesions[:number]), volume(0))
        assert set(found.values()) == {1.0}


def test_nothing_found_and_nothing_to_find():
    assert set(scores(volume(1)).values()) == {0.0}
    assert set(scores(volume(1, (0.5, -1))).values()) == {0.0}
    for volumes in ([], [volume(0)], [volume(0, (0.5, -1))]):
        assert all(math.isnan(value) for value in scores(*volumes).values())
    assert hits([]) == hits([], box()) == []
    assert hits([at(0, 0, 0)]) == [-1]


def test_weights_are_volumes_drawn_so_often():
    volumes = [
        volume(1, (0.9, 0), (0.6, -1)),
        volume(2, (0.8, -1), (0.7, 1), (0.3, 0)),
        volume(0, (0.85, -1), (0.75, -1), (0.1, -1)),
    ]
    for drawn in ([0, 0, 2], [1, 1, 1], [2, 2, 0], [2, 2, 2]):
        weights = np.bincount(drawn, minlength=3)[None].astype(float)
        np.testing.assert_allclose(
            froc_scores(count(volumes), weights), froc_scores(count([volumes[i] for i in drawn]))
        )


def plain_scores(volumes):
    """The challenge's procedure, step by step over thresholds, without any of the code above."""

    def sensitivity(part, rates):
        boxes = sum(len(boxes) for _, boxes in part)
        events = []
        for number, (detections, boxes_here) in enumerate(part):
            for d in detections:
                centre = np.array([d.x + d.width / 2, d.y + d.height / 2, d.z + d.depth / 2])
                near = []
                for index, b in enumerate(boxes_here):
                    true = np.array([b.x + b.width / 2, b.y + b.height / 2, b.slice_index])
                    far = np.linalg.norm((centre - true)[:2])
                    inside = far <= max(100, np.sqrt(b.width**2 + b.height**2) / 2)
                    if inside and abs(centre[2] - true[2]) <= b.volume_slices / 4:
                        near.append((np.linalg.norm(centre - true), index))
                events.append((d.score, number, min(near)[1] if near else None))
        points = [(0.0, 0.0)]
        for threshold in [*sorted({e[0] for e in events if e[2] is not None}, reverse=True), -9e9]:
            above = [e for e in events if e[0] >= threshold]
            found = {e[1:] for e in above if e[2] is not None}
            missed = [e for e in above if e[2] is None]
            points.append((len(missed) / len(part), len(found) / boxes))
        return [float(np.interp(rate, *zip(*points, strict=True))) for rate in rates]

    positive = sensitivity([v for v in volumes if v[1]], (1, 2, 3, 4))
    return [*positive, np.mean(positive), *sensitivity(volumes, (2,))]


def random_volumes(seed):
    random = np.random.default_rng(seed)
    volumes = []
    for _ in range(random.integers(2, 7)):
        boxes = [
            box(*random.integers(0, 400, 2).tolist(), *random.integers(10, 400, 2).tolist(), int(z))
            for z in random.integers(0, SLICES, random.integers(0, 3))
        ]
        detections = [
            at(*random.uniform(0, 600, 2), random.uniform(0, SLICES), random.integers(0, 8) / 8)
            for _ in range(random.integers(0, 12))
        ]
        volumes.append((detections, boxes))
    return [([], [box()]), *volumes]


def all_scores(volumes):
    return froc_scores(count([match_volume(*each) for each in volumes]))[0]


seeds = st.integers(0, 10_000)


@given(seeds)
@settings(deadline=None, max_examples=60)
def test_equals_the_procedure_written_out(seed):
    volumes = random_volumes(seed)
    np.testing.assert_allclose(all_scores(volumes), plain_scores(volumes), atol=1e-12)


@given(seeds, st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_another_false_positive_never_helps(seed, score):
    volumes = random_volumes(seed)
    before = all_scores(volumes)
    volumes[0][0].append(at(5000, 5000, 0, score / 5 - 0.5))
    after = all_scores(volumes)
    assert (after <= before + 1e-12).all()
    assert (after >= 0).all()
    assert (before <= 1).all()


@given(seeds)
@settings(deadline=None, max_examples=60)
def test_order_does_not_matter(seed):
    volumes = random_volumes(seed)
    before = all_scores(volumes)
    random = np.random.default_rng(seed)
    shuffled = [
        ([detections[i] for i in random.permutation(len(detections))], boxes[::-1])
        for detections, boxes in (volumes[i] for i in random.permutation(len(volumes)))
    ]
    np.testing.assert_allclose(all_scores(shuffled), before, atol=1e-12)


@given(seeds)
@settings(deadline=None, max_examples=30)
def test_only_the_order_of_scores_counts(seed):
    volumes = random_volumes(seed)
    stretched = [
        ([Detection(**(vars(d) | {"score": 10 * d.score**3 - 7})) for d in detections], boxes)
        for detections, boxes in volumes
    ]
    np.testing.assert_allclose(all_scores(stretched), all_scores(volumes), atol=1e-12)
