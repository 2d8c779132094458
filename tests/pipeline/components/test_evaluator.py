"""Dice from confusion counts, against numbers worked out by hand."""

from __future__ import annotations

import functools
import math
import shutil

import keras
import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tensorflow_model_analysis import metrics as tfma_metrics
from tfx.components.evaluator.executor import Executor
from tfx.types import standard_artifacts

from ahnet_tf.inference.predictor import ExportSettings
from pipeline.components.evaluator import (
    CONFUSION,
    CombineCases,
    confusion,
    dice,
    make_eval_config,
    read_refusals,
    read_scores,
    region_counts,
    regions,
    summarize,
)
from pipeline.configs import BEAM_ARGUMENTS
from preprocessing.records.schema import CASE_ID
from preprocessing.tasks import PRESETS
from serving.export.exporter import export_model

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


def tissue_network(liver, tumour):
    """Returns a network whose logits are (0, a + b HU, c + d HU) at each voxel."""
    image = keras.Input((None, None, None, 1))
    network = keras.Model(image, keras.layers.Conv3D(3, 1)(image))
    kernel = np.array([0, liver[1], tumour[1]], np.float32).reshape(1, 1, 1, 1, 3)
    network.set_weights([kernel, np.array([0, liver[0], tumour[0]], np.float32)])
    return network


# On records with air at -100 HU, liver at 110 and tumour at 40: the first model is right everywhere, the
# second one takes all for liver.
MODELS = {"right": ((-2.25, 0.1), (1.5, 0.05)), "all liver": ((9.0, 0.0), (0.0, 0.0))}


@pytest.fixture
def evaluate(task, model_config, records, tmp_path):
    """Runs TFX's Evaluator on one of `MODELS`, perhaps against another; returns what the gate reads."""

    def artifact(kind, folder):
        made = kind()
        made.uri = str(tmp_path / folder)
        return made

    def run(candidate, baseline=None, *, threshold=0.0):
        examples = artifact(standard_artifacts.Examples, "examples")
        examples.split_names = '["train", "eval"]'
        shutil.copytree(records / "eval", tmp_path / "examples" / "Split-eval")
        inputs = {"examples": [examples], "model": [], "baseline_model": []}
        for key, name in (("model", candidate), ("baseline_model", baseline)):
            if name:
                inputs[key] = [artifact(standard_artifacts.Model, key)]
                settings = ExportSettings(task, model_config, task.patch_shape_zyx)
                folder = tmp_path / key / "Format-Serving"
                export_model(tissue_network(*MODELS[name]), settings, folder)
        outputs = {
            "evaluation": [artifact(standard_artifacts.ModelEvaluation, "evaluation")],
            "blessing": [artifact(standard_artifacts.ModelBlessing, "blessing")],
        }
        config = make_eval_config(task, {"liver": threshold}, largest_loss=0.01)
        context = Executor.Context(beam_pipeline_args=list(BEAM_ARGUMENTS), unique_id="1")
        properties = {
            "eval_config": json_format.MessageToJson(config),
            "example_splits": '["eval"]',
            "fairness_indicator_thresholds": "null",
        }
        Executor(context).Do(inputs, outputs, properties)
        blessed = outputs["blessing"][0].get_int_custom_property("blessed") == 1
        evaluation = outputs["evaluation"][0].uri
        return blessed, read_refusals(evaluation), read_scores(evaluation)["overall"]

    return run


@pytest.mark.slow
def test_a_model_worse_than_the_last_blessed_one_is_refused(evaluate):
    blessed, refusals, scores = evaluate("all liver", "right")
    # 1024 of 8192 voxels are liver or tumour.
    assert scores["dice_liver"] == pytest.approx(2 * 1024 / (8192 + 1024))
    assert not blessed
    (refusal,) = refusals
    assert refusal == "dice_liver is 0.7778 below the last blessed model's (allowed: 0.01)"


@pytest.mark.slow
def test_a_better_model_than_the_last_blessed_one_is_blessed(evaluate):
    blessed, refusals, scores = evaluate("right", "all liver", threshold=0.9)
    assert (scores["dice_liver"], scores["dice_tumour"]) == (1, 1)
    assert (blessed, refusals) == (True, [])


@pytest.mark.slow
def test_a_first_model_is_judged_by_the_threshold_alone(evaluate):
    blessed, refusals, _ = evaluate("all liver", threshold=0.3)
    assert (blessed, refusals) == (False, ["dice_liver 0.2222 is below the threshold 0.3"])
