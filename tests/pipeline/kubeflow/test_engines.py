"""The compiled pipelines in code of the engines themselves; `make test-kfp` installs what is not there.

kfp 2 runs the v2 spec from file to outputs: its own reader, order of the tasks, ExecutorInput and reading
of what a container answers. Only its Docker engine is a stand-in. Argo's linter reads the workflow, whose containers
then all run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ml_metadata.proto import metadata_store_pb2

from pipeline.kubeflow.compiled import read_compiled
from pipeline.kubeflow.containers import RunContext
from pipeline.kubeflow.metadata_server import serve_metadata
from pipeline.kubeflow.rehearsal import run_compiled
from tests.pipeline.kubeflow.container_engine import serve_containers
from tests.pipeline.kubeflow.small_pipeline import (
    CLUSTER,
    HAS_KFP_2,
    check_pushed_model,
    needs_argo,
    open_metadata,
)

# What a container's command is given: the class of its executor, and the ExecutorInput.
OPTIONS = ("--executor_class_path", "--json_serialized_invocation_args")
FOLDER = os.environ.get("AHNET_KFP_ENGINES", "")
HOW = "make test-kfp installs the engines and runs this"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def engine(name: str, program: str) -> Path:
    """Returns the path of an engine's program; skips the test if it could not be installed."""
    folder = Path(FOLDER).resolve()
    if not (folder / f"{name}.version").is_file():
        log = folder / f"{name}.log"
        if not log.is_file():
            pytest.skip(f"{name} is not among the ENGINES of make test-kfp")
        reason = " ".join(log.read_text(encoding="utf-8")[-300:].split())
        pytest.skip(f"{name} could not be installed: {reason}")
    return folder / program


def run(*words: object, **environment: str) -> tuple[int, str]:
    """Runs a command; returns its exit code and output."""
    ran = subprocess.run(
        [str(word) for word in words],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return ran.returncode, ran.stdout


@pytest.mark.skipif(not (FOLDER or HAS_KFP_2), reason=HOW)
def test_kfp_2_runs_the_v2_spec_to_a_pushed_model(compiled, start, volume, tmp_path, task):
    python = sys.executable if HAS_KFP_2 else engine("kfp", "kfp/bin/python")
    spec = compiled / "ahnet-kfp2.yaml"
    nodes = read_compiled(spec).nodes

    given = {}

    def mounted(command, environment, log):
        words = [word.replace("/mnt/ahnet", str(volume)) for word in command]
        executor, content = (words[words.index(option) + 1] for option in OPTIONS)
        given[executor] = json.loads(content)["inputs"]
        return start(words, environment, log)

    script = Path(__file__).with_name("kfp_local.py")
    (tmp_path / "logs").mkdir()
    with serve_containers(CLUSTER["image"], mounted, tmp_path / "logs") as address:
        # This project's path would hide packages of the other environment.
        words = (python, script, spec, tmp_path / "out")
        code, output = run(*words, DOCKER_HOST=address, PYTHONPATH="")
    assert code == 0, output
    # Of every component and of the pipeline.
    assert output.count("finished with status") == len(nodes) + 1
    check_pushed_model(volume, task)

    def passed(executor: str, name: str) -> dict:
        (artifact,) = given[executor]["artifacts"][name]["artifacts"]
        return artifact

    # The engine knows no types but its own, so that the pod must know better; metadata it hands on.
    model = passed("pipeline.components.resolvers._AgainstPushed", "model")
    assert model["type"]["schemaTitle"] == "system.Artifact"
    blessing = passed("tfx.components.pusher.executor.Executor", "model_blessing")
    assert blessing["metadata"]["blessed"] == 1


@needs_argo
@pytest.mark.skipif(not FOLDER, reason=HOW)
def test_argo_accepts_the_workflow(compiled, tmp_path):
    argo = engine("argo", "bin/argo")
    words = (argo, "lint", "--offline", "--no-color")
    code, output = run(*words, compiled / "ahnet.yaml")
    assert code == 0, output
    assert "no linting errors found" in output
    # It does read the file: neither a misspelt field nor a missing task passes.
    workflow = yaml.safe_load((compiled / "ahnet.yaml").read_text())
    (dag,) = [each for each in workflow["spec"]["templates"] if "dag" in each]
    broken = tmp_path / "broken.yaml"
    for place, name, value, found in (
        (dag, "nodeSelektor", {}, 'unknown field "spec.templates[0].nodeSelektor"'),
        (dag["dag"]["tasks"][0], "dependencies", ["trainer9d"], "invalid dependency trainer9d"),
    ):
        kept = dict(place)
        place[name] = value
        broken.write_text(yaml.safe_dump(workflow))
        code, output = run(*words, broken)
        assert code == 1
        assert found in output
        place.clear()
        place.update(kept)


@needs_argo
@pytest.mark.skipif(not FOLDER, reason=HOW)
def test_every_container_of_the_argo_workflow_runs_to_a_pushed_model(
    compiled, start, volume, tmp_path, task
):
    """By the rehearsal: Argo itself needs a cluster."""
    pipeline = read_compiled(compiled / "ahnet.yaml")
    file = tmp_path / "metadata.sqlite"
    with serve_metadata(file) as port:
        mounts = {"/mnt/ahnet": str(volume)}
        context = RunContext(tmp_path / "logs", "ahnet-abcde", ("localhost", port), mounts)
        run_compiled(pipeline, context, start=start)
    check_pushed_model(volume, task)
    executions = open_metadata(file).get_executions()
    assert len(executions) == len(pipeline.nodes)
    complete = metadata_store_pb2.Execution.State.COMPLETE
    assert {each.last_known_state for each in executions} == {complete}
    pods = {each.custom_properties["kfp_pod_name"].string_value for each in executions}
    # TFX records no pod for resolvers.
    assert {f"ahnet-abcde-{node.name.lower()}" for node in pipeline.nodes} - pods == {
        "ahnet-abcde-latestblessedmodel"
    }
