"""The pipeline compiled for clusters: specs match their schemas, and every container really runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from ml_metadata.proto import metadata_store_pb2

from ahnet_tf.weights.checkpoint import load_network
from pipeline.kubeflow.compiled import read_compiled
from pipeline.kubeflow.containers import RunContext, start_process
from pipeline.kubeflow.metadata_server import serve_metadata
from pipeline.kubeflow.rehearsal import run_compiled
from pipeline.kubeflow_runner import main
from pipeline.local_runner import OPTIONS_VARIABLE
from preprocessing.phantom.dataset import write_cases
from tests.pipeline.kubeflow.small_pipeline import (
    BUCKET,
    CLUSTER,
    HAS_KFP_2,
    check_pushed_model,
    command,
    needs_argo,
    open_metadata,
)

ROOT = Path(__file__).resolve().parents[3]
# Linux' MAX_ARG_STRLEN.
LONGEST_ARGUMENT = 131072
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@needs_argo
def test_pods_of_the_argo_workflow_match_the_settings(compiled):
    workflow = yaml.safe_load((compiled / "ahnet.yaml").read_text())
    assert workflow["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert workflow["spec"]["serviceAccountName"] == "default-editor"
    # With the contexts of the containers, the Pod Security Standard "restricted".
    assert workflow["spec"]["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        "fsGroup": 2000,
    }
    pods = {each["name"]: each for each in workflow["spec"]["templates"] if "container" in each}
    assert len(pods) == len(read_compiled(compiled / "ahnet.yaml").nodes)
    for name, pod in pods.items():
        own = pod["container"]
        assert (own["image"], own["imagePullPolicy"]) == (CLUSTER["image"], "Always")
        assert own["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsUser": 1234,
        }
        mounts = {mount["name"]: mount["mountPath"] for mount in own["volumeMounts"]}
        sources = {mounts[each.pop("name")]: each for each in pod["volumes"]}
        memory = sources.pop("/dev/shm", None)
        assert sources == {
            "/mnt/ahnet": {"persistentVolumeClaim": {"claimName": "ahnet"}},
            "/var/store": {"secret": {"secretName": "store"}},
        }
        variables = {each["name"]: each.get("valueFrom", each.get("value")) for each in own["env"]}
        assert variables["STORE_KEY"] == {"secretKeyRef": {"key": "key", "name": "store"}}
        chosen = CLUSTER["pods"]["Trainer3D"] if name == "trainer3d" else {}
        assert variables.get("NCCL_DEBUG") == chosen.get("environment", {}).get("NCCL_DEBUG")
        # Only root may write to the root of a file system.
        assert pod["outputs"]["artifacts"][0]["path"].startswith("/tmp/")
        assert max(len(word.encode()) for word in own["args"]) < LONGEST_ARGUMENT
        if name == "trainer3d":
            assert memory == {"emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}
            assert own["resources"] == {"limits": {"nvidia.com/mig-3g.40gb": "2"}}
            assert pod["nodeSelector"] == {"pool": "gpu"}
            assert pod["tolerations"] == CLUSTER["pods"]["Trainer3D"]["tolerations"]
        else:
            asked = {"cpu": "500m", "memory": "2Gi"}
            assert own["resources"] == {"limits": asked, "requests": asked}
            assert "nodeSelector" not in pod
            assert memory is None


def test_the_spec_for_vertex_is_in_its_bucket(compiled):
    job = json.loads((compiled / "ahnet.json").read_text())
    json_format.ParseDict(job, pipeline_spec_pb2.PipelineJob())
    assert job["runtimeConfig"]["gcsOutputDirectory"] == f"{BUCKET}/runs/artifacts"


def test_the_v2_spec_matches_the_schema_of_kubeflow_pipelines(compiled):
    """Parsing into the messages of kfp-pipeline-spec rejects unknown names and wrong types."""
    for_kubeflow, platform = yaml.safe_load_all((compiled / "ahnet-kfp2.yaml").read_text())
    assert for_kubeflow["defaultPipelineRoot"] == "minio://mlpipeline/team-a"
    spec = json_format.ParseDict(for_kubeflow, pipeline_spec_pb2.PipelineSpec())
    assert spec.schema_version == "2.1.0"
    deployment = json_format.ParseDict(
        for_kubeflow["deploymentSpec"], pipeline_spec_pb2.PipelineDeploymentConfig()
    )

    tasks = spec.root.dag.tasks
    for name, task in tasks.items():
        component = spec.components[task.component_ref.name]
        executor = deployment.executors[component.executor_label]
        # Kubeflow Pipelines 2 runs containers and importers, but no resolvers and no hooks.
        assert executor.WhichOneof("spec") == "container"
        assert not executor.container.HasField("lifecycle")
        assert executor.container.image == CLUSTER["image"]
        assert set(component.input_definitions.artifacts) == set(task.inputs.artifacts)
        for source in task.inputs.artifacts.values():
            producer = source.task_output_artifact.producer_task
            made = spec.components[tasks[producer].component_ref.name].output_definitions.artifacts
            assert producer in task.dependent_tasks
            assert source.task_output_artifact.output_artifact_key in made
        # The engine's cache does not notice changed records, so it must be off.
        assert not task.caching_options.enable_cache, name

    resources = deployment.executors["Trainer3D_executor"].container.resources
    found = (resources.accelerator.type, resources.accelerator.count)
    assert found == ("nvidia.com/mig-3g.40gb", 2)
    variables = {
        name: {each.name: each.value for each in executor.container.env}
        for name, executor in deployment.executors.items()
    }
    assert variables.pop("Trainer3D_executor") == CLUSTER["pods"]["Trainer3D"]["environment"]
    assert not any(variables.values())
    for name in ("Pusher_executor", "ImportExampleGen_executor"):
        resources = deployment.executors[name].container.resources
        limits = (resources.cpu_limit, resources.memory_limit)
        assert limits == (0.5, pytest.approx(2 * 1.073741824))

    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == set(deployment.executors)
    common = {
        "imagePullPolicy": "Always",
        "imagePullSecret": [{"secretName": "registry"}],
        "pvcMount": [{"constant": "ahnet", "mountPath": "/mnt/ahnet"}],
        "secretAsEnv": [
            {"secretName": "store", "keyToEnv": [{"secretKey": "key", "envVar": "STORE_KEY"}]}
        ],
        "secretAsVolume": [{"secretName": "store", "mountPath": "/var/store"}],
        "securityContext": {"runAsUser": 1234, "runAsNonRoot": True},
    }
    assert executors["Pusher_executor"] == common
    assert executors["Trainer3D_executor"] == common | {
        "nodeSelector": {"labels": {"pool": "gpu"}},
        "tolerations": CLUSTER["pods"]["Trainer3D"]["tolerations"],
        "emptyDirMounts": [
            {
                "volumeName": "shared-memory",
                "mountPath": "/dev/shm",
                "medium": "Memory",
                "sizeLimit": "8Gi",
            }
        ],
    }


def test_settings_that_ask_for_nothing_new_write_no_new_fields(
    tmp_path, phantom_records, tiny_options, capsys
):
    """An engine that does not know a field of the platform spec fails every pod."""
    options = command(tmp_path, "kubeflow-v2", phantom_records, tiny_options)
    plain = {name: CLUSTER[name] for name in ("image", "storage_root", "volumes")}
    (tmp_path / "kubeflow-v2.json").write_text(json.dumps(plain))
    assert main(options) == 0
    path = tmp_path / "specs" / "ahnet-kfp2.yaml"
    spec, platform = yaml.safe_load_all(path.read_text())
    # The cluster's own.
    assert "defaultPipelineRoot" not in spec
    assert read_compiled(path).root == "minio://mlpipeline/v2/artifacts"
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    mount = {"pvcMount": [{"constant": "ahnet", "mountPath": "/mnt/ahnet"}]}
    assert all(pod == mount for pod in pods)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str(path)
    assert printed[1].endswith(
        f"""create_run_from_pipeline_package('"'"'{path}'"'"', experiment_name='"'"'ahnet'"'"')'"""
    )


@pytest.mark.parametrize("engine", [pytest.param("kubeflow", marks=needs_argo), "vertex"])
def test_the_tfx_command_line_compiles_the_same_pipeline(
    compiled, tmp_path, phantom_records, tiny_options, monkeypatch, engine
):
    from click.testing import CliRunner
    from tfx.tools.cli.cli_main import cli_group

    options = command(tmp_path, engine, phantom_records, tiny_options)
    monkeypatch.setenv(OPTIONS_VARIABLE, subprocess.list2cmdline(options))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(ROOT)
    words = ["pipeline", "compile", f"--engine={engine}"]
    ran = CliRunner().invoke(cli_group, [*words, "--pipeline_path=pipeline/kubeflow_runner.py"])
    assert ran.exit_code == 0, ran.output
    assert "compiled successfully" in ran.output
    name = {"kubeflow": "ahnet.yaml", "vertex": "ahnet.json"}[engine]
    assert read_compiled(tmp_path / "specs" / name) == read_compiled(compiled / name)


def test_pod_settings_for_an_unknown_component_are_rejected(
    tmp_path, phantom_records, tiny_options, capsys
):
    options = command(tmp_path, "kubeflow", phantom_records, tiny_options)
    content = CLUSTER | {"pods": {"Trainer3d": {"gpus": 1}}}
    (tmp_path / "kubeflow.json").write_text(json.dumps(content))
    assert main(options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("found 'Trainer3d'. Did you mean 'Trainer3D'?")
    assert not (tmp_path / "specs").exists()


@needs_argo
def test_containers_of_the_argo_workflow_run_to_a_trained_network(
    compiled, start, volume, tmp_path
):
    """`make test-kfp` runs the others too, in test_engines.py."""
    pipeline = read_compiled(compiled / "ahnet.yaml")
    names = [node.name for node in pipeline.nodes]
    first = names[: names.index("Trainer2D") + 1]
    file = tmp_path / "metadata.sqlite"

    def run(*nodes: str, name: str = "ahnet-abcde", how: Callable = start) -> None:
        with serve_metadata(file) as port:
            context = RunContext(
                tmp_path / "logs", name, ("localhost", port), {"/mnt/ahnet": str(volume)}
            )
            for node in nodes:
                run_compiled(pipeline, context, only=node, start=how)

    run(*first)
    (network,) = volume.glob("runs/artifacts/Trainer2D/model/*/Format-Serving")
    assert load_network(network)[1].architecture == "mcgcn"
    store = open_metadata(file)
    states = metadata_store_pb2.Execution.State
    executions = store.get_executions()
    assert len(executions) == len(first)
    assert {each.last_known_state for each in executions} == {states.COMPLETE}
    pods = {each.custom_properties["kfp_pod_name"].string_value for each in executions}
    assert pods == {f"ahnet-abcde-{name.lower()}" for name in first}

    # One node again, always in a new interpreter: it has the longest arguments, and finds its
    # finished execution of this run.
    run("ExampleValidator", how=start_process)
    assert len(store.get_executions()) == len(first)
    # In the next run nothing has changed.
    run("TaskSchema", name="ahnet-fghij")
    newest = max(store.get_executions(), key=lambda each: each.id)
    assert newest.last_known_state == states.CACHED


@needs_argo
def test_volumes_spans_and_warm_start_in_an_argo_workflow(
    start, tmp_path, phantom_records, tiny_options, grid
):
    kubeflow = command(tmp_path, "kubeflow", phantom_records, tiny_options)
    kubeflow[kubeflow.index("--input")] = "--volumes"
    chosen = ["--spans", "2", "--warm-start", "--threshold", "tumour=0.25"]
    assert main([*kubeflow, *chosen, "--engine", "kubeflow"]) == 0
    pipeline = read_compiled(tmp_path / "specs" / "ahnet.yaml")
    names = {node.name for node in pipeline.nodes}
    assert names >= {"ConvertVolumes", "SpansBefore", "NewestSpans", "EarlierModel"}
    assert not names & {"ImportExampleGen", "Trainer2D"}
    settings = json.loads((tmp_path / "specs" / "pipeline.json").read_text())
    assert settings["input"] == "/mnt/ahnet/records"
    assert settings["thresholds"] == {"tumour": 0.25, "liver": 0.0}

    # The path of the volumes exists in the pod only, not on this machine.
    folder = tmp_path / "volume" / "records" / "span-7"
    write_cases(folder, 2, seed=5, settings=grid, progress=False)
    with serve_metadata(tmp_path / "metadata.sqlite") as port:
        mounts = {"/mnt/ahnet": str(tmp_path / "volume")}
        context = RunContext(tmp_path / "logs", "one", ("localhost", port), mounts)
        for node in ("ConvertVolumes", "SpansBefore"):
            run_compiled(pipeline, context, only=node, start=start)
    (manifest,) = (tmp_path / "volume").glob(
        "runs/artifacts/ConvertVolumes/manifest/*/manifest.json"
    )
    assert json.loads(manifest.read_text())["found"] == 2
    # TFX records no pod for resolvers.
    executions = open_metadata(tmp_path / "metadata.sqlite").get_executions()
    pods = [each.custom_properties["kfp_pod_name"].string_value for each in executions]
    assert pods == ["one-convertvolumes", ""]


def test_volumes_spans_and_warm_start_need_a_metadata_store(
    tmp_path, phantom_records, tiny_options, capsys
):
    kubeflow_v2 = command(tmp_path, "kubeflow-v2", phantom_records, tiny_options)
    for option in (["--spans", "2"], ["--warm-start"]):
        assert main([*kubeflow_v2, *option]) == 1
        assert "expected an engine with a metadata store" in capsys.readouterr().err


@pytest.mark.skipif(HAS_KFP_2, reason="kfp 2 itself runs them, in test_engines.py")
def test_every_container_of_the_v2_spec_runs_to_a_pushed_model(
    compiled, start, volume, tmp_path, task
):
    pipeline = read_compiled(compiled / "ahnet-kfp2.yaml")
    context = RunContext(tmp_path / "logs", "one", mounts={"/mnt/ahnet": str(volume)})
    run_compiled(pipeline, context, start=start)
    check_pushed_model(volume, task)

    def blessing() -> dict:
        return json.loads(context.artifacts("Evaluator").read_text())["blessing"]["metadata"]

    assert blessing()["blessed"] == 1
    assert "baseline_model" not in blessing()
    # Now there is a pushed model to compare with; here it is the same model.
    for name in ("LastPushedModel", "Evaluator"):
        run_compiled(pipeline, context, only=name, start=start)
    assert blessing()["blessed"] == 1
    baseline = blessing()["baseline_model"]
    root = "minio://mlpipeline/team-a/ahnet/one/LastPushedModel/"
    assert baseline.startswith(root)
    assert baseline.endswith("/model")
    (pushed,) = context.stored(baseline).glob("Format-Serving/saved_model.pb")
    assert pushed.is_file()
