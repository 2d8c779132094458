"""The gate between data validation and training: anomalies end the run."""

# TFX reads the annotations of `stop_on_anomalies` as they stand: no postponed evaluation here.

import sys
from collections.abc import Iterator

from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx.dsl.component.experimental.annotations import InputArtifact
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types import artifact_utils, standard_artifacts

from preprocessing.errors import PipelineError

TRAINING_SPLIT = "train"
# Where ExampleValidator leaves its findings on a split.
ANOMALIES_FILE = "SchemaDiff.pb"


@component
def stop_on_anomalies(
    anomalies: InputArtifact[standard_artifacts.ExampleAnomalies],
) -> None:
    """A component that fails where the records don't fit the schema (see `check_anomalies`)."""
    check_anomalies(
        {
            split: read_anomalies(artifact_utils.get_split_uri([anomalies], split))
            for split in artifact_utils.decode_split_names(anomalies.split_names)
        }
    )


def read_anomalies(folder: str) -> anomalies_pb2.Anomalies:
    """Reads what ExampleValidator found in one split."""
    with fileio.open(f"{folder}/{ANOMALIES_FILE}", "rb") as file:
        return anomalies_pb2.Anomalies.FromString(file.read())


def check_anomalies(anomalies: dict[str, anomalies_pb2.Anomalies]) -> None:
    """Stops on errors in any split and on warnings in the training split; prints other warnings.

    Args:
      anomalies: findings by split.

    Raises:
      PipelineError: names each feature at fault, its split, and what is wrong with it.
    """
    faults = []
    for split, found in anomalies.items():
        for severity, sentence in _findings(found):
            line = f"{sentence} ({split} split)"
            if severity == anomalies_pb2.AnomalyInfo.ERROR or split == TRAINING_SPLIT:
                faults.append(line)
            else:
                print(f"warning: {line}", file=sys.stderr)
    if faults:
        raise PipelineError(
            "data validation",
            "records that fit the schema of their task",
            "; ".join(faults),
            "Mend the cases and convert them again.",
        )


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
