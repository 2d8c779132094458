"""TFMA's configuration and results, and exact Dice per case from the patches that tile each case.

The confusion counts of a patch are an output of the model's signature `serialized_examples`.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma

from pipeline.configs import score_name
from preprocessing.datasets.label_names import is_organ_with_lesions
from preprocessing.records.schema import CASE_ID, SOURCE, SPACING_CLASS
from preprocessing.tasks import Task

SIGNATURE = "serialized_examples"
CONFUSION = "confusion"

# Patches per inference batch; TFMA reads far more ahead.
INFERENCE_BATCH_SIZE = 4

# Sums of the patches' contributions by case id.
Cases = dict[bytes, Any]
Contribution = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], Any]
Score = Callable[[Sequence[Any]], dict[str, float]]


def regions(task: Task) -> dict[str, list[int]]:
    """Returns the label values of each scored region by its name."""
    own = {name: [value] for value, name in enumerate(task.class_names) if value}
    if is_organ_with_lesions(task):
        # As in LiTS, where the liver mask is label >= 1.
        own[task.class_names[1]].append(2)
    return own


def dice(intersection: float, predicted: float, reference: float) -> float:
    """Returns 2 |P and R| / (|P| + |R|), or 1 if both are empty, as the scorer of LiTS does."""
    total = predicted + reference
    return 2.0 * intersection / total if total else 1.0


def region_counts(confusion: np.ndarray, labels: Sequence[int]) -> tuple[int, int, int]:
    """Returns intersection, predicted and reference voxels of the union of some label values.

    `confusion` holds the voxel counts [reference class, predicted class].
    """
    inside = np.isin(np.arange(len(confusion)), labels)
    parts = (confusion[np.ix_(inside, inside)], confusion[:, inside], confusion[inside])
    intersection, predicted, reference = (int(part.sum()) for part in parts)
    return intersection, predicted, reference


def summarize(
    confusions: Sequence[np.ndarray], region_labels: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Returns the scores over cases from each case's confusion counts.

    The scores are `cases`, and for each region R: `dice_R`, the mean over cases; `dice_global_R`,
    from the sums over all cases; `cases_without_R`, the number of cases whose reference has no such
    voxel (their Dice is 1 if nothing is predicted, else 0).
    """
    scores = {"cases": float(len(confusions))}
    for name, labels in region_labels.items():
        counts = np.array([region_counts(case, labels) for case in confusions])
        scores[f"dice_{name}"] = math.fsum(dice(*case) for case in counts) / len(confusions)
        scores[f"dice_global_{name}"] = dice(*counts.sum(axis=0))
        scores[f"cases_without_{name}"] = float(np.sum(counts[:, 2] == 0))
    return scores


@dataclass(eq=False)
class CombineCases(beam.CombineFn):
    """Adds up the contributions of each case's patches, then scores the cases of a slice."""

    # Of a patch, from its features and the model's outputs by name; a new object, added by `+=`.
    contribution: Contribution
    score: Score  # returns scores by name from the sums of all cases
    keys: Mapping[str, tfma.metrics.MetricKey]  # TFMA's keys by score name
    model_name: str = ""  # the model whose outputs are used

    def create_accumulator(self) -> Cases:
        return {}

    def add_input(self, cases: Cases, patch: tfma.metrics.StandardMetricInputs) -> Cases:
        case_id = bytes(np.asarray(patch.features[CASE_ID]).item())
        outputs = patch.get_predictions(self.model_name)
        _add(cases, case_id, self.contribution(patch.features, outputs))
        return cases

    def merge_accumulators(self, accumulators: Iterable[Cases]) -> Cases:
        merged: Cases = {}
        for case_id, value in chain.from_iterable(cases.items() for cases in accumulators):
            # Beam keeps the accumulators: a sum must not change what it is made of.
            _add(merged, case_id, value if case_id in merged else copy.copy(value))
        return merged

    def extract_output(self, cases: Cases) -> dict[tfma.metrics.MetricKey, float]:
        scores = self.score([cases[case_id] for case_id in sorted(cases)])
        return {self.keys[name]: value for name, value in scores.items()}


def case_computations(
    contribution: Contribution,
    score: Score,
    features: Iterable[str],
    names: Iterable[str],
    model_names: Sequence[str] | None,
) -> tfma.metrics.MetricComputations:
    """Returns TFMA's computations by `CombineCases` of named scores for each model.

    `contribution` needs the given features of a patch beside its case id.
    """
    preprocessors = [tfma.metrics.FeaturePreprocessor([CASE_ID, *features])]
    computations = []
    for model in model_names or [""]:
        # Thresholds by name are looked up under keys without an example weight.
        key = functools.partial(tfma.metrics.MetricKey, model_name=model, example_weighted=None)
        keys = {name: key(name) for name in names}
        combiner = CombineCases(contribution, score, keys, model)
        made = tfma.metrics.MetricComputation([*keys.values()], preprocessors, combiner)
        computations.append(made)
    return computations


class DicePerCase(tfma.metrics.Metric):
    """Dice of each region over the cases of a slice (see `summarize` for the names).

    TFMA requires `name`; the scores have names of their own. `code_version` makes TFX evaluate again
    if the code has changed: the metrics are all that it compares of the Evaluator's code.
    """

    def __init__(
        self,
        region_labels: dict[str, list[int]],
        code_version: str = "",
        name: str = "dice_per_case",
    ):
        super().__init__(_dice_computations, region_labels=region_labels, name=name)


def confusion(features: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the confusion counts of one patch, int64 [reference class, predicted class]."""
    counts = np.array(outputs[CONFUSION], np.int64)
    return counts.reshape(counts.shape[-2:])


def make_eval_config(
    task: Task, thresholds: Mapping[str, float], largest_loss: float, code_version: str = ""
) -> tfma.EvalConfig:
    """Returns TFMA's configuration: metrics, slices and the thresholds that bless a model.

    See `pipeline.configs.PipelineSettings` for thresholds and `largest_loss`, and
    `DicePerCase` for the code's version.
    """
    metrics = tfma.MetricsSpec()
    config = json.dumps({"region_labels": regions(task), "code_version": code_version})
    metrics.metrics.add(class_name=DicePerCase.__name__, module=__name__, config=config)
    if task.target == "heat_map":
        module = "pipeline.components.lesion_metrics"
        metrics.metrics.add(class_name="LesionsPerCase", module=module)
    for name, least in thresholds.items():
        # An empty slicing spec: for all cases together, not for each slice.
        threshold = metrics.per_slice_thresholds[score_name(name, task)].thresholds.add()
        threshold.slicing_specs.add()
        threshold.threshold.value_threshold.lower_bound.value = least
        change = threshold.threshold.change_threshold
        change.direction = tfma.MetricDirection.HIGHER_IS_BETTER
        change.absolute.value = -largest_loss
    # TFX adds the same for the baseline model, if there is one.
    model = tfma.ModelSpec(
        # TFMA would load it as a Keras model, whose classes it does not have.
        model_type=tfma.TF_GENERIC,
        signature_name=SIGNATURE,
        inference_batch_size=INFERENCE_BATCH_SIZE,
    )
    slices: tuple[list[str], ...] = ([], [SPACING_CLASS], [SOURCE], [CASE_ID])
    return tfma.EvalConfig(
        model_specs=[model],
        metrics_specs=[metrics],
        slicing_specs=[tfma.SlicingSpec(feature_keys=keys) for keys in slices],
        options={"include_default_metrics": {"value": False}},
    )


def read_scores(evaluation: str) -> dict[str, dict[str, float]]:
    """Returns the candidate's scores in an Evaluator's output, by slice ("overall", NAME=VALUE)."""
    return {
        _slice_name(metrics.slice_key): {
            metric.key.name: metric.value.double_value.value
            for metric in metrics.metric_keys_and_values
            # TFMA omits the model's name if there is no baseline.
            if metric.key.model_name in ("", tfma.CANDIDATE_KEY) and not metric.key.is_diff
        }
        for metrics in tfma.load_metrics(evaluation)
    }


def read_refusals(evaluation: str) -> list[str]:
    """Returns the reasons why a model was not blessed, a short sentence each."""
    slices = tfma.load_validation_result(evaluation).metric_validations_per_slice
    return [_describe(failure) for each in slices for failure in each.failures]


def _slice_name(slice_key: Any) -> str:
    # The features of all slices are texts.
    parts = [f"{part.column}={part.bytes_value.decode()}" for part in slice_key.single_slice_keys]
    return ", ".join(parts) or "overall"


def _describe(failure: Any) -> str:
    name, threshold = failure.metric_key.name, failure.metric_threshold
    if not failure.HasField("metric_value"):
        return f"{name}: {failure.message}"
    measured = failure.metric_value.double_value.value
    if threshold.HasField("value_threshold"):
        least = threshold.value_threshold.lower_bound.value
        return f"{name} {measured:.4f} is below the threshold {least:g}"
    allowed = -threshold.change_threshold.absolute.value
    return f"{name} is {-measured:.4f} below the last blessed model's (allowed: {allowed:g})"


def _dice_computations(
    region_labels: dict[str, list[int]], name: str, model_names: list[str] | None = None
) -> tfma.metrics.MetricComputations:
    score = functools.partial(summarize, region_labels=region_labels)
    return case_computations(confusion, score, (), score([np.eye(1)]), model_names)


def _add(cases: Cases, case_id: bytes, value: Any) -> None:
    # In place: a list of patches that is copied for each of them takes quadratic time.
    if case_id in cases:
        cases[case_id] += value
    else:
        cases[case_id] = value
