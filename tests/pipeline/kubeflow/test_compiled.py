"""Compiled pipelines: parsing, running containers locally, failures, the metadata store."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from ml_metadata import MetadataStore, errors
from ml_metadata.proto import metadata_store_pb2

from pipeline.kubeflow.compiled import read_compiled
from pipeline.kubeflow.containers import RunContext
from pipeline.kubeflow.metadata_server import serve_metadata
from pipeline.kubeflow.rehearsal import main
from preprocessing.errors import InputError

ROOT = "/mnt/volume/artifacts"


def container(node: str, script: str) -> dict:
    """Returns an Argo template whose container writes its own arguments and runs a script."""
    return {
        "name": node.lower(),
        "container": {
            "image": "an/image",
            "command": ["sh", "-c", script],
            "args": [
                *("--pipeline_root", "{{inputs.parameters.pipeline-root}}", "--node_id", node),
                *("--metadata_ui_path", "/tmp/ui.json"),
            ],
        },
    }


@pytest.fixture
def workflow(tmp_path):
    """Writes a workflow of three nodes, the last of which fails while there is no file `fixed`."""

    def write(folder: Path) -> Path:
        note = 'echo "$WORKFLOW_ID $0 $*" >> /mnt/volume/order'
        failing = f"{note}; cat /mnt/volume/fixed || {{ echo 'the cause' >&2; exit 3; }}"
        scripts = {"Third": failing, "First": note, "Second": note}
        needs = {"Third": ["second"], "Second": ["first"], "First": []}
        tasks = [
            {"name": node.lower(), "template": node.lower(), "dependencies": needs[node]}
            for node in scripts
        ]
        templates = [container(node, script) for node, script in scripts.items()]
        content = {
            "kind": "Workflow",
            "metadata": {"generateName": "trial-"},
            "spec": {
                "entrypoint": "trial",
                "arguments": {"parameters": [{"name": "pipeline-root", "value": ROOT}]},
                "templates": [*templates, {"name": "trial", "dag": {"tasks": tasks}}],
            },
        }
        path = folder / "trial.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    return write(tmp_path)


def test_nodes_are_in_topological_order(workflow):
    pipeline = read_compiled(workflow)
    assert [node.name for node in pipeline.nodes] == ["First", "Second", "Third"]
    assert (pipeline.name, pipeline.root) == ("trial", ROOT)
    assert pipeline.nodes[2].needs == ("Second",)


def test_a_failed_container_reports_its_cause_and_the_command_to_run_it_again(
    workflow, tmp_path, capsys, monkeypatch
):
    volume = tmp_path / "volume"
    volume.mkdir()
    output = tmp_path / "rehearsal"
    command = [str(workflow), "--output", str(output), "--mount", f"/mnt/volume={volume}"]
    assert main(command) == 1
    again, error = capsys.readouterr().err.splitlines()
    log = output / "logs" / "Third.log"
    assert error == (
        f"error: component Third: expected exit code 0, found 3: the cause. See {log}."
    )
    run = json.loads((output / "run.json").read_text())["run"]
    ui = output / "logs" / "First.ui.json"
    first, *others = (volume / "order").read_text().splitlines()
    assert (
        first == f"{run} --pipeline_root {volume}/artifacts --node_id First --metadata_ui_path {ui}"
    )
    assert [line.split()[4] for line in others] == ["Second", "Third"]

    (volume / "fixed").touch()
    printed = shlex.split(again.removeprefix("to run it again: "))
    assert printed[:3] == ["python", "-m", "pipeline.kubeflow.rehearsal"]
    assert main(printed[3:]) == 0
    assert [line.split()[4] for line in (volume / "order").read_text().splitlines()] == [
        "First",
        "Second",
        "Third",
        "Third",
    ]
    # It is still the same run.
    assert {line.split()[0] for line in (volume / "order").read_text().splitlines()} == {run}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--node", "Thrid"],
            "expected one of First, Second, Third, found 'Thrid'. Did you mean 'Thi",
        ),
        (["--mount", "volume"], "--mount: expected PATH=FOLDER"),
        (["--metadata", "localhost"], "--metadata: expected HOST:PORT, found 'localhost'"),
    ],
)
def test_invalid_options_are_rejected(workflow, tmp_path, capsys, options, sentence):
    assert main([str(workflow), "--output", str(tmp_path / "rehearsal"), *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
    assert not (tmp_path / "rehearsal" / "logs").exists()


@pytest.mark.parametrize(
    "text", ["", "[1]", "kind: Workflow\nspec: {}", "{", "kind: Pod", "a: b: c"]
)
def test_other_files_are_rejected(tmp_path, text):
    path = tmp_path / "pipeline.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"pipeline.yaml: expected an Argo workflow or a pipeline"):
        read_compiled(path)
    with pytest.raises(InputError, match="No such file"):
        read_compiled(tmp_path / "nowhere.yaml")


def test_mounts_match_whole_path_components():
    context = RunContext(Path("/x"), "run", mounts={"/mnt/a": "/v", "/gcs/bucket": "/b"})
    assert context.local('{"root": "/mnt/a/records", "other": "/mnt/ab", "/data/mnt/a": 1}') == (
        '{"root": "/v/records", "other": "/mnt/ab", "/data/mnt/a": 1}'
    )
    assert context.local("gs://bucket/runs gs://buckets") == "/b/runs gs://buckets"
    assert context.stored("gs://bucket/runs") == Path("/b/runs")
    assert context.stored("minio://bucket/runs") == Path("/x/store/minio/bucket/runs")


def test_the_metadata_store_answers_the_same_over_grpc(tmp_path):
    file = tmp_path / "metadata.sqlite"
    with serve_metadata(file) as port:
        config = metadata_store_pb2.MetadataStoreClientConfig(host="localhost", port=port)
        store = MetadataStore(config)
        kind = store.put_artifact_type(metadata_store_pb2.ArtifactType(name="Model"))
        artifact = metadata_store_pb2.Artifact(type_id=kind, uri="gs://bucket/model")
        (identity,) = store.put_artifacts([artifact])
        with pytest.raises(errors.NotFoundError):
            store.get_artifact_type("Nothing")
    connection = metadata_store_pb2.ConnectionConfig()
    connection.sqlite.filename_uri = str(file)
    (found,) = MetadataStore(connection).get_artifacts_by_id([identity])
    assert found.uri == "gs://bucket/model"


def test_this_environment_is_first_on_the_path(workflow, tmp_path):
    """Commands start with `python`, which must be that of the project's environment, as in the image."""
    content = yaml.safe_load(workflow.read_text())
    template = content["spec"]["templates"][1]
    template["container"]["command"] = ["sh", "-c", f"command -v python > {tmp_path}/python"]
    workflow.write_text(yaml.safe_dump(content))
    main([str(workflow), "--output", str(tmp_path / "rehearsal"), "--node", "First"])
    found = Path((tmp_path / "python").read_text().strip())
    assert found.parent == Path(sys.executable).parent
