"""Checks of our own reach TFX's ExampleValidator as a message and as text."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tensorflow_data_validation as tfdv
from apache_beam.options.pipeline_options import PipelineOptions
from tfx.types import standard_artifacts
from tfx.utils import proto_utils

from pipeline.components.anomaly_gate import read_anomalies
from pipeline.components.example_validator import ReadingExecutor
from pipeline.components.schema import SCHEMA_FILE, make_schema, make_validations, schema_text


@pytest.mark.parametrize("form", [lambda checks: checks, proto_utils.proto_to_json])
def test_a_missing_label_is_found_in_either_form(tmp_path, task, patch, write_records, form):
    healthy = replace(patch, case_label_voxels=(900, 100, 0))
    found = tfdv.generate_statistics_from_tfrecord(
        str(write_records(tmp_path / "train", [healthy], task)),
        stats_options=tfdv.StatsOptions(schema=make_schema(task)),
        pipeline_options=PipelineOptions(["--direct_running_mode=in_memory"]),
    )
    statistics = standard_artifacts.ExampleStatistics()
    statistics.uri, statistics.split_names = str(tmp_path / "statistics"), '["train"]'
    (tmp_path / "statistics" / "Split-train").mkdir(parents=True)
    file = tmp_path / "statistics" / "Split-train" / "FeatureStats.pb"
    file.write_bytes(found.SerializeToString())
    schema = standard_artifacts.Schema()
    schema.uri = str(tmp_path / "schema")
    (tmp_path / "schema").mkdir()
    (tmp_path / "schema" / SCHEMA_FILE).write_text(schema_text(task))
    anomalies = standard_artifacts.ExampleAnomalies()
    anomalies.uri = str(tmp_path / "anomalies")
    ReadingExecutor().Do(
        {"statistics": [statistics], "schema": [schema]},
        {"anomalies": [anomalies]},
        {"custom_validation_config": form(make_validations(task)), "exclude_splits": "[]"},
    )
    assert list(read_anomalies(f"{anomalies.uri}/Split-train").anomaly_info) == [
        "case_voxels_label_2"
    ]
