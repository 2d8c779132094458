"""Data validation: TFX's ExampleValidator, and the gate that ends the run on anomalies."""

# TFX reads the annotations of `stop_on_anomalies` at run time: no postponed evaluation here.

import json
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import tensorflow_data_validation as tfdv
from tensorflow_data_validation.anomalies.proto import custom_validation_config_pb2
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx import components
from tfx.components.example_validator import executor as example_validator
from tfx.components.statistics_gen import executor as statistics_gen
from tfx.dsl.component.experimental.annotations import InputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.components.base.executor_spec import ExecutorClassSpec
from tfx.types import Artifact, artifact_utils, standard_artifacts
from tfx.types.standard_component_specs import CUSTOM_VALIDATION_CONFIG_KEY
from tfx.utils import io_utils, proto_utils

from pipeline.components.data_checks import Statistics, differences, leaks, swapped_labels
from preprocessing.errors import PipelineError
from preprocessing.tasks import Task, task_from_dict

ERROR = anomalies_pb2.AnomalyInfo.ERROR
CUSTOM_VALIDATION = anomalies_pb2.AnomalyInfo.CUSTOM_VALIDATION


class ExampleValidatorExecutor(example_validator.Executor):
    """TFX's executor, which expects the custom checks as a message.

    Kubeflow Pipelines 2 and Vertex AI pass them as JSON text, which it would ignore.
    """

    def Do(  # noqa: N802, TFX's name
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        checks = exec_properties.get(CUSTOM_VALIDATION_CONFIG_KEY)
        if isinstance(checks, str):
            message = custom_validation_config_pb2.CustomValidationConfig()
            proto_utils.json_to_proto(checks, message)
            exec_properties = exec_properties | {CUSTOM_VALIDATION_CONFIG_KEY: message}
        super().Do(input_dict, output_dict, exec_properties)


class ExampleValidator(components.ExampleValidator):
    """TFX's component with `ExampleValidatorExecutor`."""

    EXECUTOR_SPEC = ExecutorClassSpec(ExampleValidatorExecutor)


@component
def stop_on_anomalies(
    examples: InputArtifact[standard_artifacts.Examples],
    statistics: InputArtifact[standard_artifacts.ExampleStatistics],
    anomalies: InputArtifact[standard_artifacts.ExampleAnomalies],
    settings: Parameter[str],
    baseline: InputArtifact[standard_artifacts.ExampleStatistics] = None,
) -> None:
    """A component that fails if records violate the schema or differ from each other too much.

    The settings are JSON with `task` and `allow`; the baseline holds the statistics of the span
    before. The examples are not read; as an input, they show in the metadata which data passed.
    """
    content = json.loads(settings)
    folders = _split_folders(anomalies)
    faults = find_faults(
        {split: read_anomalies(folder) for split, folder in folders.items()},
        read_statistics(statistics),
        read_statistics(baseline) if baseline else {},
        task_from_dict(content["task"]),
        content["allow"],
    )
    if faults:
        expected = "records that match their task, each other and the span before"
        remedy = "Correct the cases and convert them again."
        raise PipelineError("data validation", expected, "; ".join(faults), remedy)


def read_anomalies(folder: str) -> anomalies_pb2.Anomalies:
    """Reads ExampleValidator's output for one split."""
    content = io_utils.read_bytes_file(f"{folder}/{example_validator.DEFAULT_FILE_NAME}")
    return anomalies_pb2.Anomalies.FromString(content)


def read_statistics(artifact: standard_artifacts.ExampleStatistics) -> dict[str, Statistics]:
    """Reads StatisticsGen's output by split."""
    name = statistics_gen.DEFAULT_FILE_NAME
    return {
        split: tfdv.load_stats_binary(f"{folder}/{name}").datasets[0]
        for split, folder in _split_folders(artifact).items()
    }


def find_faults(
    anomalies: Mapping[str, anomalies_pb2.Anomalies],
    statistics: Mapping[str, Statistics],
    baseline: Mapping[str, Statistics],
    task: Task,
    allow: Collection[str] = (),
) -> list[str]:
    """Returns what must stop the run, a sentence each, and prints warnings about the rest.

    The run stops on errors in any split, on warnings in the training split, on cases in both
    splits, on swapped labels, and unless allowed on skew between the splits and drift from the
    baseline, the statistics of the span before. All mappings are by split.
    """
    faults: list[str] = []
    warnings: list[str] = []
    for split, found in anomalies.items():
        for severity, sentence in _findings(found):
            grave = severity == ERROR or split == "train"
            (faults if grave else warnings).append(f"{sentence} ({split} split)")
    faults += leaks(statistics)
    filled = {split: each for split, each in statistics.items() if each.num_examples}
    for split, each in filled.items():
        faults += [f"{sentence} ({split} split)" for sentence in swapped_labels(each, task)]
    for name, what, split, against in (
        ("skew", "eval split against train", "eval", filled),
        ("drift", "this span against the one before", "train", baseline),
    ):
        if split in filled and "train" in against:
            for sentence in differences(filled[split], against["train"], task):
                line = f"{sentence} ({name}: {what}; --allow {name} ignores it)"
                (warnings if name in allow else faults).append(line)
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    return faults


def _findings(found: anomalies_pb2.Anomalies) -> Iterator[tuple[int, str]]:
    """Yields the severity of each anomaly with a sentence that describes it."""
    if found.data_missing:
        yield ERROR, "no records"
    if found.HasField("dataset_anomaly_info"):
        yield found.dataset_anomaly_info.severity, found.dataset_anomaly_info.description
    for name, information in sorted(found.anomaly_info.items()):
        sentences = [
            # The long description of a custom check is its SQL expression.
            each.short_description if each.type == CUSTOM_VALIDATION else each.description
            for each in information.reason
        ]
        text = " ".join(" ".join(sentences).split())
        yield information.severity, f"{name}: {text.rstrip('.')}"


def _split_folders(artifact: Artifact) -> dict[str, str]:
    splits = artifact_utils.decode_split_names(artifact.split_names)
    return {split: artifact_utils.get_split_uri([artifact], split) for split in splits}
