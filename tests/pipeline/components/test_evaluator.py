"""Dice from confusion counts, against numbers worked out by hand."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tensorflow_model_analysis import metrics as tfma_metrics

from pipeline.components.evaluator import (
    CONFUSION,
    CombineCases,
    confusion,
    dice,
    make_eval_config,
    region_counts,
    regions,
    summarize,
)
from preprocessing.records.schema import CASE_ID
from preprocessing.tasks import PRESETS

LIVER_AND_TUMOUR = {"liver": [1, 2], "tumour": [2]}

# Rows: reference 0, 1, 2; columns: predicted 0, 1, 2.
CONFUSION_BY_HAND = np.array([[50, 3, 1], [4, 20, 2], [0, 5, 15]])


def test_the_liver_is_the_union_with_its_tumours_and_a_lesion_stands_alone():
    assert regions(PRESETS["ct_liver"]) == LIVER_AND_TUMOUR
    assert regions(PRESETS["dbt_lesion"]) == {"lesion": [1]}


def test_counts_of_a_union_by_hand():
    # Liver: both 20 + 2 + 5 + 15, predicted 3 + 1 + 42, reference 4 + 42.
    assert region_counts(CONFUSION_BY_HAND, [1, 2]) == (42, 46, 46)
    assert region_counts(CONFUSION_BY_HAND, [2]) == (15, 18, 20)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((0, 0, 0), 1.0), ((0, 5, 0), 0.0), ((0, 0, 5), 0.0), ((3, 4, 5), 6 / 9)],
)
def test_dice_of_full_and_empty_masks(counts, expected):
    assert dice(*counts) == pytest.approx(expected)


def test_mean_and_global_dice_and_cases_without_the_class():
    healthy = np.array([[90, 0, 0], [0, 10, 0], [0, 0, 0]])
    scores = summarize([CONFUSION_BY_HAND, healthy], LIVER_AND_TUMOUR)
    assert scores == pytest.approx(
        {
            "cases": 2,
            "dice_liver": (84 / 92 + 1) / 2,
            "dice_global_liver": 2 * 52 / (56 + 56),
            "cases_without_liver": 0,
            "dice_tumour": (30 / 38 + 1) / 2,
            "dice_global_tumour": 30 / 38,
            "cases_without_tumour": 1,
        }
    )


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(
        arrays(np.int64, (3, 3), elements=st.integers(0, 1000)), min_size=1, max_size=9
    ),
    cut=st.integers(0, 9),
    data=st.data(),
)
def test_neither_the_order_of_patches_nor_their_bundles_matter(counts, cut, data):
    patches = [
        tfma_metrics.StandardMetricInputs(
            features={CASE_ID: np.array([f"case-{number % 3}".encode()])},
            predictions={CONFUSION: matrix[None]},
        )
        for number, matrix in enumerate(counts)
    ]
    keys = {name: tfma_metrics.MetricKey(name) for name in summarize(counts, LIVER_AND_TUMOUR)}
    score = functools.partial(summarize, region_labels=LIVER_AND_TUMOUR)
    combine = CombineCases(confusion, score, keys)

    def added(some):
        accumulator = combine.create_accumulator()
        for patch in some:
            accumulator = combine.add_input(accumulator, patch)
        return accumulator

    shuffled = data.draw(st.permutations(patches))
    bundles = [added(shuffled[:cut]), added(shuffled[cut:])]
    in_bundles = combine.extract_output(combine.merge_accumulators(bundles))
    cases = [sum(counts[first::3]) for first in range(min(3, len(counts)))]
    for name, value in summarize(cases, LIVER_AND_TUMOUR).items():
        assert math.isclose(in_bundles[keys[name]], value, rel_tol=1e-12)


def test_sums_grow_in_place_and_leave_what_they_are_made_of():
    """Copying a case's list for each of its patches takes quadratic time."""
    combine = CombineCases(lambda features, outputs: [features["n"].item()], None, {})

    def patch(number, case_id=b"a"):
        features = {CASE_ID: np.array([case_id]), "n": np.array([number])}
        return tfma_metrics.StandardMetricInputs(features=features, predictions={})

    first = combine.add_input(combine.create_accumulator(), patch(0))
    parts = first[b"a"]
    for number in range(1, 4):
        first = combine.add_input(first, patch(number))
    assert first[b"a"] is parts
    second = combine.add_input({}, patch(4))
    third = combine.add_input({}, patch(5))
    assert combine.merge_accumulators([second, first, third]) == {b"a": [4, 0, 1, 2, 3, 5]}
    assert (second, third) == ({b"a": [4]}, {b"a": [5]})
    # The counts of a batch of answers belong to TFMA.
    answers = {CONFUSION: np.ones((1, 2, 2), np.int64)}
    counts = CombineCases(confusion, None, {})
    cases: dict = {}
    for _ in range(3):
        inputs = tfma_metrics.StandardMetricInputs(
            features={CASE_ID: np.array([b"a"])}, predictions=answers
        )
        cases = counts.add_input(cases, inputs)
    assert cases[b"a"].tolist() == [[3, 3], [3, 3]]
    assert answers[CONFUSION].tolist() == [[[1, 1], [1, 1]]]


def test_thresholds_hold_for_all_cases_together_only():
    config = make_eval_config(PRESETS["ct_liver"], {"liver": 0.8}, largest_loss=0.01)
    (threshold,) = config.metrics_specs[0].per_slice_thresholds["dice_liver"].thresholds
    assert [list(spec.feature_keys) for spec in threshold.slicing_specs] == [[]]
    assert threshold.threshold.value_threshold.lower_bound.value == 0.8
    assert threshold.threshold.change_threshold.absolute.value == -0.01
