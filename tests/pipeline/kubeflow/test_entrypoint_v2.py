"""A v2 pod with the inputs that Kubeflow Pipelines 2 passes: types, folders, parameters, exit code."""

# TFX reads the annotations of the components at run time: no postponed evaluation here.

import atexit
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types import standard_artifacts

from pipeline.kubeflow.entrypoint_v2 import ROOT_VARIABLE, main
from preprocessing.errors import InputError, PipelineError

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.slow

# As KFP's driver passes every input artifact: the launcher marshals an empty schema like this.
NO_TYPE = {"instanceSchema": ""}
MODEL = {"instanceSchema": "title: tfx.Model\ntype: object\n"}


@component
def describe(
    number: Parameter[int],
    rate: Parameter[float],
    text: Parameter[str],
    model: InputArtifact[standard_artifacts.Model],
    schema: OutputArtifact[standard_artifacts.Schema],
) -> None:
    """A component that writes what it was given into its output."""
    found = sorted(Path(model.uri).rglob("*"))
    content = {
        "kind": type(model).__name__,
        "uri": model.uri,
        "files": [str(path.relative_to(model.uri)) for path in found if path.is_file()],
        "parameters": [number, rate, text],
        "property": model.get_custom_property("pushed"),
    }
    with fileio.open(f"{schema.uri}/description.json", "w") as file:
        file.write(json.dumps(content))


@component
def fail(schema: OutputArtifact[standard_artifacts.Schema]) -> None:
    """A component that raises one of this project's errors."""
    raise InputError("records/train", "one or more patches", "none", f"Convert into {schema.uri}.")


@component
def abort_at_exit(schema: OutputArtifact[standard_artifacts.Schema]) -> None:
    """A component after which the interpreter aborts at its end, as destructors of TensorFlow may."""
    atexit.register(os.abort)
    with fileio.open(f"{schema.uri}/done", "w") as file:
        file.write("done")
    sys.stdout.write("the last output, without a new line")


def words(name: str, executor_input: dict, spec: dict | None) -> list[str]:
    """Returns the arguments of a pod that runs one of the components above."""
    arguments = ["--executor_class_path", f"{Path(__file__).stem}.{name}_Executor"]
    arguments += ["--json_serialized_invocation_args", json.dumps(executor_input)]
    if spec is not None:
        arguments += ["--json_serialized_inputs_spec_args", json.dumps(spec)]
    return arguments


def schema_output(tmp_path: Path, scheme: str = "gs://") -> dict:
    artifact = {"type": {"instanceSchema": "title: tfx.Schema\ntype: object\n"}}
    artifact["uri"] = f"{scheme}bucket/run/schema"
    answer = str(tmp_path / "kfp_outputs" / "output_metadata.json")
    return {"artifacts": {"schema": {"artifacts": [artifact]}}, "outputFile": answer}


SPEC = {
    "artifacts": {"model": {"artifactType": MODEL}},
    "parameters": {
        "number": {"parameterType": "NUMBER_INTEGER"},
        "rate": {"parameterType": "NUMBER_DOUBLE"},
        "text": {"parameterType": "STRING"},
    },
}
NEW_PARAMETERS = {"number": 3, "rate": 0.5, "text": "gs://bucket/records"}
OLD_PARAMETERS = {
    "number": {"intValue": "3"},
    "rate": {"doubleValue": 0.5},
    "text": {"stringValue": "gs://bucket/records"},
}


@pytest.fixture(autouse=True)
def this_folder_is_on_the_path(monkeypatch):
    """The executors are found by this module's name, as those of a pod by theirs."""
    monkeypatch.syspath_prepend(Path(__file__).parent)


def run_describe(tmp_path, monkeypatch, *, kind, scheme="gs://", parameters=None, spec=SPEC):
    """Runs `describe` in this process on a model with a nested folder; returns what it wrote."""
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    folder = tmp_path / {"gs://": "gcs", "minio://": "minio", "s3://": "s3"}[scheme] / "bucket"
    for file in ("Format-Serving/saved_model.pb", "Format-Serving/variables/variables.index"):
        path = folder / "run" / "model" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    artifact = {"name": "7", "uri": f"{scheme}bucket/run/model", "metadata": {"pushed": 2}}
    if kind is not None:
        artifact["type"] = kind
    inputs = {"artifacts": {"model": {"artifacts": [artifact]}}}
    inputs |= parameters or {"parameterValues": NEW_PARAMETERS}
    outputs = schema_output(tmp_path, scheme)
    main(words("describe", {"inputs": inputs, "outputs": outputs}, spec))
    (made,) = json.loads(Path(outputs["outputFile"]).read_text())["artifacts"]["schema"][
        "artifacts"
    ]
    assert made["uri"] == f"{scheme}bucket/run/schema"
    return json.loads((folder / "run" / "schema" / "description.json").read_text())


@pytest.mark.parametrize(
    "kind",
    [NO_TYPE, {}, None, {"schemaTitle": "system.Model"}, {"instanceSchema": "title: system.Model"}],
)
def test_types_come_from_the_inputs_spec(tmp_path, monkeypatch, kind):
    found = run_describe(tmp_path, monkeypatch, kind=kind)
    assert found["kind"] == "Model"
    assert found["property"] == 2


@pytest.mark.parametrize("scheme", ["gs://", "minio://", "s3://"])
def test_artifacts_are_in_the_folders_of_the_launcher(tmp_path, monkeypatch, scheme):
    found = run_describe(tmp_path, monkeypatch, kind=NO_TYPE, scheme=scheme)
    folder = {"gs://": "gcs", "minio://": "minio", "s3://": "s3"}[scheme]
    assert found["uri"] == f"{tmp_path}/{folder}/bucket/run/model"
    assert found["files"] == [
        "Format-Serving/saved_model.pb",
        "Format-Serving/variables/variables.index",
    ]


@pytest.mark.parametrize("spec", [SPEC, None])
@pytest.mark.parametrize(
    "parameters", [{"parameterValues": NEW_PARAMETERS}, {"parameters": OLD_PARAMETERS}]
)
def test_parameters_of_both_versions(tmp_path, monkeypatch, spec, parameters):
    """Parameters are not mapped: TensorFlow reads records from the bucket itself."""
    kind = NO_TYPE if spec else MODEL
    found = run_describe(tmp_path, monkeypatch, kind=kind, parameters=parameters, spec=spec)
    assert found["parameters"] == [3, 0.5, "gs://bucket/records"]


def test_an_input_of_unknown_type_is_named(tmp_path, monkeypatch):
    with pytest.raises(PipelineError, match="input model: expected an artifact type of TFX"):
        run_describe(tmp_path, monkeypatch, kind=NO_TYPE, spec=None)


@pytest.mark.parametrize("with_marker", [True, False])
def test_an_empty_artifact_is_an_empty_folder(tmp_path, monkeypatch, with_marker):
    """An object store has none: the launcher copies nothing, or an object without content as a file."""
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    model = tmp_path / "gcs" / "bucket" / "run" / "model"
    if with_marker:
        model.parent.mkdir(parents=True)
        model.touch()
    artifact = {"name": "7", "uri": "gs://bucket/run/model", "type": NO_TYPE, "metadata": {}}
    inputs = {"artifacts": {"model": {"artifacts": [artifact]}}, "parameterValues": NEW_PARAMETERS}
    outputs = schema_output(tmp_path)
    main(words("describe", {"inputs": inputs, "outputs": outputs}, SPEC))
    assert model.is_dir()
    text = (tmp_path / "gcs" / "bucket" / "run" / "schema" / "description.json").read_text()
    assert json.loads(text)["files"] == []


def run_pod(tmp_path: Path, name: str, outputs: dict) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipeline.kubeflow.entrypoint_v2"]
    command += words(name, {"inputs": {}, "outputs": outputs}, {})
    environment = os.environ | {
        ROOT_VARIABLE: str(tmp_path),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_log_of_the_engine_is_left_to_it(tmp_path):
    """With published logs, the driver adds an output that the launcher writes to while the pod runs.

    An interpreter that aborts after its work does not fail the pod either.
    """
    outputs = schema_output(tmp_path)
    log = {"uri": "gs://bucket/run/executor-logs", "type": {"schemaTitle": "system.Artifact"}}
    outputs["artifacts"]["executor-logs"] = {"artifacts": [log]}
    ran = run_pod(tmp_path, "abort_at_exit", outputs)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith("the last output, without a new line")
    assert (tmp_path / "gcs" / "bucket" / "run" / "schema" / "done").read_text() == "done"
    assert not (tmp_path / "gcs" / "bucket" / "run" / "executor-logs").exists()
    written = json.loads(Path(outputs["outputFile"]).read_text())
    assert set(written["artifacts"]) == {"schema"}


def test_an_executor_that_fails_fails_the_pod(tmp_path):
    outputs = schema_output(tmp_path)
    ran = run_pod(tmp_path, "fail", outputs)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == (
        "preprocessing.errors.InputError: records/train: expected one or more patches, found none. "
        f"Convert into {tmp_path}/gcs/bucket/run/schema."
    )
    assert not Path(outputs["outputFile"]).exists()
