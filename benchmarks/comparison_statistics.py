"""Means, intervals and verdicts over the results of the paper's comparison."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.comparison_plan import REFERENCE, Plan, rows

# By task, its measures with their names; the first one is that of the goal.
MEASURES = {
    "ct": {"tumour_dice": "tumour Dice", "liver_dice": "liver Dice"},
    "dbt": {
        "challenge_sensitivity": "sensitivity at 1 to 4 FP",
        "low_rate_sensitivity": "sensitivity at 1/4 to 2 FP",
    },
}
CONFIDENCE = 0.95
HIGHER, LOWER, UNCLEAR = "higher", "lower", "no clear difference"


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Returns the confidence interval of the mean by Student's t, n - 1 degrees of freedom.

    None for a single value.
    """
    if len(values) < 2:
        return None
    mean, error = statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return mean - reach, mean + reach


def verdict(limits: tuple[float, float] | None) -> str:
    """Returns what an interval of differences says: clear only if it excludes zero."""
    if limits is None:
        return UNCLEAR
    low, high = limits
    return HIGHER if low > 0 else LOWER if high < 0 else UNCLEAR


def summarise(results: Sequence[Mapping[str, Any]], plan: Plan) -> dict[str, Any]:
    """Returns the scores that the page shows: {task: {variant: {measure: numbers}}}.

    Numbers are `seeds` (a score each), their `mean` and `spread` (standard deviation, None with one
    seed), and `difference` for all but the reference: the transferred AH-Net's score minus this
    one's, paired by seed, with its `mean`, its `interval` and the `verdict` on it.
    """
    scores = {(r["task"], r["variant"], r["seed"]): r["scores"] for r in results}
    summary: dict[str, Any] = {}
    for task in plan.tasks:
        summary[task] = {name: {} for name in rows(plan, task)}
        for name, measure in ((n, m) for n in summary[task] for m in MEASURES[task]):
            own = [scores[task, name, seed][measure] for seed in plan.seeds]
            spread = statistics.stdev(own) if len(own) > 1 else None
            numbers = {"seeds": own, "mean": statistics.mean(own), "spread": spread}
            if REFERENCE in summary[task] and name != REFERENCE:
                best = [scores[task, REFERENCE, seed][measure] for seed in plan.seeds]
                differences = [b - o for b, o in zip(best, own, strict=True)]
                limits = interval(differences)
                numbers["difference"] = {
                    "mean": statistics.mean(differences),
                    "interval": limits,
                    "verdict": verdict(limits),
                }
            summary[task][name][measure] = numbers
    return summary


def summarise_curves(results: Sequence[Mapping[str, Any]], plan: Plan) -> dict[str, Any]:
    """Returns the curves of the trainings, means over seeds: {task: {variant: numbers}}.

    Numbers are `steps` of the whole training, the `shares` of them at which the network was evaluated,
    its `scores` there, and its `gain` over the last quarter of the steps.
    """
    summary: dict[str, Any] = {}
    for task in plan.tasks:
        summary[task] = {}
        for name in rows(plan, task):
            own = [r for r in results if (r["task"], r["variant"]) == (task, name)]
            curves = np.mean([r["curve"] for r in own], axis=0)
            steps = own[0]["steps"]
            shares, scores = curves[:, 0] / steps, curves[:, 1]
            summary[task][name] = {
                "steps": steps,
                "shares": shares.tolist(),
                "scores": scores.tolist(),
                "gain": float(scores[-1] - np.interp(0.75, shares, scores)),
            }
    return summary
