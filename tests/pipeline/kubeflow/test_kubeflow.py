"""The pipeline compiled for clusters: specs match their schemas, and every container really runs.

`AHNET_TEST_PROCESSES=1` runs every container's command in a new interpreter instead of a fork of one
that has already imported the frameworks: minutes slower, same results.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from ml_metadata import MetadataStore
from ml_metadata.proto import metadata_store_pb2

from ahnet_tf.inference.predictor import open_predictor
from pipeline.kubeflow.compiled import read_compiled
from pipeline.kubeflow.containers import RunContext, Start, start_process
from pipeline.kubeflow.metadata_server import serve_metadata
from pipeline.kubeflow.rehearsal import run_compiled
from pipeline.kubeflow_runner import main
from pipeline.local_runner import OPTIONS_VARIABLE
from preprocessing.phantom.ct import PhantomSettings
from preprocessing.phantom.dataset import write_cases
from tests.fork_server import ForkServer

ROOT = Path(__file__).resolve().parents[3]
BUCKET = "gs://ahnet-bucket"
# Linux' MAX_ARG_STRLEN.
LONGEST_ARGUMENT = 131072
CLUSTER = {
    "image": "registry.example.org/ahnet-tf:0.1.0",
    "storage_root": "/mnt/ahnet/runs",
    "image_pull_policy": "Always",
    "image_pull_secrets": ["registry"],
    "volumes": [{"claim": "ahnet", "mount_path": "/mnt/ahnet"}],
    "secrets": [{"name": "store", "variables": {"key": "STORE_KEY"}, "mount_path": "/var/store"}],
    "pods": {
        "default": {"cpu": "500m", "memory": "2Gi"},
        "Trainer3D": {
            "gpus": 2,
            "node_selector": {"pool": "gpu"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "environment": {"NCCL_DEBUG": "WARN"},
        },
    },
}
ENGINES = {
    "kubeflow": ("/mnt/ahnet", CLUSTER),
    "vertex": (BUCKET, CLUSTER | {"storage_root": f"{BUCKET}/runs"}),
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def command(folder: Path, engine: str, records: Path, options: tuple[str, ...]) -> list[str]:
    """Returns the options that compile the smallest pipeline for an engine into `folder`."""
    data, cluster = ENGINES[engine]
    file = folder / f"{engine}.json"
    file.write_text(json.dumps(cluster), encoding="utf-8")
    task = str(records / "task.json")
    own = ["--cluster", str(file), "--input", f"{data}/records", "--output", str(folder / "specs")]
    # Training quality does not matter here: two steps, and any model is blessed.
    short = ["--steps", "2", "--set", "warmup_steps=0", "--set", "evaluate_every=0"]
    short += ["--threshold-liver", "0"]
    return [*own, "--task", task, *options, *short]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, phantom_records, tiny_options) -> Path:
    """The folder of the specs for both engines."""
    folder = tmp_path_factory.mktemp("compiled")
    for engine in ENGINES:
        options = command(folder, engine, phantom_records, tiny_options)
        assert main([*options, "--engine", engine]) == 0
    return folder / "specs"


# What every container's command imports.
FRAMEWORKS = (
    "tfx.orchestration.kubeflow.container_entrypoint",
    "pipeline.kubeflow.entrypoint_v2",
    "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor",
    "tfx.orchestration.kubeflow.v2.file_based_example_gen.driver",
    "pipeline.dag",
    "pipeline.components.trainer",
)


@pytest.fixture(scope="module")
def start() -> Start:
    """Runs a container's command (see the module's docstring)."""
    if os.environ.get("AHNET_TEST_PROCESSES"):
        yield start_process
        return
    server = ForkServer(*FRAMEWORKS)

    def fork(command, environment, log):
        python, option, module, *arguments = command
        assert (python, option) == ("python", "-m")
        code = (
            "import os, runpy, sys\n"
            f"os.environ.clear(); os.environ.update({dict(environment)!r})\n"
            f"sys.argv = {[module, *arguments]!r}\n"
            f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        )
        return server.wait(server.start(code, log))

    yield fork
    server.close()


@pytest.fixture
def volume(tmp_path, phantom_records) -> Path:
    """A folder that stands for the cluster's volume or bucket, with the records in it."""
    folder = tmp_path / "volume"
    shutil.copytree(phantom_records, folder / "records")
    return folder


def check_pushed_model(volume: Path, task) -> None:
    predictor = open_predictor(volume / "runs" / "serving_model" / "ahnet")
    assert predictor.settings.task == task
    probabilities = predictor.predict(np.zeros((1, *task.patch_shape_zyx, 1), np.int16))
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)


def test_pods_of_the_argo_workflow_match_the_settings(compiled):
    workflow = yaml.safe_load((compiled / "ahnet.yaml").read_text())
    assert workflow["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    pods = {each["name"]: each for each in workflow["spec"]["templates"] if "container" in each}
    assert len(pods) == len(read_compiled(compiled / "ahnet.yaml").nodes)
    for name, pod in pods.items():
        own = pod["container"]
        assert (own["image"], own["imagePullPolicy"]) == (CLUSTER["image"], "Always")
        mounts = {mount["name"]: mount["mountPath"] for mount in own["volumeMounts"]}
        sources = {mounts[each.pop("name")]: each for each in pod["volumes"]}
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
            assert own["resources"] == {"limits": {"nvidia.com/gpu": "2"}}
            assert pod["nodeSelector"] == {"pool": "gpu"}
            assert pod["tolerations"] == CLUSTER["pods"]["Trainer3D"]["tolerations"]
        else:
            asked = {"cpu": "500m", "memory": "2Gi"}
            assert own["resources"] == {"limits": asked, "requests": asked}
            assert "nodeSelector" not in pod


def test_the_v2_spec_matches_the_schema_of_kubeflow_pipelines(compiled):
    """Parsing into the messages of kfp-pipeline-spec rejects unknown names and wrong types."""
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    job = json.loads((compiled / "ahnet.json").read_text())
    json_format.ParseDict(job, pipeline_spec_pb2.PipelineJob())
    for_kubeflow, platform = yaml.safe_load_all((compiled / "ahnet-kfp2.yaml").read_text())
    root = f"{BUCKET}/runs/artifacts"
    assert job["runtimeConfig"]["gcsOutputDirectory"] == root
    assert for_kubeflow == job["pipelineSpec"] | {"defaultPipelineRoot": root}
    spec = json_format.ParseDict(for_kubeflow, pipeline_spec_pb2.PipelineSpec())
    assert spec.schema_version == "2.1.0"
    deployment = json_format.ParseDict(
        for_kubeflow["deploymentSpec"], pipeline_spec_pb2.PipelineDeploymentConfig()
    )

    tasks = spec.root.dag.tasks
    for name, task in tasks.items():
        component = spec.components[task.component_ref.name]
        executor = deployment.executors[component.executor_label]
        # Kubeflow Pipelines 2 runs containers and importers, but no resolvers.
        assert executor.WhichOneof("spec") == "container"
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
    assert (resources.accelerator.type, resources.accelerator.count) == ("nvidia.com/gpu", 2)
    variables = {
        name: {each.name: each.value for each in executor.container.env}
        for name, executor in deployment.executors.items()
    }
    assert variables.pop("Trainer3D_executor") == CLUSTER["pods"]["Trainer3D"]["environment"]
    assert not any(variables.values())
    resources = deployment.executors["Pusher_executor"].container.resources
    assert (resources.cpu_limit, resources.memory_limit) == (0.5, pytest.approx(2 * 1.073741824))

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
    }
    assert executors["Pusher_executor"] == common
    assert executors["Trainer3D_executor"] == common | {
        "nodeSelector": {"labels": {"pool": "gpu"}},
        "tolerations": CLUSTER["pods"]["Trainer3D"]["tolerations"],
    }


@pytest.mark.parametrize("engine", ENGINES)
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


def test_every_container_of_the_argo_workflow_runs_to_a_pushed_model(
    compiled, start, volume, tmp_path, task
):
    pipeline = read_compiled(compiled / "ahnet.yaml")
    file = tmp_path / "metadata.sqlite"

    def run(only: str | None = None, name: str = "ahnet-abcde", how: Callable = start) -> None:
        with serve_metadata(file) as port:
            context = RunContext(
                tmp_path / "logs", name, ("localhost", port), {"/mnt/ahnet": str(volume)}
            )
            run_compiled(pipeline, context, only=only, start=how)

    run()
    check_pushed_model(volume, task)
    connection = metadata_store_pb2.ConnectionConfig()
    connection.sqlite.filename_uri = str(file)
    store = MetadataStore(connection)
    states = metadata_store_pb2.Execution.State
    executions = store.get_executions()
    assert len(executions) == len(pipeline.nodes)
    assert {each.last_known_state for each in executions} == {states.COMPLETE}
    pods = {each.custom_properties["kfp_pod_name"].string_value for each in executions}
    # TFX records no pod for resolvers.
    assert {f"ahnet-abcde-{node.name.lower()}" for node in pipeline.nodes} - pods == {
        "ahnet-abcde-latestblessedmodel"
    }

    # One node again, always in a new interpreter: it has the longest arguments, and finds its
    # finished execution of this run.
    run("ExampleValidator", how=start_process)
    assert len(store.get_executions()) == len(pipeline.nodes)
    # In the next run nothing has changed.
    run("TaskSchema", name="ahnet-fghij")
    newest = max(store.get_executions(), key=lambda each: each.id)
    assert newest.last_known_state == states.CACHED


def test_volumes_spans_and_warm_start_need_a_metadata_store(
    start, tmp_path, phantom_records, tiny_options, capsys
):
    kubeflow = command(tmp_path, "kubeflow", phantom_records, tiny_options)
    kubeflow[kubeflow.index("--input")] = "--volumes"
    chosen = ["--spans", "2", "--warm-start", "--threshold", "tumour=0.25"]
    assert main([*kubeflow, *chosen]) == 0
    pipeline = read_compiled(tmp_path / "specs" / "ahnet.yaml")
    names = {node.name for node in pipeline.nodes}
    assert names >= {"ConvertVolumes", "SpanBefore", "NewestSpans", "EarlierModel"}
    assert not names & {"ImportExampleGen", "Trainer2D"}
    settings = json.loads((tmp_path / "specs" / "pipeline.json").read_text())
    assert settings["input"] == "/mnt/ahnet/records"
    assert settings["thresholds"] == {"tumour": 0.25, "liver": 0.0}

    # The path of the volumes exists in the pod only, not on this machine.
    phantom = PhantomSettings(shape_xyz=(32, 32, 16), spacing_mm=(10.0, 10.0, 10.0))
    write_cases(tmp_path / "volume" / "records" / "span-7", 2, seed=5, settings=phantom)
    with serve_metadata(tmp_path / "metadata.sqlite") as port:
        mounts = {"/mnt/ahnet": str(tmp_path / "volume")}
        context = RunContext(tmp_path / "logs", "one", ("localhost", port), mounts)
        run_compiled(pipeline, context, only="ConvertVolumes", start=start)
    (manifest,) = (tmp_path / "volume").glob(
        "runs/artifacts/ConvertVolumes/manifest/*/manifest.json"
    )
    assert json.loads(manifest.read_text())["found"] == 2

    capsys.readouterr()
    vertex = command(tmp_path, "vertex", phantom_records, tiny_options)
    for option in (["--spans", "2"], ["--warm-start"]):
        assert main([*vertex, "--engine", "vertex", *option]) == 1
        assert "expected an engine with a metadata store" in capsys.readouterr().err


def test_every_container_of_the_v2_spec_runs_to_a_pushed_model(
    compiled, start, volume, tmp_path, task
):
    pipeline = read_compiled(compiled / "ahnet-kfp2.yaml")
    context = RunContext(tmp_path / "logs", "one", mounts={BUCKET: str(volume)})
    run_compiled(pipeline, context, start=start)
    check_pushed_model(volume, task)

    def blessing() -> dict:
        (made,) = json.loads(context.artifacts("Evaluator").read_text())["blessing"]["artifacts"]
        return made["metadata"]

    assert blessing()["blessed"] == 1
    assert "baseline_model" not in blessing()
    # Now there is a pushed model to compare with; here it is the same model.
    for name in ("LastPushedModel", "Evaluator"):
        run_compiled(pipeline, context, only=name, start=start)
    assert blessing()["blessed"] == 1
    assert blessing()["baseline_model"].endswith("/one/LastPushedModel/model")
