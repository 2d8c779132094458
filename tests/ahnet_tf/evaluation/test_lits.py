"""LiTS measures: the challenge's own answers, cases derived by hand, laws, empty masks."""

import math

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ahnet_tf.evaluation.lits import (
    LesionPair,
    dice,
    mask_measures,
    match_lesions,
    score_case,
)
from ahnet_tf.evaluation.summary import summarise
from ahnet_tf.evaluation.surface import surface_distances_mm
from preprocessing.errors import InputError

MM = (0.5, 2.0, 3.0)
masks = arrays(bool, (4, 5, 3), elements=st.booleans())
label_maps = arrays(np.uint8, (4, 5, 3), elements=st.integers(0, 2))


def along_x(*labels):
    """A label map of one row, with a margin of background."""
    return np.array([0, *labels, 0], np.uint8).reshape(-1, 1, 1)


def values(summary):
    return {name: entry["value"] for name, entry in summary.items()}


def test_known_answers_of_the_challenge(real_data):
    """Dice of both organs, and what the scorer printed for whole lesion masks (output/scores.txt)."""
    folder = real_data / "lits_scoring_sample"
    if not folder.is_dir():
        pytest.skip(f"no scoring sample at {folder}")
    expected = {
        0: (0.589466, 0.971959, {"voe": 0.582097, "assd_mm": 6.995965, "msd_mm": 159.372415}),
        1: (0.490221, 0.970985, {"voe": 0.675302, "assd_mm": 4.245046, "msd_mm": 26.807077}),
    }
    for case, (lesion, liver, measures) in expected.items():
        kinds = ("submission", "reference")
        images = [nib.load(folder / f"{kind}_segmentation-{case}.nii.gz") for kind in kinds]
        prediction, reference = (np.asarray(image.dataobj).astype(np.uint8) for image in images)
        spacing_mm = images[1].header.get_zooms()[:3]
        scores = score_case(prediction, reference, spacing_mm)
        assert scores.lesion_dice == pytest.approx(lesion, abs=1e-6)
        assert scores.liver["dice"] == pytest.approx(liver, abs=1e-6)
        found = mask_measures(prediction == 2, reference == 2, spacing_mm)
        for name, value in measures.items():
            assert found[name] == pytest.approx(value, abs=1e-6)


def test_overlap_and_surfaces_by_hand():
    # Reference 4 voxels, prediction 2 of them and 1 beside: a row, so every voxel is surface.
    reference = along_x(1, 1, 1, 1, 0) > 0
    prediction = along_x(0, 0, 1, 1, 1) > 0
    found = mask_measures(prediction, reference, (2.0, 1.0, 1.0))
    assert found["dice"] == pytest.approx(4 / 7)
    assert found["jaccard"] == pytest.approx(2 / 5)
    assert found["voe"] == pytest.approx(3 / 5)
    assert found["rvd"] == pytest.approx((4 - 3) / 3)
    # Prediction to reference: 0, 0, 2 mm; reference to prediction: 4, 2, 0, 0 mm.
    assert found["assd_mm"] == pytest.approx(8 / 7)
    assert found["rmsd_mm"] == pytest.approx(math.sqrt(24 / 7))
    assert found["msd_mm"] == 4


@given(masks, masks)
@settings(deadline=None, max_examples=40)
def test_surface_distances_equal_all_pairs(prediction, reference):
    """Against surfaces found voxel by voxel and all pairwise distances."""

    def points(mask):
        padded = np.pad(mask, 1)
        near = [o for o in np.ndindex(3, 3, 3) if 0 < np.abs(np.array(o) - 1).sum() < 3]
        surface = [
            p for p in np.argwhere(mask) if not all(padded[tuple(p + np.array(o))] for o in near)
        ]
        return np.array(surface, float).reshape(-1, 3) * MM

    a, b = points(prediction), points(reference)
    found = surface_distances_mm(prediction, reference, MM)
    if len(a) == 0 or len(b) == 0:
        assert [len(distances) for distances in found] == [0, 0]
        return
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    np.testing.assert_allclose(found[0], distances.min(axis=1))
    np.testing.assert_allclose(found[1], distances.min(axis=0))


@given(masks, masks)
@settings(deadline=None, max_examples=40)
def test_measures_are_symmetric_and_bounded(prediction, reference):
    there, back = mask_measures(prediction, reference, MM), mask_measures(reference, prediction, MM)
    for name in set(there) - {"rvd"}:
        assert there[name] == pytest.approx(back[name], nan_ok=True)
    assert 0 <= there["jaccard"] <= there["dice"] <= 1
    if prediction.any() and reference.any():
        assert there["assd_mm"] <= there["rmsd_mm"] + 1e-12 <= there["msd_mm"] + 2e-12
        # r = |R| / |P|: the two signed differences are r - 1 and 1 / r - 1.
        assert (there["rvd"] + 1) * (back["rvd"] + 1) == pytest.approx(1)
    else:
        assert math.isnan(there["assd_mm"])


@given(label_maps)
@settings(deadline=None, max_examples=40)
def test_a_perfect_prediction(label):
    scores = score_case(label, label, MM)
    assert scores.lesion_dice == 1
    assert scores.liver["dice"] == 1
    assert scores.detected_lesions == dict.fromkeys((0.5, 0.0), scores.reference_lesions)
    for lesion in scores.lesions:
        assert list(lesion.values()) == [1, 1, 0, 0, 0, 0, 0, 1, 0]
    if (label == 2).any():
        found = values(summarise([scores]))
        assert found["lesion_precision_iou_over_0.5"] == 1
        assert found["lesion_recall_iou_over_0.5"] == 1
        assert found["lesion_dice_global"] == found["liver_dice_global"] == 1
        assert found["tumour_burden_rmse"] == found["tumour_burden_max_error"] == 0


@given(label_maps, label_maps)
@settings(deadline=None, max_examples=40)
def test_counts_never_contradict_each_other(prediction, reference):
    scores = score_case(prediction, reference, MM)
    detected = scores.detected_lesions
    assert len(scores.lesions) == detected[0.5] <= detected[0.0]
    assert detected[0.0] <= min(scores.predicted_lesions, scores.reference_lesions)
    assert scores.lesion_dice == dice(prediction == 2, reference == 2)


def test_prediction_bridging_two_references_merges_them():
    predicted = np.array([1, 1, 1, 1, 1, 0])
    reference = np.array([1, 1, 0, 2, 2, 2])
    assert match_lesions(predicted, reference) == [LesionPair((1,), (1, 2), 4 / 6)]


def test_fragments_of_one_reference_are_merged():
    predicted = np.array([1, 1, 0, 2, 2, 2, 0, 3])
    reference = np.array([1, 1, 1, 1, 1, 0, 0, 0])
    assert match_lesions(predicted, reference) == [LesionPair((1, 2), (1,), 4 / 6)]


def test_reference_stays_with_its_largest_overlap():
    # Reference 2 is touched by prediction 1 in one voxel but covered by prediction 2 in two.
    predicted = np.array([1, 1, 1, 2, 2])
    reference = np.array([1, 1, 2, 2, 2])
    assert match_lesions(predicted, reference) == [
        LesionPair((1,), (1,), 2 / 3),
        LesionPair((2,), (2,), 2 / 3),
    ]


def test_reference_may_lose_its_prediction():
    # Prediction 1 is the best for reference 1 (1 voxel) but overlaps reference 2 more (2 voxels),
    # which belongs to prediction 2 (3 voxels): reference 1 is left alone, 2 takes both.
    predicted = np.array([1, 1, 1, 2, 2, 2])
    reference = np.array([1, 2, 2, 2, 2, 2])
    assert match_lesions(predicted, reference) == [LesionPair((1, 2), (2,), 5 / 6)]


def test_equal_overlaps_go_to_the_lower_number():
    predicted = np.array([1, 1, 2, 2])
    reference = np.array([0, 1, 1, 0])
    # The reference is equally near both; both predictions then choose it.
    assert match_lesions(predicted, reference) == [LesionPair((1, 2), (1,), 2 / 4)]
    # The prediction is the best for both references: one merged reference.
    assert match_lesions(reference, predicted) == [LesionPair((1,), (1, 2), 2 / 4)]


def test_half_overlap_is_not_detected():
    scores = score_case(along_x(2, 2, 1, 1), along_x(2, 1, 1, 1), MM)
    assert scores.detected_lesions == {0.5: 0, 0.0: 1}
    assert scores.lesions == ()


def test_diagonal_voxels_are_two_lesions():
    label = np.zeros((2, 2, 1), np.uint8)
    label[0, 0], label[1, 1] = 2, 2
    assert score_case(label, label, MM).reference_lesions == 2


def test_more_lesions_than_a_byte_counts():
    label = np.zeros((20, 20, 20), np.uint8)
    label[::2, ::2, ::2] = 2
    scores = score_case(label, label, MM)
    assert scores.reference_lesions == scores.detected_lesions[0.5] == 1000


def test_counts_and_means_over_a_data_set():
    cases = [
        # Two references bridged by one prediction: one pair of IoU 5/6, 1 FN by the counts.
        score_case(along_x(2, 2, 2, 2, 2, 1), along_x(2, 2, 1, 2, 2, 2), MM),
        # One lesion found exactly, one false alarm.
        score_case(along_x(2, 1, 2, 1), along_x(2, 1, 1, 1), MM),
    ]
    assert [case.detected_lesions[0.5] for case in cases] == [1, 1]
    found = summarise(cases)
    value = values(found)
    # First case: intersection 4, union 6 of 5 + 5 voxels; second: 1 of 2 + 1.
    assert value["lesion_dice_per_case"] == pytest.approx((8 / 10 + 2 / 3) / 2)
    assert value["lesion_dice_global"] == pytest.approx(2 * (4 + 1) / (10 + 3))
    assert value["lesion_precision_iou_over_0.5"] == pytest.approx(2 / 3)
    assert value["lesion_recall_iou_over_0.5"] == pytest.approx(2 / 3)
    assert value["lesion_dice"] == pytest.approx((8 / 10 + 1) / 2)
    assert value["lesion_voe"] == pytest.approx((1 - 4 / 6) / 2)
    # Burdens 5/6 and 5/6 in the first case, 2/4 predicted and 1/4 true in the second.
    assert value["tumour_burden_rmse"] == pytest.approx(math.sqrt((0 + 1 / 16) / 2))
    assert value["tumour_burden_max_error"] == 0
    assert found["lesion_dice"]["defined"] == 2
    # Without a seed no intervals; with one, the ends of two cases are the cases themselves.
    assert math.isnan(found["lesion_dice_per_case"]["low"])
    drawn = summarise(cases, seed=0)
    assert drawn["lesion_dice_per_case"]["low"] == pytest.approx(2 / 3)
    assert drawn["lesion_dice_per_case"]["high"] == pytest.approx(8 / 10)
    assert drawn["lesion_recall_iou_over_0.5"]["low"] == pytest.approx(1 / 2)
    assert drawn["lesion_recall_iou_over_0.5"]["high"] == 1
    assert drawn["tumour_burden_rmse"]["high"] == pytest.approx(1 / 4)
    assert math.isnan(drawn["tumour_burden_max_error"]["high"])
    assert {name: entry["value"] for name, entry in drawn.items()} == pytest.approx(
        value, nan_ok=True
    )


EMPTY, LIVER, LESION = along_x(0, 0), along_x(1, 1), along_x(1, 2)


@pytest.mark.parametrize(
    ("prediction", "reference", "lesion_dice", "liver_dice", "voe", "rvd", "surface", "burden"),
    [
        (EMPTY, EMPTY, 1, 1, 0, math.nan, math.nan, math.nan),
        (EMPTY, LIVER, 1, 0, 1, math.nan, math.nan, math.nan),
        (LIVER, EMPTY, 1, 0, 1, -1, math.nan, math.nan),
        (EMPTY, LESION, 0, 0, 1, math.nan, math.nan, math.nan),
        (LESION, EMPTY, 0, 0, 1, -1, math.nan, math.nan),
        (LIVER, LIVER, 1, 1, 0, 0, 0, 0),
        (LESION, LIVER, 0, 1, 0, 0, 0, -0.5),
        (LIVER, LESION, 0, 1, 0, 0, 0, 0.5),
        (LESION, LESION, 1, 1, 0, 0, 0, 0),
    ],
)
def test_every_empty_mask(
    prediction, reference, lesion_dice, liver_dice, voe, rvd, surface, burden
):
    scores = score_case(prediction, reference, MM)
    assert scores.lesion_dice == lesion_dice
    assert scores.liver["dice"] == liver_dice
    assert scores.liver["voe"] == voe
    assert scores.liver["rvd"] == pytest.approx(rvd, nan_ok=True)
    for name in ("assd_mm", "rmsd_mm", "msd_mm"):
        assert scores.liver[name] == pytest.approx(surface, nan_ok=True)
    assert scores.tumour_burden["error"] == pytest.approx(burden, nan_ok=True)
    found = summarise([scores])
    both = (prediction == 2).any() and (reference == 2).any()
    for name in ("precision", "recall"):
        assert found[f"lesion_{name}_iou_over_0.5"]["value"] == float(both)
    lesions = {"value": 1.0 if both else math.nan, "defined": int(both), "undefined": 0}
    assert {name: found["lesion_dice"][name] for name in lesions} == pytest.approx(
        lesions, nan_ok=True
    )
    undefined = int(math.isnan(burden))
    assert found["tumour_burden_rmse"]["undefined"] == undefined
    assert found["tumour_burden_max_error"]["defined"] == 1 - undefined


def test_no_cases_at_all():
    found = summarise([])
    assert math.isnan(found["lesion_dice_per_case"]["value"])
    assert math.isnan(found["tumour_burden_rmse"]["value"])
    assert found["lesion_recall_iou_over_0"]["value"] == 0


def test_shapes_must_agree():
    with pytest.raises(InputError, match="shape"):
        score_case(along_x(1), along_x(1, 1), MM)
