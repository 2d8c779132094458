"""The gate that ends a run on anomalies: what TFX's ExampleValidator and our own checks found."""

# TFX reads the annotations of `stop_on_anomalies` at run time: no postponed evaluation here.

import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence

import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx.components.example_validator import executor as example_validator
from tfx.components.statistics_gen import executor as statistics_gen
from tfx.dsl.component.experimental.annotations import InputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import Artifact, artifact_utils, standard_artifacts
from tfx.utils import io_utils

from pipeline.components.data_checks import (
    Statistics,
    absent_labels,
    differences,
    leaks,
    misfits,
    span_leaks,
    swapped_labels,
)
from preprocessing.errors import PipelineError
from preprocessing.records.schema import scalar_features
from preprocessing.tasks import Task, task_from_dict

ERROR = anomalies_pb2.AnomalyInfo.ERROR
# Bounds the message about a data set in which everything is wrong.
MOST_FAULTS = 20
# What to do about a fault.
CONVERT = "Convert the volumes again with this version and this task."
CORRECT = "Correct the cases, or remove them, and convert again."
SEPARATE = "Give each case to one split, and convert again."
LEAVE_OUT = "Leave out of this span the cases that one before it has, and convert again."
COMPARE = "Find out how the cases differ, or accept it by --allow."


@component
def stop_on_anomalies(
    examples: InputArtifact[standard_artifacts.Examples],
    statistics: InputArtifact[standard_artifacts.ExampleStatistics],
    anomalies: InputArtifact[standard_artifacts.ExampleAnomalies],
    settings: Parameter[str],
    baseline: InputArtifact[standard_artifacts.ExampleStatistics] = None,
    together: InputArtifact[list[standard_artifacts.ExampleStatistics]] = None,
    learned: InputArtifact[list[standard_artifacts.ExampleStatistics]] = None,
) -> None:
    """A component that fails if records violate the schema or differ from each other too much.

    The settings are JSON with `task` and `allow`; the baseline holds the statistics of the span
    before, `together` and `learned` those of further ones (`resolvers.SpansBefore`). The examples are not
    read; as an input, they show in the metadata which data passed.
    """
    content = json.loads(settings)
    folders = _split_folders(anomalies)
    faults = find_faults(
        {split: read_anomalies(folder) for split, folder in folders.items()},
        read_statistics(statistics),
        read_statistics(baseline) if baseline else {},
        task_from_dict(content["task"]),
        content["allow"],
        [read_statistics(each) for each in together or ()],
        [read_statistics(each) for each in learned or ()],
    )
    if faults:
        expected = "records that match their task, each other and the span before"
        more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        remedy = " ".join(dict.fromkeys(faults.values()))
        found = "; ".join(list(faults)[:MOST_FAULTS]) + more
        raise PipelineError("data validation", expected, found, remedy)


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
    together: Sequence[Mapping[str, Statistics]] = (),
    learned: Sequence[Mapping[str, Statistics]] = (),
) -> dict[str, str]:
    """Returns what must stop the run, sentences with what to do, and prints warnings about the rest.

    The run stops on features that are not the task's, on errors in any split, on warnings in the
    training split, on cases in both splits, on swapped labels, and unless allowed on skew between the
    splits and drift from the baseline, the statistics of the span before. Cases must not be in those
    of other spans that are used `together`, or `learned` by the start model, either (`span_leaks`). All
    mappings are by split.
    """
    faults: dict[str, str] = {}
    warnings: list[str] = []
    odd: dict[str, set[str]] = {}
    filled = {split: each for split, each in statistics.items() if each.num_examples}
    for split, each in statistics.items():
        odd[split] = set()
        if split not in filled:
            faults[f"no records ({split} split)"] = CORRECT
            continue
        for name, grave, sentence, remedy in _findings(each, anomalies[split], task):
            odd[split].add(name)
            line = f"{sentence} ({split} split)"
            if grave or split == "train":
                faults[line] = remedy
            else:
                warnings.append(line)
    faults |= dict.fromkeys(leaks(filled), SEPARATE)
    faults |= dict.fromkeys(span_leaks(filled, together, learned), LEAVE_OUT)
    for name, what, split, against in (
        ("skew", "eval split against train", "eval", filled),
        ("drift", "this span against the one before", "train", baseline),
    ):
        if split in filled and "train" in against:
            unusable = odd[split] | (odd["train"] if against is filled else set())
            for sentence in differences(filled[split], against["train"], task, unusable):
                line = f"{sentence} ({name}: {what}; --allow {name} ignores it)"
                if name in allow:
                    warnings.append(line)
                else:
                    faults[line] = COMPARE
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    return faults


def _findings(
    statistics: Statistics, found: anomalies_pb2.Anomalies, task: Task
) -> Iterator[tuple[str, bool, str, str]]:
    """Yields feature, whether it is an error, sentence and remedy of all that is wrong in a split."""
    wrong, scalars = misfits(statistics, task), scalar_features(task)
    for name, text in sorted(wrong.items()):
        yield name, True, f"{name}: {text}", CONVERT
    if found.HasField("dataset_anomaly_info"):
        whole = found.dataset_anomaly_info
        yield "", whole.severity == ERROR, whole.description, CONVERT
    for name, each in sorted(found.anomaly_info.items()):
        if name not in wrong:
            text = " ".join(" ".join(reason.description for reason in each.reason).split())
            remedy = CORRECT if name in scalars else CONVERT
            yield name, each.severity == ERROR, f"{name}: {text.rstrip('.')}", remedy
    for name, text in absent_labels(statistics, task).items():
        if name not in wrong:
            yield name, False, f"{name}: {text}", CORRECT
    for text in swapped_labels(statistics, task):
        yield "", True, text, CORRECT


def _split_folders(artifact: Artifact) -> dict[str, str]:
    splits = artifact_utils.decode_split_names(artifact.split_names)
    return {split: artifact_utils.get_split_uri([artifact], split) for split in splits}
