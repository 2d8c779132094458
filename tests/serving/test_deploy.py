"""The deployment files: valid by the schemas of Kubernetes and Compose, hardened, one in what they say."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import jsonschema
import kubernetes_validate
import numpy as np
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from serving.client.sync import AHNetClient

DEPLOY = Path(__file__).resolve().parents[2] / "serving" / "deploy"
CONFIG = DEPLOY / "config"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
# The oldest that clusters still run, and the newest that the schemas know.
KUBERNETES_VERSIONS = ("1.28", "1.33")


def documents(path):
    return [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


def deployments():
    return [d for path in MANIFESTS for d in documents(path) if d["kind"] == "Deployment"]


def test_there_are_manifests():
    kinds = [d["kind"] for path in MANIFESTS for d in documents(path)]
    assert kinds.count("Deployment") == 2
    assert {"ConfigMap", "Service", "NetworkPolicy", "PodDisruptionBudget"} <= set(kinds)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_valid(path, version):
    for document in documents(path):
        assert kubernetes_validate.validate(document, version, strict=True) == version


def test_validation_sees_a_typing_error():
    deployment = deployments()[0]
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(deployment, KUBERNETES_VERSIONS[-1], strict=True)


def test_pods_are_hardened_and_bounded():
    for deployment in deployments():
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        limits, requests = (container["resources"][name] for name in ("limits", "requests"))
        assert {"cpu", "memory"} <= limits.keys() == requests.keys()
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
        writable = [m["name"] for m in container["volumeMounts"] if not m.get("readOnly")]
        assert writable == ["tmp"]
        # What stops a pod must fit into the time that it has.
        assert pod["terminationGracePeriodSeconds"] > 60


def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def test_compose_file_is_valid():
    schema = get_builtin_schema("vendor.compose-spec")
    check = jsonschema.Draft7Validator(schema)
    assert list(check.iter_errors(compose())) == []
    wrong = compose()
    wrong["services"]["serving-cpu"]["read_onlly"] = True
    assert len(list(check.iter_errors(wrong))) == 1


def test_compose_services_are_hardened_and_bounded():
    services = compose()["services"]
    assert sorted(services) == ["serving-cpu", "serving-gpu"]
    for service in services.values():
        assert service["user"].split(":")[0] != "0"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert all(mount["read_only"] for mount in service["volumes"])


def test_both_say_the_same_to_the_server():
    (arguments,) = {
        tuple(d["spec"]["template"]["spec"]["containers"][0]["args"]) for d in deployments()
    }
    for service in compose()["services"].values():
        assert tuple(service["command"]) == arguments
    config_map = next(d for path in MANIFESTS for d in documents(path) if d["kind"] == "ConfigMap")
    files = {path.name: path.read_text(encoding="utf-8") for path in CONFIG.iterdir()}
    assert config_map["data"] == files
    named = {Path(word.split("=")[1]).name for word in arguments if "=/config/" in word}
    assert named == files.keys()


def models_config(text):
    """Parses a ModelServerConfig that holds one model."""
    parsed = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    (config,) = parsed.model_config_list.config
    return config


def test_models_config_serves_the_newest_version():
    config = models_config((CONFIG / "models.config").read_text(encoding="utf-8"))
    assert (config.name, config.base_path) == ("ahnet", "/models/ahnet")
    assert config.model_platform == "tensorflow"
    assert config.model_version_policy.latest.num_versions == 1


def test_example_in_models_config_parses_too():
    text = (CONFIG / "models.config").read_text(encoding="utf-8")
    example = [line.strip()[4:] for line in text.splitlines() if line.strip().startswith("#   ")]
    replaced = text.replace("model_version_policy { latest { num_versions: 1 } }", "")
    config = models_config(replaced.replace("base_path:", "\n".join([*example, "base_path:"])))
    assert list(config.model_version_policy.specific.versions) == [6, 7]
    assert config.version_labels == {"stable": 6, "canary": 7}


def serving_message(name, fields):
    """Makes a message of TF Serving that its Python package has no stub of.

    Names, numbers and types are those of session_bundle_config.proto and monitoring_config.proto.
    """
    pool = descriptor_pool.DescriptorPool()
    wrappers = descriptor_pb2.FileDescriptorProto()
    wrappers_pb2.DESCRIPTOR.CopyToProto(wrappers)
    pool.Add(wrappers)
    file = descriptor_pb2.FileDescriptorProto(
        name="test.proto", package="tensorflow.serving", syntax="proto3"
    )
    file.dependency.append("google/protobuf/wrappers.proto")
    types = descriptor_pb2.FieldDescriptorProto
    for message_name, entries in fields.items():
        message = file.message_type.add(name=message_name)
        for number, (field, kind) in enumerate(entries, start=1):
            entry = message.field.add(name=field, number=number, label=types.LABEL_OPTIONAL)
            if kind in ("bool", "string"):
                entry.type = types.TYPE_BOOL if kind == "bool" else types.TYPE_STRING
            elif kind == "int64s":
                entry.type, entry.label = types.TYPE_INT64, types.LABEL_REPEATED
            else:
                entry.type, entry.type_name = types.TYPE_MESSAGE, kind
    pool.Add(file)
    factory = message_factory.MessageFactory(pool)
    return factory.GetPrototype(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))()


INT = ".google.protobuf.Int64Value"
BATCHING = {
    "BatchingParameters": [
        ("max_batch_size", INT),
        ("batch_timeout_micros", INT),
        ("max_enqueued_batches", INT),
        ("num_batch_threads", INT),
        ("thread_pool_name", ".google.protobuf.StringValue"),
        ("allowed_batch_sizes", "int64s"),
        ("pad_variable_length_inputs", "bool"),
    ]
}
MONITORING = {
    "PrometheusConfig": [("enable", "bool"), ("path", "string")],
    "MonitoringConfig": [("prometheus_config", ".tensorflow.serving.PrometheusConfig")],
}


def test_batching_and_monitoring_configs_parse():
    batching = serving_message("BatchingParameters", BATCHING)
    text_format.Parse((CONFIG / "batching.config").read_text(encoding="utf-8"), batching)
    assert batching.max_batch_size.value >= 1
    assert batching.num_batch_threads.value >= 1
    monitoring = serving_message("MonitoringConfig", MONITORING)
    text_format.Parse((CONFIG / "monitoring.config").read_text(encoding="utf-8"), monitoring)
    assert monitoring.prometheus_config.enable
    assert monitoring.prometheus_config.path == "/monitoring/prometheus/metrics"


@pytest.mark.skipif(
    shutil.which("tensorflow_model_server") is None,
    reason="no tensorflow_model_server on the PATH: TF Serving itself was not tried",
)
def test_tensorflow_model_server_answers_as_the_embedded_one(
    models, tmp_path, windows, linear_probabilities
):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    config = (CONFIG / "models.config").read_text(encoding="utf-8")
    (tmp_path / "models.config").write_text(config.replace("/models/ahnet", str(models)))
    words = [
        "tensorflow_model_server",
        f"--port={port}",
        f"--model_config_file={tmp_path / 'models.config'}",
        "--enable_batching=true",
        f"--batching_parameters_file={CONFIG / 'batching.config'}",
    ]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = AHNetClient(f"127.0.0.1:{port}/ahnet", timeout_s=60, attempts=30)
        deadline = time.monotonic() + 60
        while client.status()[0].state != 30:
            assert time.monotonic() < deadline
        found = client.predict_windows(windows)
    finally:
        process.terminate()
        process.wait()
    np.testing.assert_allclose(found, linear_probabilities(windows, 1.0), atol=1e-5)
