"""The gate between data validation and training: anomalies end the run."""

# TFX reads the annotations of `stop_on_anomalies` as they stand: no postponed evaluation here.

import json
import sys
from collections.abc import Collection, Iterator, Mapping

from tensorflow_metadata.proto.v0 import anomalies_pb2, statistics_pb2
from tfx.dsl.component.experimental.annotations import InputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types import artifact_utils, standard_artifacts

from pipeline.components.data_checks import Statistics, differences, leaks, swapped_labels
from preprocessing.errors import PipelineError
from preprocessing.tasks import Task, task_from_dict

TRAINING_SPLIT = "train"
EVALUATION_SPLIT = "eval"
# Where ExampleValidator leaves its findings on a split, and StatisticsGen its statistics.
ANOMALIES_FILE = "SchemaDiff.pb"
STATISTICS_FILE = "FeatureStats.pb"


@component
def stop_on_anomalies(
    examples: InputArtifact[standard_artifacts.Examples],
    statistics: InputArtifact[standard_artifacts.ExampleStatistics],
    anomalies: InputArtifact[standard_artifacts.ExampleAnomalies],
    settings: Parameter[str],
    baseline: InputArtifact[standard_artifacts.ExampleStatistics] = None,
) -> None:
    """A component that fails where records don't fit the schema, each other, or the span before.

    Args:
      examples: what the others are about; so lineage tells which examples passed.
      statistics: of the examples.
      anomalies: of the statistics.
      settings: JSON with `task` and `allow`.
      baseline: statistics of the span before, if there is one.
    """
    content = json.loads(settings)
    faults = find_faults(
        {
            split: read_anomalies(artifact_utils.get_split_uri([anomalies], split))
            for split in artifact_utils.decode_split_names(anomalies.split_names)
        },
        read_all_statistics(statistics),
        read_all_statistics(baseline) if baseline else {},
        task_from_dict(content["task"]),
        content["allow"],
    )
    if faults:
        raise PipelineError(
            "data validation",
            "records that fit their task, each other and those before",
            "; ".join(faults),
            "Mend the cases and convert them again.",
        )


def read_anomalies(folder: str) -> anomalies_pb2.Anomalies:
    """Reads what ExampleValidator found in one split."""
    with fileio.open(f"{folder}/{ANOMALIES_FILE}", "rb") as file:
        return anomalies_pb2.Anomalies.FromString(file.read())


def read_all_statistics(artifact: standard_artifacts.ExampleStatistics) -> dict[str, Statistics]:
    """Reads the statistics of every split."""
    return {
        split: read_statistics(artifact_utils.get_split_uri([artifact], split))
        for split in artifact_utils.decode_split_names(artifact.split_names)
    }


def read_statistics(folder: str) -> Statistics:
    """Reads the statistics of one split."""
    with fileio.open(f"{folder}/{STATISTICS_FILE}", "rb") as file:
        return statistics_pb2.DatasetFeatureStatisticsList.FromString(file.read()).datasets[0]


def find_faults(
    anomalies: Mapping[str, anomalies_pb2.Anomalies],
    statistics: Mapping[str, Statistics],
    baseline: Mapping[str, Statistics],
    task: Task,
    allow: Collection[str] = (),
) -> list[str]:
    """Returns what has to stop the run, a sentence each; prints what has not.

    Errors in any split, warnings in the training split, a case in both splits and swapped labels stop
    it; so do skew between the splits and drift from the baseline unless they are allowed by name.

    Args:
      anomalies: findings by split.
      statistics: by split.
      baseline: the training statistics of the span before, by split; empty if there is none.
      task: what the records should hold.
      allow: "drift", "skew".
    """
    faults, warnings = [], []
    for split, found in anomalies.items():
        for severity, sentence in _findings(found):
            grave = severity == anomalies_pb2.AnomalyInfo.ERROR or split == TRAINING_SPLIT
            (faults if grave else warnings).append(f"{sentence} ({split} split)")
    faults += leaks(statistics)
    sound = {split: each for split, each in statistics.items() if each.num_examples}
    for split, each in sound.items():
        faults += [f"{sentence} ({split} split)" for sentence in swapped_labels(each, task)]
    comparisons = []
    if {TRAINING_SPLIT, EVALUATION_SPLIT} <= sound.keys():
        comparisons.append(("skew", "eval split against train", EVALUATION_SPLIT, statistics))
    if TRAINING_SPLIT in sound and TRAINING_SPLIT in baseline:
        comparisons.append(("drift", "this span against the one before", TRAINING_SPLIT, baseline))
    for name, what, split, against in comparisons:
        for sentence in differences(statistics[split], against[TRAINING_SPLIT], task):
            line = f"{sentence} ({name}: {what}; --allow {name} goes on in spite of it)"
            (warnings if name in allow else faults).append(line)
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    return faults


def _findings(found: anomalies_pb2.Anomalies) -> Iterator[tuple[int, str]]:
    if found.data_missing:
        yield anomalies_pb2.AnomalyInfo.ERROR, "no records"
    if found.HasField("dataset_anomaly_info"):
        yield found.dataset_anomaly_info.severity, found.dataset_anomaly_info.description
    for name, information in sorted(found.anomaly_info.items()):
        sentences = [
            # Of a check of ours the short description is its own, the long one the SQL.
            reason.short_description
            if reason.type == anomalies_pb2.AnomalyInfo.CUSTOM_VALIDATION
            else reason.description
            for reason in information.reason
        ]
        text = " ".join(" ".join(sentences).split())
        yield information.severity, f"{name}: {text.rstrip('.')}"
