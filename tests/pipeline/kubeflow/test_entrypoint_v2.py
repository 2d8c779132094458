"""A v2 pod sees a bucket's artifacts as local folders and reports their bucket addresses."""

from __future__ import annotations

import json

import pytest

from pipeline.kubeflow.entrypoint_v2 import main

pytestmark = pytest.mark.slow


def test_a_component_writes_to_its_folder_and_reports_the_bucket_address(tmp_path):
    """A real component, run by TFX's own executor."""
    answer = tmp_path / "executor_output.json"
    schema = {"name": "schema", "uri": "gs://bucket/run/schema"}
    schema["type"] = {"schemaTitle": "tfx.Schema"}
    executor_input = {
        "inputs": {"parameterValues": {"text": "feature { name: 'gs://bucket/stays' }"}},
        "outputs": {"artifacts": {"schema": {"artifacts": [schema]}}, "outputFile": str(answer)},
    }
    main(
        [
            *("--executor_class_path", "pipeline.components.schema.task_schema_Executor"),
            *("--json_serialized_invocation_args", json.dumps(executor_input)),
            *("--json_serialized_inputs_spec_args", '{"parameters": {"text": {}}}'),
        ],
        folder=f"{tmp_path}/gcs/",
    )
    written = tmp_path / "gcs" / "bucket" / "run" / "schema" / "schema.pbtxt"
    assert written.read_text() == "feature { name: 'gs://bucket/stays' }"
    (made,) = json.loads(answer.read_text())["artifacts"]["schema"]["artifacts"]
    assert made["uri"] == "gs://bucket/run/schema"


def test_an_executor_that_fails_fails_the_pod(tmp_path):
    executor_input = {"inputs": {}, "outputs": {"artifacts": {}, "outputFile": f"{tmp_path}/out"}}
    with pytest.raises((SystemExit, ImportError, AttributeError)):
        main(
            [
                *("--executor_class_path", "pipeline.components.schema.Nothing"),
                *("--json_serialized_invocation_args", json.dumps(executor_input)),
            ]
        )
    assert not (tmp_path / "out").exists()
