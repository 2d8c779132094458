"""Dice per case inside TFMA: exact, from the confusion counts of the patches that tile each case.

Which cases, which regions, which thresholds: `make_eval_config`. The numbers come out of the
model's signature `serialized_examples`; nothing is cropped, resampled or averaged on the way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma

from pipeline.components.lesion_metrics import LesionsPerCase
from pipeline.configs import score_name
from preprocessing.records.schema import CASE_ID, SOURCE, SPACING_CLASS
from preprocessing.tasks import Task

SIGNATURE = "serialized_examples"
CONFUSION = "confusion"

# Patches at a time; TFMA reads far more ahead.
INFERENCE_BATCH_SIZE = 4

# Classes that lie inside another one and count as part of it (LiTS: the liver mask is label >= 1).
PARTS = {"liver": ("tumour",)}

# Accumulator of a slice: for each case the sum of its patches' counts,
# int64 [reference class, predicted class].
Confusions = dict[bytes, np.ndarray]


def regions(task: Task) -> dict[str, list[int]]:
    """Returns the label values that make up each region that is scored, by its name."""
    values = {name: value for value, name in enumerate(task.class_names)}
    return {
        name: sorted([value, *(values[part] for part in PARTS.get(name, ()) if part in values)])
        for name, value in values.items()
        if value > 0
    }


def dice(intersection: float, predicted: float, reference: float) -> float:
    """Returns 2 |P and R| / (|P| + |R|); 1 where both are empty, as LiTS' scorer does."""
    total = predicted + reference
    return 2.0 * intersection / total if total else 1.0


def region_counts(confusion: np.ndarray, labels: Sequence[int]) -> tuple[int, int, int]:
    """Returns intersection, predicted and reference voxels of the union of some classes.

    Args:
      confusion: voxel counts [reference class, predicted class].
      labels: the label values that make up the region.
    """
    inside = np.isin(np.arange(len(confusion)), labels)
    return (
        int(confusion[np.ix_(inside, inside)].sum()),
        int(confusion[:, inside].sum()),
        int(confusion[inside].sum()),
    )


def summarize(
    confusions: Sequence[np.ndarray], region_labels: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Returns the scores over cases from each case's confusion counts.

    For each region R: `dice_R`, the mean over cases; `dice_global_R`, from the sums over all
    cases; `cases_without_R`, how many have no such voxel in the reference (their Dice is 1 if
    nothing is predicted either, else 0). And `cases`.
    """
    scores = {"cases": float(len(confusions))}
    for name, labels in region_labels.items():
        counts = np.array([region_counts(case, labels) for case in confusions])
        scores[f"dice_{name}"] = math.fsum(dice(*case) for case in counts) / len(confusions)
        scores[f"dice_global_{name}"] = dice(*counts.sum(axis=0))
        scores[f"cases_without_{name}"] = float(np.sum(counts[:, 2] == 0))
    return scores


class DicePerCase(tfma.metrics.Metric):
    """Dice of each region over the cases of a slice (see `summarize` for the names).

    Args:
      region_labels: label values of each region, by name.
      name: unused by the scores, which have names of their own.
    """

    def __init__(self, region_labels: dict[str, list[int]], name: str = "dice_per_case"):
        super().__init__(_computations, region_labels=region_labels, name=name)


def make_eval_config(
    task: Task, thresholds: Mapping[str, float], largest_loss: float
) -> tfma.EvalConfig:
    """Returns which model is scored how, and which scores bless it.

    Args:
      task: its classes are the regions.
      thresholds: for each region that decides, the least mean Dice per case; for each score of lesions
        (`pipeline.components.lesion_metrics`) its least value.
      largest_loss: by how much those may fall short of the last blessed model's.
    """
    metrics = tfma.MetricsSpec(
        metrics=[
            tfma.MetricConfig(
                class_name=DicePerCase.__name__,
                module=__name__,
                config=json.dumps({"region_labels": regions(task)}),
            )
        ],
    )
    if task.target == "heat_map":
        metrics.metrics.add(class_name=LesionsPerCase.__name__, module=LesionsPerCase.__module__)
    for name, least in thresholds.items():
        # For all cases together, not for every slice by itself.
        threshold = metrics.per_slice_thresholds[score_name(name, task)].thresholds.add()
        threshold.slicing_specs.add()
        threshold.threshold.value_threshold.lower_bound.value = least
        change = threshold.threshold.change_threshold
        change.direction = tfma.MetricDirection.HIGHER_IS_BETTER
        change.absolute.value = -largest_loss
    return tfma.EvalConfig(
        # TFX adds the same for the baseline model, where there is one.
        model_specs=[
            tfma.ModelSpec(
                # Else TFMA would load the model as a Keras one, by way of classes it lacks.
                model_type=tfma.TF_GENERIC,
                signature_name=SIGNATURE,
                inference_batch_size=INFERENCE_BATCH_SIZE,
            )
        ],
        metrics_specs=[metrics],
        slicing_specs=[
            tfma.SlicingSpec(),
            tfma.SlicingSpec(feature_keys=[SPACING_CLASS]),
            tfma.SlicingSpec(feature_keys=[SOURCE]),
            tfma.SlicingSpec(feature_keys=[CASE_ID]),
        ],
        options=tfma.Options(include_default_metrics={"value": False}),
    )


def read_scores(evaluation: str) -> dict[str, dict[str, float]]:
    """Returns the candidate's scores from an Evaluator's output folder.

    Returns:
      For each slice, named "overall" or FEATURE=VALUE, the scores by name.
    """
    return {
        _slice_name(metrics.slice_key): {
            metric.key.name: metric.value.double_value.value
            for metric in metrics.metric_keys_and_values
            # TFMA leaves a model's name out where there is no other to compare it with.
            if metric.key.model_name in ("", tfma.CANDIDATE_KEY) and not metric.key.is_diff
        }
        for metrics in tfma.load_metrics(evaluation)
    }


def read_refusals(evaluation: str) -> list[str]:
    """Returns what kept a model from being blessed, a short sentence each; empty if nothing did."""
    result = tfma.load_validation_result(evaluation)
    return [
        _describe(failure)
        for checked_slice in result.metric_validations_per_slice
        for failure in checked_slice.failures
    ]


def _slice_name(slice_key: Any) -> str:
    parts = []
    for part in slice_key.single_slice_keys:
        value = getattr(part, part.WhichOneof("kind"))
        text = value.decode() if isinstance(value, bytes) else str(value)
        parts.append(f"{part.column}={text}")
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


def _computations(
    region_labels: dict[str, list[int]],
    name: str,
    model_names: list[str] | None = None,
) -> tfma.metrics.MetricComputations:
    preprocessor = tfma.metrics.FeaturePreprocessor([CASE_ID])
    computations = []
    for model_name in model_names or [""]:
        keys = {
            # Thresholds by name are looked up under keys without an example weight.
            score: tfma.metrics.MetricKey(score, model_name=model_name, example_weighted=None)
            for score in summarize([np.eye(1)], region_labels)
        }
        combiner = SumConfusionsByCase(model_name, region_labels, keys)
        computations.append(
            tfma.metrics.MetricComputation([*keys.values()], [preprocessor], combiner)
        )
    return computations


class SumConfusionsByCase(beam.CombineFn):
    """Adds the patches' confusion counts up to those of each case, then scores the cases."""

    def __init__(
        self,
        model_name: str,
        region_labels: Mapping[str, Sequence[int]],
        keys: Mapping[str, tfma.metrics.MetricKey],
    ):
        self._model_name = model_name
        self._region_labels = region_labels
        self._keys = keys

    def create_accumulator(self) -> Confusions:
        return {}

    def add_input(
        self, confusions: Confusions, patch: tfma.metrics.StandardMetricInputs
    ) -> Confusions:
        case_id = bytes(np.asarray(patch.features[CASE_ID]).item())
        outputs = patch.get_predictions(self._model_name)
        counts = np.asarray(outputs[CONFUSION], np.int64)
        counts = counts.reshape(counts.shape[-2:])
        confusions[case_id] = confusions.get(case_id, 0) + counts
        return confusions

    def merge_accumulators(self, accumulators: Iterable[Confusions]) -> Confusions:
        merged: Confusions = {}
        for confusions in accumulators:
            for case_id, counts in confusions.items():
                merged[case_id] = merged.get(case_id, 0) + counts
        return merged

    def extract_output(self, confusions: Confusions) -> dict[tfma.metrics.MetricKey, float]:
        ordered = [confusions[case_id] for case_id in sorted(confusions)]
        scores = summarize(ordered, self._region_labels)
        return {self._keys[name]: score for name, score in scores.items()}
