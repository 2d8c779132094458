"""Scores as charts: numbers derived by hand."""

import numpy as np
import pytest

from ahnet_tf.evaluation.froc import ScoredVolume
from ahnet_tf.evaluation.lits import score_case
from ahnet_tf.evaluation.summary import summarise
from ahnet_tf.report.charts import detection_charts, found_by_iou, label_charts


def case(*predicted_lengths):
    """A reference lesion of 4 voxels in a row; predictions of these lengths from its start on."""
    reference = np.zeros((3 * len(predicted_lengths), 3, 12), np.uint8)
    prediction = reference.copy()
    for number, length in enumerate(predicted_lengths):
        reference[3 * number, 1, 2:6] = 2
        prediction[3 * number, 1, 2 : 2 + length] = 2
    return score_case(prediction, reference, (1, 1, 1))


def test_precision_and_recall_over_iou():
    """IoU 1/4, 4/4 and nothing predicted; 4/8 in the second case: strictly more is asked for."""
    scores = [case(1, 4, 0), case(8)]
    assert sorted(iou for each in scores for iou in each.lesion_ious) == [0.25, 0.5, 1]
    found = {name: dict(points) for name, points in found_by_iou(scores).items()}
    # 3 predicted, 4 in the reference.
    assert [found["precision"][iou] for iou in (0, 0.25, 0.49, 0.5, 0.99)] == pytest.approx(
        [1, 2 / 3, 2 / 3, 1 / 3, 1 / 3]
    )
    assert [found["recall"][iou] for iou in (0, 0.25, 0.5)] == pytest.approx([3 / 4, 2 / 4, 1 / 4])
    summary = summarise(scores)
    for iou in (0, 0.5):
        for name in ("precision", "recall"):
            assert found[name][iou] == summary[f"lesion_{name}_iou_over_{iou:g}"]["value"]


def test_curves_end_where_scores_are_read():
    perfect = ScoredVolume(1, np.array([0.9]), np.array([0]))
    charts = {chart.title: chart for chart in detection_charts([perfect])}
    assert charts["FROC"].series["all volumes"][-1] == (5, 1)
    noisy = ScoredVolume(1, np.linspace(1, 0, 31), np.array([-1] * 30 + [0]))
    charts = {chart.title: chart for chart in detection_charts([noisy])}
    # Straight from nothing at 30 false positives, where the hit comes; cut at 10.
    assert charts["FROC"].series["all volumes"][-1] == pytest.approx((10, 10 / 30), abs=0.4)
    assert charts["FROC"].x.range == (0, 10)


def test_nothing_scored_has_no_charts():
    assert label_charts([], []) == []
    assert detection_charts([]) == []
