"""Scores of a data set with 95 % confidence intervals by bootstrap over cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ahnet_tf.evaluation.froc import ScoredVolume, count, froc_scores, score_names
from ahnet_tf.evaluation.lits import (
    DETECTION_IOUS,
    MEASURES,
    TOLERANCE_MEASURES,
    CaseScores,
    ClassScores,
)
from preprocessing.datasets.bcs_dbt import VolumeKey
from preprocessing.datasets.label_names import is_organ_with_lesions
from preprocessing.settings import check_seed
from preprocessing.tasks import Task

RESAMPLES = 9999
# Percentiles of the resamples that bound an interval of 95 %.
INTERVAL = (2.5, 97.5)
RMSE = "tumour_burden_rmse"
# Resamples that are scored at a time, which bounds memory.
_BATCH = 500
# Columns of the printed table: heading, column of `scores.csv`, format.
Columns = tuple[tuple[str, str, str], ...]
_TABLE: Columns = (
    ("liver Dice", "liver_dice", ".4f"),
    ("surface Dice", "liver_surface_dice", ".4f"),
    ("HD95 mm", "liver_hd95_mm", ".2f"),
    ("ASSD mm", "liver_assd_mm", ".2f"),
    ("tumour Dice", "lesion_dice_per_case", ".4f"),
    ("lesions", "reference_lesions", "d"),
    ("predicted", "predicted_lesions", "d"),
    ("IoU>0.5", "detected_iou_over_0.5", "d"),
    ("IoU>0", "detected_iou_over_0", "d"),
    ("burden error", "tumour_burden_error", "+.4f"),
)
# Those of each class, with its name before them.
_CLASS_TABLE: Columns = (
    *(("Dice", "dice", ".4f"), ("surface Dice", "surface_dice", ".4f")),
    *(("HD95 mm", "hd95_mm", ".2f"), ("ASSD mm", "assd_mm", ".2f")),
    *(("VOE", "voe", ".4f"), ("RVD", "rvd", "+.4f")),
)


@dataclass(frozen=True)
class _Ratio:
    """A measure of the form sum(tops) / sum(bottoms) over cases; `if_none` if all bottoms are 0.

    In a mean, the bottoms count values, and `undefined` counts the NaN values left out.
    """

    tops: Sequence[float]
    bottoms: Sequence[float]
    undefined: int | None = None
    if_none: float = math.nan


def table_columns(task: Task) -> Columns:
    """Returns heading, column of `scores.csv` and format of each column of a table of cases."""
    organ, *others = task.class_names[1:]
    if is_organ_with_lesions(task):
        return tuple(
            (heading.replace("liver", organ).replace("tumour", others[0]), key, layout)
            for heading, key, layout in _TABLE
        )
    return tuple(
        (f"{name} {heading}", f"{name}_{key}", layout)
        for name in task.class_names[1:]
        for heading, key, layout in _CLASS_TABLE
    )


def dice_columns(task: Task) -> dict[str, str]:
    """Returns the columns of `scores.csv` with the Dice of each class by their headings."""
    if is_organ_with_lesions(task):
        keys = ["liver_dice", "lesion_dice_per_case"]
    else:
        keys = [f"{name}_dice" for name in task.class_names[1:]]
    return {heading: key for heading, key, _ in table_columns(task) if key in keys}


def bootstrap_intervals(
    statistic: Callable[[np.ndarray], np.ndarray], contributing: np.ndarray, cases: int, seed: int
) -> np.ndarray:
    """Returns the percentiles 2.5 and 97.5 of each measure, float64 [measure, 2].

    Whole cases are drawn with replacement, the same ones for all measures. Resamples in which a
    measure is undefined are left out for that measure. NaN if fewer than two cases contribute.

    The statistic takes how often each case was drawn, float64 [resample, case], and returns the measures
    [resample, measure]; `contributing` is the number of cases that each depends on [measure].
    """
    intervals = np.full((len(contributing), 2), np.nan)
    chosen = np.asarray(contributing) >= 2
    if cases < 2 or not chosen.any():
        return intervals
    random = np.random.default_rng(check_seed(seed, "seed"))
    measures = []
    for start in range(0, RESAMPLES, _BATCH):
        drawn = random.integers(0, cases, (min(_BATCH, RESAMPLES - start), cases))
        weights = np.array([np.bincount(row, minlength=cases) for row in drawn], np.float64)
        measures.append(statistic(weights)[:, chosen])
    intervals[chosen] = np.nanpercentile(np.concatenate(measures), INTERVAL, axis=0).T
    return intervals


def summarise(
    cases: Iterable[CaseScores | ClassScores], seed: int | None = None
) -> dict[str, dict[str, float | int]]:
    """Returns the scores of a data set: {"value", "defined", "undefined", "low", "high"} by measure.

    These are its value over the defined values, their number, the number of NaN values, and the 95 %
    interval (NaN without a seed). Lesion measures (lesion_dice, lesion_voe, ...) are means over the
    lesions detected at IoU > 0.5, lesion_..._per_case and the liver measures means over cases.
    Precision and recall sum TP = detected, FP = predicted - detected and FN = reference - detected
    over all cases and are 0 without a denominator. The tumour burden's maximal error is the largest
    of the signed errors reference - prediction; it has no interval. Scores by class are means over
    cases, and Dice also global.
    """
    cases = list(cases)
    by_class = [case for case in cases if isinstance(case, ClassScores)]
    by_lesion = [case for case in cases if isinstance(case, CaseScores)]
    ratios = _class_ratios(by_class) if by_class else _ratios(by_lesion)
    tops, bottoms = (
        np.array([getattr(ratio, part) for ratio in ratios.values()], np.float64).T
        for part in ("tops", "bottoms")
    )

    def measures(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights @ tops) / (weights @ bottoms)

    intervals = np.full((len(ratios), 2), math.nan)
    if seed is not None:
        contributing = (bottoms > 0).sum(axis=0)
        intervals = bootstrap_intervals(measures, contributing, len(cases), seed)
    summary: dict[str, dict[str, float | int]] = {}
    for (name, ratio), (low, high) in zip(ratios.items(), intervals.tolist(), strict=True):
        bottom = sum(ratio.bottoms)
        value = sum(ratio.tops) / bottom if bottom else ratio.if_none
        defined, undefined = int(bottom), ratio.undefined
        if undefined is None:
            undefined = int(math.isnan(value))
            defined = 1 - undefined
        summary[name] = {"value": value, "defined": defined, "undefined": undefined}
        summary[name] |= {"low": low, "high": high}
    if by_class:
        return summary
    for key in ("value", "low", "high"):
        summary[RMSE][key] = math.sqrt(summary[RMSE][key])
    errors = [case.tumour_burden["error"] for case in by_lesion]
    largest = max((error for error in errors if not math.isnan(error)), default=math.nan)
    no_interval = {"value": largest, "low": math.nan, "high": math.nan}
    summary["tumour_burden_max_error"] = summary[RMSE] | no_interval
    return summary


def case_row(scores: CaseScores | ClassScores) -> dict[str, float | int]:
    """Returns a case's scores as one flat row, the line of `scores.csv`."""
    voxels = {f"voxels_{name}": count for name, count in scores.voxels.items()}
    if isinstance(scores, ClassScores):
        own = scores.classes.items()
        return {f"{name}_{key}": each[key] for name, each in own for key in MEASURES} | voxels
    summary = summarise([scores])
    names = [name for name in summary if name.startswith(("lesion_", "liver_"))]
    row = {name: summary[name]["value"] for name in names if not name.endswith("_global")}
    row["liver_dice"] = row.pop("liver_dice_per_case")
    row["reference_lesions"] = scores.reference_lesions
    row["predicted_lesions"] = scores.predicted_lesions
    row |= {f"detected_iou_over_{iou:g}": n for iou, n in scores.detected_lesions.items()}
    row |= {f"tumour_burden_{kind}": value for kind, value in scores.tumour_burden.items()}
    return row | voxels


def summarise_detections(
    volumes: Mapping[VolumeKey, ScoredVolume], seed: int
) -> dict[str, dict[str, float]]:
    """Returns the FROC scores as {"value", "low", "high"}, with intervals by bootstrap over patients.

    The volumes of one patient are views of the same breasts, so they are drawn together.
    """
    counts = count(list(volumes.values()))
    patients, patient_of_volume = np.unique([key[0] for key in volumes], return_inverse=True)
    with_boxes = len(np.unique(patient_of_volume[counts.boxes > 0]))
    names = score_names()
    intervals = bootstrap_intervals(
        lambda weights: froc_scores(counts, weights[:, patient_of_volume]),
        np.full(len(names), with_boxes),
        len(patients),
        seed,
    )
    return {
        name: {"value": float(value), "low": float(low), "high": float(high)}
        for name, value, (low, high) in zip(names, froc_scores(counts)[0], intervals, strict=True)
    }


def _ratios(cases: Sequence[CaseScores]) -> dict[str, _Ratio]:
    """Returns every measure but the largest error, in the order of tables."""
    predicted = [case.predicted_lesions for case in cases]
    reference = [case.reference_lesions for case in cases]
    ratios = {
        "lesion_dice_per_case": _mean([[case.lesion_dice] for case in cases]),
        "lesion_dice_global": _dice_global(cases, "lesion"),
    }
    for name in TOLERANCE_MEASURES:
        ratios[f"lesion_{name}_per_case"] = _mean([[case.lesion_surface[name]] for case in cases])
    for iou in DETECTION_IOUS:
        detected = [case.detected_lesions[iou] for case in cases]
        over = f"iou_over_{iou:g}"
        ratios[f"lesion_precision_{over}"] = _Ratio(detected, predicted, if_none=0.0)
        ratios[f"lesion_recall_{over}"] = _Ratio(detected, reference, if_none=0.0)
    for name in MEASURES:
        values = [[lesion[name] for lesion in case.lesions] for case in cases]
        ratios[f"lesion_{name}"] = _mean(values)
    ratios |= _mask_ratios("liver", [case.liver for case in cases], cases)
    ratios[RMSE] = _mean([[case.tumour_burden["error"] ** 2] for case in cases])
    return ratios


def _class_ratios(cases: Sequence[ClassScores]) -> dict[str, _Ratio]:
    ratios: dict[str, _Ratio] = {}
    for name in cases[0].classes:
        ratios |= _mask_ratios(name, [case.classes[name] for case in cases], cases)
    return ratios


def _mask_ratios(
    name: str, measures: Sequence[Mapping[str, float]], cases: Sequence[CaseScores | ClassScores]
) -> dict[str, _Ratio]:
    """Returns the means over cases of the measures of one mask, and its global Dice."""
    ratios = {
        f"{name}_dice_per_case": _mean([[each["dice"]] for each in measures]),
        f"{name}_dice_global": _dice_global(cases, name),
    }
    for key in MEASURES[1:]:
        ratios[f"{name}_{key}"] = _mean([[each[key]] for each in measures])
    return ratios


def _mean(values: Sequence[Sequence[float]]) -> _Ratio:
    """Returns the mean of all values of all cases that are not NaN."""
    defined = [[value for value in own if not math.isnan(value)] for own in values]
    counts = list(map(len, defined))
    return _Ratio(list(map(math.fsum, defined)), counts, sum(map(len, values)) - sum(counts))


def _dice_global(cases: Sequence[CaseScores | ClassScores], organ: str) -> _Ratio:
    return _Ratio(
        [2 * case.voxels[f"{organ}_intersection"] for case in cases],
        [case.voxels[f"{organ}_predicted"] + case.voxels[f"{organ}_reference"] for case in cases],
    )
