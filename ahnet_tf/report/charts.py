"""Charts of scores: overlap, distances, tumour burden, lesion detection, FROC."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ahnet_tf.evaluation.froc import RATES, ScoredVolume, count, curve
from ahnet_tf.evaluation.lits import LIVER, TUMOUR, CaseScores
from preprocessing.page.contents import CLASS_COLOURS as COLOURS
from preprocessing.page.contents import Axis, BoxPlot, Chart, Curves, Scatter, class_colour

# Columns of `scores.csv` by the name of their box.
OVERLAPS = {
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
# IoU thresholds of detection.
_IOUS = np.arange(0, 100) / 100
# The FROC chart ends where its curves end, within this range of false positives per volume.
_LEAST_RATE, _MOST_RATE = 5.0, 10.0


def label_charts(
    rows: Sequence[Mapping[str, float]], scores: Collection[CaseScores]
) -> list[Chart]:
    """Returns the charts of an organ and its lesions; `rows` are the lines of `scores.csv`, in order."""
    if not rows:
        return []
    liver, tumour = class_colour(LIVER), class_colour(TUMOUR)
    burden = _points(rows, "tumour_burden_reference", "tumour_burden_predicted")
    lesions = _points(rows, "reference_lesions", "detected_iou_over_0")
    colours = [liver, liver, tumour]
    reference, predicted = Axis("reference"), Axis("predicted")
    note = "Tumour voxels / liver voxels. On the dashed line both agree."
    found = Axis("found at IoU > 0")
    return [
        BoxPlot("Overlap", Axis("Dice", (0, 1)), _groups(rows, OVERLAPS), [liver, tumour] * 2),
        BoxPlot("Distances", Axis("mm"), _groups(rows, DISTANCES), colours, digits=2),
        Scatter("Tumour burden", reference, predicted, burden, tumour, note=note),
        Scatter("Tumours per case", reference, found, lesions, tumour, digits=0),
        BoxPlot("Volume", Axis("relative volume difference"), _groups(rows, VOLUMES), [liver]),
        Curves(
            "Tumours found",
            Axis("IoU that a tumour must exceed to count as found", (0, 1)),
            Axis("share", (0, 1)),
            found_by_iou(scores),
            ["#0072B2", "#D55E00"],
            note="Precision = found / predicted, recall = found / reference, over all cases.",
        ),
    ]


def class_charts(rows: Sequence[Mapping[str, float]], class_names: Sequence[str]) -> list[Chart]:
    """Returns the charts of label maps that are scored by class; background is the first class."""
    if not rows:
        return []
    colours = [class_colour(value) for value in range(1, len(class_names))]
    dice, distances = (
        _groups(rows, {name: f"{name}_{key}" for name in class_names[1:]})
        for key in ("dice", "hd95_mm")
    )
    return [
        BoxPlot("Overlap", Axis("Dice", (0, 1)), dice, colours),
        BoxPlot("Distances", Axis("HD95, mm"), distances, colours, digits=2),
    ]


def found_by_iou(scores: Collection[CaseScores]) -> dict[str, list[tuple[float, float]]]:
    """Returns lesion precision and recall, 0 without a denominator, by the IoU to exceed."""
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


def detection_charts(volumes: Sequence[ScoredVolume]) -> list[Chart]:
    """Returns the charts of detected lesions; `volumes` in the order of the page's cases."""
    with_boxes = [volume for volume in volumes if volume.boxes]
    if not with_boxes:
        return []
    groups = {"volumes with boxes": with_boxes, "all volumes": list(volumes)}
    colours = [COLOURS[6], COLOURS[5]]
    froc = {name: curve(count(group)) for name, group in groups.items()}
    ends = [float(false_positives[-1]) for false_positives, _ in froc.values()]
    limit = min(max(_LEAST_RATE, *ends), _MOST_RATE)
    by_kind: dict[str, list[tuple[float, int]]] = {"on a box": [], "false positives": []}
    for index, volume in enumerate(volumes):
        for score, hit in zip(volume.scores, volume.hits, strict=True):
            by_kind["on a box" if hit >= 0 else "false positives"].append((float(score), index))
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    return [
        Curves(
            "FROC",
            Axis("false positives per volume", (0, limit)),
            Axis("sensitivity", (0, 1)),
            {name: _up_to(limit, *points) for name, points in froc.items()},
            colours,
            legend_low=True,
            note=f"Sensitivity is reported at {rates} false positives per volume.",
        ),
        Curves(
            "Precision and recall",
            Axis("recall", (0, 1)),
            Axis("precision", (0, 1)),
            {name: precision_recall(group) for name, group in groups.items()},
            colours,
            legend_low=True,
            note="Boxes found / (boxes found + false positives), by falling score.",
        ),
        BoxPlot("Scores of detections", Axis("score"), by_kind, [COLOURS[0], COLOURS[5]]),
    ]


def precision_recall(volumes: Sequence[ScoredVolume]) -> list[tuple[float, float]]:
    """Returns (recall, precision) at the score of each hit, falling; [] without boxes or hits."""
    counts = count(volumes)
    found, boxes = counts.found.sum(axis=0), counts.boxes.sum()
    called = found + counts.false_positives.sum(axis=0)
    return [
        (float(own / boxes), float(own / each))
        for own, each in zip(found, called, strict=True)
        if boxes and each
    ]


def _up_to(
    limit: float, false_positives: np.ndarray, sensitivity: np.ndarray
) -> list[tuple[float, float]]:
    """Returns a FROC curve cut at a limit, or extended to it with its last sensitivity."""
    inside = false_positives < limit
    points = list(zip(false_positives[inside].tolist(), sensitivity[inside].tolist(), strict=True))
    return [*points, (limit, float(np.interp(limit, false_positives, sensitivity)))]


def _groups(
    rows: Sequence[Mapping[str, float]], columns: Mapping[str, str]
) -> dict[str, list[tuple[float, int]]]:
    return {
        name: [(row[key], index) for index, row in enumerate(rows) if not math.isnan(row[key])]
        for name, key in columns.items()
    }


def _points(rows: Sequence[Mapping[str, float]], x: str, y: str) -> list[tuple[float, float, int]]:
    points = [(row[x], row[y], index) for index, row in enumerate(rows)]
    return [point for point in points if not math.isnan(point[0] + point[1])]
