"""Cluster settings: reading, quantities, and errors for invalid values."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from kubernetes.utils import parse_quantity

from pipeline import kubeflow_runner
from pipeline.kubeflow.cluster import KubeflowSettings, PodSettings, VolumeSettings
from pipeline.kubeflow.settings_schema import settings_schema
from pipeline.kubeflow_runner import main
from preprocessing.errors import SettingsError
from preprocessing.settings import load_settings, to_dict
from tests.pipeline.kubeflow.small_pipeline import HAS_ARGO

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = {
    "image": "registry.example.org/ahnet-tf:0.1.0",
    "storage_root": "/mnt/ahnet/runs",
    "volumes": [{"claim": "ahnet", "mount_path": "/mnt/ahnet"}],
    "pods": {"default": {"cpu": "2"}, "Trainer3D": {"gpus": 1, "memory": "32Gi"}},
}


@pytest.fixture
def write(tmp_path):
    def write_settings(**changes):
        path = tmp_path / "kubeflow.json"
        path.write_text(json.dumps(CLUSTER | changes), encoding="utf-8")
        return path

    return write_settings


def test_settings_survive_a_round_trip(write):
    settings = load_settings(write(), KubeflowSettings)
    assert settings.volumes == (VolumeSettings("ahnet", "/mnt/ahnet"),)
    assert settings.pod("Trainer3D") == PodSettings(gpus=1, memory="32Gi")
    assert settings.pod("Pusher") == PodSettings(cpu="2")
    assert load_settings(write(**to_dict(settings)), KubeflowSettings) == settings


@pytest.mark.parametrize(
    ("text", "number"),
    [("4", 4), ("500m", 0.5), ("1.5", 1.5), ("2k", 2000), ("1Ki", 1024), ("32Gi", 32 * 2**30)],
)
def test_kubernetes_quantities(text, number):
    assert parse_quantity(PodSettings(memory=text).memory) == number


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"imge": "x"}, r"settings among image, .*found 'imge'. Did you mean 'image'\?"),
        ({"pods": {"default": {"gpu": 1}}}, r"pods: default: .*'gpu'. Did you mean 'gpus'\?"),
        ({"pods": {"default": {"memory": "8 GB"}}}, "memory: expected a quantity .*'8 GB'"),
        ({"pods": {"default": {"gpus": True}}}, "gpus: expected a whole number"),
        (
            {"pods": {"default": {"environment": {"A B": "1"}}}},
            "pods: default: environment: expected texts by names of environment variables, found {'A B'",
        ),
        (
            {"pods": {"default": {"environment": {"A": 1}}}},
            "environment: expected texts by names of environment variables",
        ),
        (
            {"pods": {"default": {"node_selector": ["a"]}}},
            "node_selector: expected a JSON object, found",
        ),
        (
            {"volumes": [{"claim": "ahnet"}]},
            r"volumes\[0\]: expected the setting 'mount_path', found none",
        ),
        ({"volumes": [{"claim": "A B", "mount_path": "/x"}]}, "claim: expected a name in Kubern"),
        ({"volumes": {"claim": "ahnet"}}, "volumes: expected a list, found"),
        ({"secrets": [{"name": "key"}]}, "secret key: expected variables or a mount_path"),
        (
            {"secrets": [{"name": "k", "variables": {"a": "1B"}}]},
            "names of environment variables by key, found {'a': '1B'}",
        ),
        ({"storage_root": "/elsewhere"}, "storage_root: .*found /elsewhere, with /mnt/ahnet"),
        ({"storage_root": "runs"}, "storage_root: expected an address gs://BUCKET/... or a folder"),
        (
            {"storage_root": "gs://"},
            "storage_root: expected an address gs://BUCKET/... or a folder",
        ),
        (
            {"storage_root": "minio://mlpipeline/runs"},
            "TensorFlow can't read that store: there, only artifact_root may be.",
        ),
        (
            {"artifact_root": "hdfs://mlpipeline/runs"},
            "artifact_root: expected a bucket's address gs://, minio://, s3://BUCKET/..., found 'hdfs",
        ),
        ({"artifact_root": "s3://B/runs"}, "artifact_root: expected a bucket's address"),
        (
            {"namespace": "Team_A"},
            "namespace: expected a namespace: up to 63 lower-case letters, .*found 'Team_A'",
        ),
        ({"namespace": "a" * 64}, "namespace: expected a namespace"),
        ({"namespace": "team-a-"}, "namespace: expected a namespace"),
        ({"namespaces": "team-a"}, "found 'namespaces'. Did you mean 'namespace'?"),
        ({"service_account": "Editor"}, "service_account: expected a name in Kubernetes"),
        ({"run_as_user": -1}, "run_as_user: expected a whole number of at least 0"),
        (
            {"pods": {"default": {"shared_memory": "8 GB"}}},
            "shared_memory: expected a quantity .*'8 GB'",
        ),
        ({"image": 3}, "image: expected the name of an image, found 3"),
        ({"image_pull_policy": "never"}, "image_pull_policy: expected one of Always"),
        ({"beam_options": ["runner"]}, "beam_options: expected a list of options like"),
    ],
)
def test_invalid_settings_are_rejected_with_their_place(write, changes, sentence):
    with pytest.raises(SettingsError, match=sentence):
        load_settings(write(**changes), KubeflowSettings)


def test_the_published_schema_is_that_of_the_settings():
    schema = json.loads((ROOT / "docs" / "kubeflow.schema.json").read_text(encoding="utf-8"))
    assert schema == settings_schema()
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"imge": "x"}, "'imge' was unexpected"),
        ({"namespace": "Team_A"}, "'Team_A' does not match"),
        ({"artifact_root": "hdfs://mlpipeline/runs"}, "'hdfs://mlpipeline/runs' does not match"),
        ({"run_as_user": "1000"}, "'1000' is not of type 'integer'"),
        ({"image_pull_policy": "never"}, "'never' is not one of"),
        ({"volumes": [{"claim": "ahnet"}]}, "'mount_path' is a required property"),
        ({"pods": {"default": {"shared_memory": "8 GB"}}}, "'8 GB' does not match"),
    ],
)
def test_the_published_schema_finds_what_the_settings_reject(write, changes, words):
    validator = jsonschema.Draft202012Validator(settings_schema())
    validator.validate(CLUSTER)
    with pytest.raises(jsonschema.ValidationError, match=words):
        validator.validate(CLUSTER | changes)
    with pytest.raises(SettingsError):
        load_settings(write(**changes), KubeflowSettings)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--engine", "kubflow"],
            "--engine: expected one of kubeflow-v2, kubeflow, vertex, found 'kubflow'. Did",
        ),
        (["--engine", "local"], "On this machine it runs by python -m pipeline.local_runner."),
        (
            ["--cluster", "nowhere.json"],
            "nowhere.json: expected a JSON file of settings, found No such",
        ),
        (["--engine", "vertex"], "storage_root: expected an address gs://... for --engine vertex"),
        (["--pipeline-name", "AH_Net"], "name: expected 1 to 63 lower-case letters"),
        (["--threshold-liver", "2"], "a Dice from 0 to 1, found 2"),
    ],
)
def test_the_command_rejects_invalid_settings_in_one_line(
    write, tmp_path, capsys, options, sentence
):
    command = ["--cluster", str(write()), "--input", "/mnt/ahnet/records", "--task", "ct_liver"]
    assert main([*command, "--output", str(tmp_path / "compiled"), *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert sentence in line
    assert not (tmp_path / "compiled").exists()


def test_a_tfx_without_argo_is_reported_in_one_line(write, tmp_path, capsys, monkeypatch):
    assert kubeflow_runner.has_argo_runner() == HAS_ARGO
    monkeypatch.setattr(kubeflow_runner, "has_argo_runner", lambda: False)
    command = ["--cluster", str(write()), "--input", "/mnt/ahnet/records", "--task", "ct_liver"]
    command += ["--output", str(tmp_path / "compiled"), "--engine", "kubeflow"]
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: --engine: expected kubeflow-v2 or vertex, found 'kubeflow'. TFX 1."
    )
    assert "use kubeflow-v2, or the stack of TensorFlow 2.15 (make env STACK=2.15)" in line
    assert not (tmp_path / "compiled").exists()
