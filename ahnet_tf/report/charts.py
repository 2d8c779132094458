"""Scores as charts of a page: box plots, tumour burden, lesions found, FROC, precision and recall."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ahnet_tf.evaluation.froc import RATES, ScoredVolume, count, curve
from ahnet_tf.evaluation.lits import CaseScores
from preprocessing.page.colours import CLASS_COLOURS, class_colour
from preprocessing.page.contents import axis, box_plot, curves, scatter
from preprocessing.tasks import Task

# Columns of `scores.csv` by the name of their box: values from 0 to 1, and distances.
SHARES = {
    "liver Dice": "liver_dice",
    "tumour Dice": "lesion_dice_per_case",
    "liver surface": "liver_surface_dice",
    "tumour surface": "lesion_surface_dice_per_case",
}
DISTANCES = {
    "liver ASSD": "liver_assd_mm",
    "liver HD95": "liver_hd95_mm",
    "tumour HD95": "lesion_hd95_mm_per_case",
}
VOLUMES = {"liver RVD": "liver_rvd"}
# IoU that may be asked of a lesion to count as found.
_IOUS = np.arange(0, 100) / 100
# FROC curves are drawn up to here, or further where they end later; false positives per volume.
_LEAST_RATE, _MOST_RATE = 5.0, 10.0


def label_charts(
    rows: Sequence[Mapping[str, float]], scores: Collection[CaseScores], task: Task
) -> list[dict[str, Any]]:
    """Returns the charts of label maps.

    Args:
      rows: the lines of `scores.csv`, in the order of the page's cases.
      scores: what they come from.
      task: whose classes they are.
    """
    if not rows:
        return []
    liver, tumour = class_colour(1), class_colour(2)
    burden = [
        (row["tumour_burden_reference"], row["tumour_burden_predicted"], index)
        for index, row in enumerate(rows)
    ]
    burden = [point for point in burden if not any(map(math.isnan, point))]
    lesions = [
        (row["reference_lesions"], row["detected_iou_over_0"], index)
        for index, row in enumerate(rows)
    ]
    return [
        box_plot("Overlap", axis("Dice", 0, 1), _groups(rows, SHARES), [liver, tumour] * 2),
        box_plot(
            "Distances", axis("mm"), _groups(rows, DISTANCES), [liver, liver, tumour], digits=2
        ),
        scatter(
            "Tumour burden",
            axis("reference"),
            axis("predicted"),
            burden,
            tumour,
            note="Tumour voxels / liver voxels. On the dashed line both agree.",
        ),
        scatter(
            "Tumours per case",
            axis("reference"),
            axis("found at IoU > 0"),
            lesions,
            tumour,
            digits=0,
        ),
        box_plot("Volume", axis("relative volume difference"), _groups(rows, VOLUMES), [liver]),
        curves(
            "Tumours found",
            axis("IoU that a tumour must exceed to count as found", 0, 1),
            axis("share", 0, 1),
            found_by_iou(scores),
            ["#0072B2", "#D55E00"],
            note="Precision = found / predicted, recall = found / reference, over all cases.",
        ),
    ]


def found_by_iou(scores: Collection[CaseScores]) -> dict[str, list[tuple[float, float]]]:
    """Returns lesion precision and recall over the IoU that a lesion must exceed to be found.

    They are those of `lits_summary.summarise` at its IoU: 0 without a denominator.
    """
    ious = np.sort([iou for case in scores for iou in case.lesion_ious])
    found = len(ious) - np.searchsorted(ious, _IOUS, side="right")
    totals = {
        "precision": sum(case.predicted_lesions for case in scores),
        "recall": sum(case.reference_lesions for case in scores),
    }
    return {
        name: [(float(iou), float(n / max(1, total))) for iou, n in zip(_IOUS, found, strict=True)]
        for name, total in totals.items()
    }


def detection_charts(volumes: Sequence[ScoredVolume]) -> list[dict[str, Any]]:
    """Returns the charts of detected lesions; `volumes` in the order of the page's cases."""
    with_boxes = [volume for volume in volumes if volume.boxes]
    if not with_boxes:
        return []
    groups = {"volumes with boxes": with_boxes, "all volumes": list(volumes)}
    colours = [CLASS_COLOURS[6], CLASS_COLOURS[5]]
    froc = {name: _froc_points(group) for name, group in groups.items()}
    limit = max(_LEAST_RATE, *(points[-1][0] for points in froc.values()))
    limit = min(limit, _MOST_RATE)
    by_kind: dict[str, list[tuple[float, int]]] = {"on a box": [], "false positives": []}
    for index, volume in enumerate(volumes):
        for score, hit in zip(volume.scores, volume.hits, strict=True):
            by_kind["on a box" if hit >= 0 else "false positives"].append((float(score), index))
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    return [
        curves(
            "FROC",
            axis("false positives per volume", 0, limit),
            axis("sensitivity", 0, 1),
            {name: _up_to(points, limit) for name, points in froc.items()},
            colours,
            legend_low=True,
            note=f"Sensitivity is reported at {rates} false positives per volume.",
        ),
        curves(
            "Precision and recall",
            axis("recall", 0, 1),
            axis("precision", 0, 1),
            {name: precision_recall(group) for name, group in groups.items()},
            colours,
            legend_low=True,
            note="Boxes found / (boxes found + false positives), by falling score.",
        ),
        box_plot(
            "Scores of detections", axis("score"), by_kind, [CLASS_COLOURS[0], CLASS_COLOURS[5]]
        ),
    ]


def precision_recall(volumes: Sequence[ScoredVolume]) -> list[tuple[float, float]]:
    """Returns (recall, precision) at the score of each hit, falling; [] without boxes or hits."""
    counts = count(volumes)
    found, boxes = counts.found.sum(axis=0), counts.boxes.sum()
    called = found + counts.false_positives.sum(axis=0)
    # Not before the first detection, where there is nothing to divide by.
    return [
        (float(own / boxes), float(own / each))
        for own, each in zip(found[1:], called[1:], strict=True)
        if boxes and each
    ]


def _froc_points(volumes: Sequence[ScoredVolume]) -> list[tuple[float, float]]:
    false_positives, found = curve(count(volumes))
    return list(zip(false_positives.tolist(), found.tolist(), strict=True))


def _up_to(points: Sequence[tuple[float, float]], limit: float) -> list[tuple[float, float]]:
    """Returns a curve cut at a limit, or going on level to it, as scores are read from it."""
    end = float(np.interp(limit, *zip(*points, strict=True)))
    return [*(point for point in points if point[0] < limit), (limit, end)]


def _groups(
    rows: Sequence[Mapping[str, float]], columns: Mapping[str, str]
) -> dict[str, list[tuple[float, int]]]:
    return {
        name: [(row[key], index) for index, row in enumerate(rows) if not math.isnan(row[key])]
        for name, key in columns.items()
    }
