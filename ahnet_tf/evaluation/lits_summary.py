"""The LiTS measures over a data set: means and global ratios of cases, with confidence intervals.

Every measure but one is a ratio of two sums over cases, so drawing cases anew is a product of
matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ahnet_tf.evaluation.bootstrap import bootstrap_intervals
from ahnet_tf.evaluation.lits import (
    DETECTION_IOUS,
    OVERLAP_MEASURES,
    SURFACE_MEASURES,
    TOLERANCE_MEASURES,
    CaseScores,
)

RMSE = "tumour_burden_rmse"


@dataclass(frozen=True)
class _Ratio:
    """A measure as sum(tops) / sum(bottoms) over cases.

    Attributes:
      tops: one a case.
      bottoms: one a case; 0 where the case contributes nothing.
      undefined: values that were NaN and are left out.
      is_mean: whether the bottoms count values.
      if_none: the measure's value where all bottoms are 0.
    """

    tops: Sequence[float]
    bottoms: Sequence[float]
    undefined: int = 0
    is_mean: bool = False
    if_none: float = math.nan


def summarise(
    cases: Iterable[CaseScores], seed: int | None = None
) -> dict[str, dict[str, float | int]]:
    """Returns the scores of a data set, by measure.

    Args:
      cases: their scores.
      seed: of the bootstrap; no intervals if None.

    Returns:
      For each measure {"value", "defined", "undefined", "low", "high"}: a mean (or what the name says)
      over the defined values, how many there were, how many were NaN, and the 95 % interval
      (`scoring.intervals`). NaN without any.

    Lesion measures (lesion_dice, lesion_voe, ...) are means over the lesions detected at IoU > 0.5,
    lesion_..._per_case and the liver measures means over cases. Precision and recall sum
    TP = detected, FP = predicted - detected and FN = reference - detected over all cases and are 0
    without a denominator. The tumour burden's maximal error is the largest of the signed errors
    reference - prediction; a largest value has no bootstrap interval.
    """
    cases = list(cases)
    ratios = _ratios(cases)
    intervals = dict.fromkeys(ratios, (math.nan, math.nan))
    if seed is not None and cases:
        intervals = dict(zip(ratios, _intervals(list(ratios.values()), seed), strict=True))
    summary = {}
    for name, ratio in ratios.items():
        bottom = sum(ratio.bottoms)
        value = sum(ratio.tops) / bottom if bottom else ratio.if_none
        if ratio.is_mean:
            counts = int(bottom), ratio.undefined
        else:
            counts = (0, 1) if math.isnan(value) else (1, 0)
        low, high = intervals[name]
        summary[name] = _entry(value, *counts, float(low), float(high))
    for key in ("value", "low", "high"):
        summary[RMSE][key] = math.sqrt(summary[RMSE][key])
    errors = [case.tumour_burden["error"] for case in cases]
    largest = max((error for error in errors if not math.isnan(error)), default=math.nan)
    summary["tumour_burden_max_error"] = summary[RMSE] | _entry(
        largest, summary[RMSE]["defined"], summary[RMSE]["undefined"], math.nan, math.nan
    )
    return summary


def _entry(
    value: float, defined: int, undefined: int, low: float, high: float
) -> dict[str, float | int]:
    return {
        "value": value,
        "defined": defined,
        "undefined": undefined,
        "low": low,
        "high": high,
    }


def _intervals(ratios: Sequence[_Ratio], seed: int) -> np.ndarray:
    tops = np.array([ratio.tops for ratio in ratios], np.float64).T
    bottoms = np.array([ratio.bottoms for ratio in ratios], np.float64).T

    def measures(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights @ tops) / (weights @ bottoms)

    return bootstrap_intervals(measures, (bottoms > 0).sum(axis=0), len(tops), seed)


def _ratios(cases: Sequence[CaseScores]) -> dict[str, _Ratio]:
    """Returns every measure but the largest error, in the order of tables."""
    predicted = [case.predicted_lesions for case in cases]
    reference = [case.reference_lesions for case in cases]
    ratios = {
        "lesion_dice_per_case": _mean([[case.lesion_dice] for case in cases]),
        "lesion_dice_global": _dice_global(cases, "lesion"),
    }
    for name in TOLERANCE_MEASURES:
        values = [[case.lesion_surface[name]] for case in cases]
        ratios[f"lesion_{name}_per_case"] = _mean(values)
    for iou in DETECTION_IOUS:
        detected = [case.detected_lesions[iou] for case in cases]
        ratios |= {
            f"lesion_precision_iou_over_{iou:g}": _Ratio(detected, predicted, if_none=0.0),
            f"lesion_recall_iou_over_{iou:g}": _Ratio(detected, reference, if_none=0.0),
        }
    measures = OVERLAP_MEASURES + SURFACE_MEASURES + TOLERANCE_MEASURES
    for name in measures:
        values = [[lesion[name] for lesion in case.lesions] for case in cases]
        ratios[f"lesion_{name}"] = _mean(values)
    ratios["liver_dice_per_case"] = _mean([[case.liver["dice"]] for case in cases])
    ratios["liver_dice_global"] = _dice_global(cases, "liver")
    for name in measures[1:]:
        ratios[f"liver_{name}"] = _mean([[case.liver[name]] for case in cases])
    ratios[RMSE] = _mean([[case.tumour_burden["error"] ** 2] for case in cases])
    return ratios


def _mean(values: Sequence[Sequence[float]]) -> _Ratio:
    """Returns the mean of all values of all cases that are not NaN."""
    defined = [[value for value in own if not math.isnan(value)] for own in values]
    counts = [len(own) for own in defined]
    undefined = sum(map(len, values)) - sum(counts)
    return _Ratio([math.fsum(own) for own in defined], counts, undefined, is_mean=True)


def _dice_global(cases: Sequence[CaseScores], organ: str) -> _Ratio:
    return _Ratio(
        [2 * case.voxels[f"{organ}_intersection"] for case in cases],
        [case.voxels[f"{organ}_predicted"] + case.voxels[f"{organ}_reference"] for case in cases],
    )
