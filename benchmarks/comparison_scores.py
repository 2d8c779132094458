"""Scores of a network of the paper's comparison on the unseen cases."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import attrs
import numpy as np

from ahnet_tf.evaluation.froc import count, curve, froc_scores, in_pixels, match_volume, score_names
from ahnet_tf.evaluation.lits import LIVER, TUMOUR, dice
from benchmarks.comparison_plan import CT_PHANTOM, DBT_PHANTOM, TASKS, Plan
from benchmarks.comparison_records import DATA_SEED, case_numbers
from preprocessing.phantom import ct as phantom_ct
from preprocessing.phantom import dbt as phantom_dbt
from preprocessing.volumes.geometry import spacing_mm

LOW_RATES = (0.25, 0.5, 1.0, 2.0)


def score_network(folder: Path, plan: Plan, task_name: str) -> dict[str, float]:
    """Returns the mean scores of a network over the unseen cases, predicted as whole volumes."""
    from ahnet_tf.inference.predictor import open_predictor

    predictor = open_predictor(folder)
    # The 2D networks get whole patches too, so that every slice has its neighbours.
    window = TASKS[task_name].patch_shape_zyx
    settings = attrs.evolve(predictor.settings, window_shape_zyx=window)
    predictor = dataclasses.replace(predictor, settings=settings)
    numbers = case_numbers("unseen", plan)
    return {"ct": _ct_scores, "dbt": _dbt_scores}[task_name](predictor, numbers)


def _ct_scores(predictor, numbers) -> dict[str, float]:
    from ahnet_tf.inference.segment import segment_volume

    liver, tumour = [], []
    for number in numbers:
        image, label = phantom_ct.make_case(DATA_SEED, number, CT_PHANTOM)
        predicted = segment_volume(image, predictor).labels
        liver.append(dice(predicted >= LIVER, label.voxels >= LIVER))
        tumour.append(dice(predicted == TUMOUR, label.voxels == TUMOUR))
    return {"liver_dice": float(np.mean(liver)), "tumour_dice": float(np.mean(tumour))}


def _dbt_scores(predictor, numbers) -> dict[str, float]:
    from ahnet_tf.inference.segment import segment_volume

    volumes = []
    for number in numbers:
        case = phantom_dbt.make_case(DATA_SEED, number, DBT_PHANTOM)
        found = segment_volume(case.image, predictor).lesions
        step_mm = spacing_mm(case.image.affine)
        volumes.append(match_volume(in_pixels(found, step_mm), in_pixels(case.boxes, step_mm)))
    counts = count(volumes)
    challenge = dict(zip(score_names(), froc_scores(counts)[0].tolist(), strict=True))
    low = np.interp(LOW_RATES, *curve(counts)).tolist()
    return {
        "low_rate_sensitivity": float(np.mean(low)),
        "challenge_sensitivity": challenge["sensitivity_mean_volumes_with_boxes"],
        **{f"sensitivity_at_{rate:g}": value for rate, value in zip(LOW_RATES, low, strict=True)},
    }
