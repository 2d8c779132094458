"""What a rehearsed v2 pod is given: the JSON and the files of Kubeflow Pipelines 2, nothing kinder."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
import yaml

from pipeline.kubeflow.compiled import read_compiled
from pipeline.kubeflow.containers import RunContext, start_process
from pipeline.kubeflow.launcher_v2 import SESSION
from pipeline.kubeflow.rehearsal import main, run_compiled
from preprocessing.errors import PipelineError

MODEL = {"instanceSchema": "title: tfx.Model\ntype: object\n"}
EXAMPLES = {"instanceSchema": "title: tfx.Examples\ntype: object\n"}
# The first container writes a nested file, an empty folder and its answer; the second one lists what it finds.
MAKE = """
printf '%s' "$1" > {note}/Make.json
folder=$ARTIFACT_LOCAL_PATH/gcs/bucket/runs/trial/one/Make/SALT/model
mkdir -p $folder/Format-Serving $folder/empty
echo weights > $folder/Format-Serving/saved_model.pb
echo other > $ARTIFACT_LOCAL_PATH/gcs/bucket/undeclared
mkdir -p $ARTIFACT_LOCAL_PATH/tmp/kfp_outputs
echo '{answer}' > $ARTIFACT_LOCAL_PATH/tmp/kfp_outputs/output_metadata.json
"""
LIST = 'printf "%s" "$1" > {note}/List.json; cd $ARTIFACT_LOCAL_PATH; find . | sort > {note}/found'
ANSWER = {
    "artifacts": {
        "model": {
            "artifacts": [
                {"metadata": {"pushed": 1, "split_names": "[]", "is_good": True, "sizes": [1]}}
            ]
        }
    }
}


def salt(node: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"one/{node}"))


def write_spec(folder: Path, answer: dict = ANSWER) -> Path:
    """Writes a spec of two containers, shell scripts that get the ExecutorInput as their argument."""
    scripts = {
        "Make": MAKE.format(note=folder, answer=json.dumps(answer)).replace("SALT", salt("Make")),
        "List": LIST.format(note=folder),
    }
    constants = {"input_base": "gs://bucket/records", "steps": 3.0}
    parameters = {name: {"runtimeValue": {"constant": each}} for name, each in constants.items()}
    source = {"producerTask": "Make", "outputArtifactKey": "model"}
    outputs = {
        "Make": {"model": {"artifactType": MODEL, "metadata": {"kind": "3d"}}},
        "List": {"examples": {"artifactType": EXAMPLES}},
    }
    content = {
        "pipelineInfo": {"name": "trial"},
        "defaultPipelineRoot": "gs://bucket/runs",
        "root": {
            "dag": {
                "tasks": {
                    "Make": {
                        "componentRef": {"name": "Make"},
                        "inputs": {"parameters": parameters},
                    },
                    "List": {
                        "componentRef": {"name": "List"},
                        "dependentTasks": ["Make"],
                        "inputs": {"artifacts": {"base": {"taskOutputArtifact": source}}},
                    },
                }
            }
        },
        "components": {
            name: {
                "executorLabel": name,
                "outputDefinitions": {"artifacts": outputs[name]},
            }
            for name in scripts
        },
        "deploymentSpec": {
            "executors": {
                name: {"container": {"command": ["sh", "-c", script], "args": ["sh", "{{$}}"]}}
                for name, script in scripts.items()
            }
        },
    }
    path = folder / "trial-kfp2.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture
def context(tmp_path) -> RunContext:
    return RunContext(tmp_path / "out", "one", mounts={"/gcs/bucket": f"{tmp_path}/bucket"})


def test_a_container_is_given_the_executor_input_of_the_engine_and_no_more(tmp_path, context):
    run_compiled(read_compiled(write_spec(tmp_path)), context, start=start_process)
    uri = f"gs://bucket/runs/trial/one/Make/{salt('Make')}/model"
    made = json.loads((tmp_path / "Make.json").read_text())
    output_file = f"{tmp_path}/out/one/Make/tmp/kfp_outputs/output_metadata.json"
    assert made == {
        # TensorFlow itself reads the bucket of a parameter: here, the folder in its place.
        "inputs": {"parameterValues": {"input_base": f"{tmp_path}/bucket/records", "steps": 3.0}},
        "outputs": {
            "artifacts": {
                "model": {"artifacts": [{"uri": uri, "type": MODEL, "metadata": {"kind": "3d"}}]}
            },
            "outputFile": output_file,
        },
    }
    listed = json.loads((tmp_path / "List.json").read_text())
    assert listed == {
        "inputs": {
            "artifacts": {
                "base": {
                    "artifacts": [
                        {
                            "name": "100",
                            # Not the type of the producer: the engine has a schema without content.
                            "type": {"instanceSchema": ""},
                            "uri": uri,
                            "metadata": {
                                "display_name": "model",
                                "store_session_info": SESSION,
                                "kind": "3d",
                                "pushed": 1,
                                "split_names": "[]",
                                "is_good": 1,
                                "sizes": {"list": [1]},
                            },
                        }
                    ]
                }
            }
        },
        "outputs": {
            "artifacts": {
                "examples": {
                    "artifacts": [
                        {
                            "uri": f"gs://bucket/runs/trial/one/List/{salt('List')}/examples",
                            "type": EXAMPLES,
                        }
                    ]
                }
            },
            "outputFile": output_file.replace("/Make/", "/List/"),
        },
    }


def test_a_pod_has_the_files_of_its_inputs_and_no_others(tmp_path, context):
    """Neither the empty folder, which an object store can't hold, nor what was no artifact."""
    run_compiled(read_compiled(write_spec(tmp_path)), context, start=start_process)
    found = (tmp_path / "found").read_text().splitlines()
    model = f"./gcs/bucket/runs/trial/one/Make/{salt('Make')}/model"
    assert [path for path in found if path.startswith("./gcs/bucket/runs/trial/one/Make")] == [
        "./gcs/bucket/runs/trial/one/Make",
        f"./gcs/bucket/runs/trial/one/Make/{salt('Make')}",
        model,
        f"{model}/Format-Serving",
        f"{model}/Format-Serving/saved_model.pb",
    ]
    assert "./gcs/bucket/undeclared" not in found
    # The parent of an output exists, the output does not.
    assert f"./gcs/bucket/runs/trial/one/List/{salt('List')}" in found
    assert f"./gcs/bucket/runs/trial/one/List/{salt('List')}/examples" not in found


def test_metadata_that_the_engine_can_not_record_is_named(tmp_path, context):
    answer = {"artifacts": {"model": {"artifacts": [{"metadata": {"pushed": None}}]}}}
    pipeline = read_compiled(write_spec(tmp_path, answer))
    with pytest.raises(PipelineError, match="component Make, output model: expected a value of pu"):
        run_compiled(pipeline, context, start=start_process)


def test_artifacts_without_a_mount_are_kept_beside_the_logs(tmp_path, capsys):
    output = tmp_path / "out"
    assert main([str(write_spec(tmp_path)), "--output", str(output), "--run", "one"]) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1] == f"outputs below {output}/store/gcs/bucket/runs"
    )
    (file,) = (output / "store").rglob("saved_model.pb")
    assert file.read_text() == "weights\n"
    # A node's next run replaces them.
    left = file.with_name("left")
    left.touch()
    assert main([str(tmp_path / "trial-kfp2.yaml"), "--output", str(output), "--node", "Make"]) == 0
    assert file.is_file()
    assert not left.exists()
