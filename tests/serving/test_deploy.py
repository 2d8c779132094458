"""The deployment files: valid by the schemas of Kubernetes and Compose, hardened, one in what they say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from google.protobuf import descriptor_pb2, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from ahnet_tf.training.distribution import Workers, workers_of
from pipeline.configs import pushed_models

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "serving" / "deploy"
CONFIG = DEPLOY / "config"
CONFIG_FILES = sorted(path.name for path in CONFIG.glob("*.config"))
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("cpu", "gpu")
COMPONENTS = ("pvc", "object_store")
MANIFESTS = sorted((KUBERNETES / "base").glob("[!k]*.yaml"))
# The oldest that clusters still run, and the newest that the schemas know.
KUBERNETES_VERSIONS = ("1.28", "1.33")
# The flags of tensorflow_model_server 2.19, from its main.cc.
FLAGS = frozenset(
    [
        "allow_version_labels_for_unavailable_models",
        "batching_parameters_file",
        "enable_batching",
        "enable_grpc_healthcheck_service",
        "enable_model_warmup",
        "enable_per_model_batching_parameters",
        "enable_profiler",
        "enable_serialization_as_tensor_content",
        "enable_signature_method_name_check",
        "file_system_poll_wait_seconds",
        "flush_filesystem_caches",
        "grpc_channel_arguments",
        "grpc_max_threads",
        "grpc_socket_path",
        "load_retry_interval_micros",
        "max_num_load_retries",
        "mixed_precision",
        "model_base_path",
        "model_config_file",
        "model_config_file_poll_wait_seconds",
        "model_name",
        "monitoring_config_file",
        "num_load_threads",
        "num_request_iterations_for_warmup",
        "num_tflite_interpreters_per_pool",
        "num_tflite_pools",
        "num_unload_threads",
        "per_process_gpu_memory_fraction",
        "platform_config_file",
        "port",
        "prefer_tflite_model",
        "remove_unused_fields_from_bundle_metagraph",
        "rest_api_enable_cors_support",
        "rest_api_num_threads",
        "rest_api_port",
        "rest_api_timeout_in_ms",
        "saved_model_tags",
        "skip_initialize_tpu",
        "ssl_config_file",
        "tensorflow_inter_op_parallelism",
        "tensorflow_intra_op_parallelism",
        "tensorflow_session_config_file",
        "tensorflow_session_parallelism",
        "thread_pool_factory_config_file",
        "use_alts_credentials",
        "version",
        "xla_cpu_compilation_enabled",
        "xla_gpu_compilation_enabled",
    ]
)


def documents(path):
    return [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


def kustomization(folder):
    (content,) = documents(folder / "kustomization.yaml")
    return content


def included(folder):
    """Yields the folder of a kustomization and those that it includes, each with its content."""
    content = kustomization(folder)
    yield folder, content
    for name in [*content.get("resources", []), *content.get("components", [])]:
        if (folder / name).is_dir():
            yield from included((folder / name).resolve())


@pytest.fixture(scope="session")
def build():
    """Builds a folder by kustomize, or by the kubectl that contains it."""
    commands = {"kustomize": ["kustomize", "build"], "kubectl": ["kubectl", "kustomize"]}
    found = [words for name, words in commands.items() if shutil.which(name)]
    if not found:
        pytest.skip("no kustomize and no kubectl on the PATH: nothing was built")

    def run(folder):
        done = subprocess.run([*found[0], str(folder)], check=True, capture_output=True, text=True)
        assert done.stderr == ""
        return list(yaml.safe_load_all(done.stdout))

    return run


def of_kind(objects, kind):
    (found,) = [each for each in objects if each["kind"] == kind]
    return found


def pod_of(deployment):
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomizations_name_what_exists(overlay):
    """Without kustomize: every file is there, and every patch has a target."""
    targets, images = set(), set()
    generated, patches, changed = [], [], []
    for folder, content in included(KUBERNETES / "overlays" / overlay):
        for name in [*content.get("resources", []), *content.get("components", [])]:
            assert (folder / name).exists(), (folder, name)
            if (folder / name).is_file():
                for each in documents(folder / name):
                    targets.add((each["kind"], each["metadata"]["name"]))
                    if each["kind"] == "Deployment":
                        images.add(pod_of(each)[1]["image"])
        for each in content.get("configMapGenerator", []):
            generated.append(each["name"])
            assert all((folder / name).is_file() for name in each["files"])
        patches += [yaml.safe_load(each["patch"]) for each in content.get("patches", [])]
        changed += [image["name"] for image in content.get("images", [])]
    assert generated == ["ahnet-serving"]
    assert changed == [*images]
    assert len(patches) >= 2
    for patch in patches:
        assert (patch["kind"], patch["metadata"]["name"]) in targets
        assert pod_of(patch)[1]["name"] == "serving"


def built_with(build, tmp_path, overlay, component):
    """Builds an overlay with another component."""
    copy = tmp_path / "deploy"
    shutil.copytree(DEPLOY, copy)
    file = copy / "kubernetes" / "overlays" / overlay / "kustomization.yaml"
    text = file.read_text(encoding="utf-8")
    assert "components: [../../components/pvc]" in text
    file.write_text(text.replace("components/pvc", f"components/{component}"), encoding="utf-8")
    return build(file.parent)


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_built_overlays_are_valid_hardened_and_bounded(build, tmp_path, overlay, component):
    objects = built_with(build, tmp_path, overlay, component)
    kinds = ["ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service"]
    assert sorted(each["kind"] for each in objects) == kinds
    for each in objects:
        for version in KUBERNETES_VERSIONS:
            assert kubernetes_validate.validate(each, version, strict=True) == version
    pod, container = pod_of(of_kind(objects, "Deployment"))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    # What stops a pod must fit into the time that it has.
    assert pod["terminationGracePeriodSeconds"] > 60
    assert container["image"] == "tensorflow/serving:2.19.0" + ("-gpu" if overlay == "gpu" else "")
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    limits, requests = (container["resources"][name] for name in ("limits", "requests"))
    assert {"cpu", "memory"} <= limits.keys() == requests.keys()
    assert ("nvidia.com/gpu" in limits) == (overlay == "gpu")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": 8500}
    writable = [m["name"] for m in container["volumeMounts"] if not m.get("readOnly")]
    assert writable == ["tmp"]
    # The ConfigMap's name has a hash, which the pod has to follow.
    config = of_kind(objects, "ConfigMap")
    (volume,) = [each for each in pod["volumes"] if each["name"] == "config"]
    assert volume["configMap"]["name"] == config["metadata"]["name"] != "ahnet-serving"
    assert sorted(config["data"]) == CONFIG_FILES


def test_models_come_from_the_pipelines_claim(build):
    objects = build(KUBERNETES / "overlays" / "cpu")
    pod, container = pod_of(of_kind(objects, "Deployment"))
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "models"]
    (volume,) = [each for each in pod["volumes"] if each["name"] == "models"]
    # STORAGE_ROOT and claim of docs/kubeflow.md: the base path is where Pusher writes.
    page = (ROOT / "docs" / "kubeflow.md").read_text(encoding="utf-8")
    (root,) = re.findall(r'"storage_root": "([^"]+)"', page)
    ((claim, place),) = re.findall(r'"claim": "([^"]+)", "mount_path": "([^"]+)"', page)
    assert volume["persistentVolumeClaim"] == {"claimName": claim, "readOnly": True}
    base_path = models_config(of_kind(objects, "ConfigMap")["data"]["models.config"]).base_path
    pushed = base_path.replace(mount["mountPath"], f"{place}/{mount['subPath']}")
    assert pushed == pushed_models(root, "ahnet")
    assert of_kind(objects, "NetworkPolicy")["spec"]["egress"] == []
    # KServe and the training take the same claim.
    (service,) = documents(DEPLOY / "kserve.yaml")
    address = service["spec"]["predictor"]["model"]["storageUri"]
    assert address.replace(f"pvc://{claim}", place) == pushed


def test_models_in_a_bucket_can_be_reached(build, tmp_path):
    objects = built_with(build, tmp_path, "gpu", "object_store")
    config = models_config(of_kind(objects, "ConfigMap")["data"]["models.config"])
    assert config.base_path == pushed_models("gs://bucket/runs/liver", "ahnet")
    assert config.name == "ahnet"
    rules = of_kind(objects, "NetworkPolicy")["spec"]["egress"]
    anywhere = [each["ports"] for each in rules if "to" not in each]
    assert {(port["protocol"], port["port"]) for ports in anywhere for port in ports} == {
        ("UDP", 53),
        ("TCP", 53),
        ("TCP", 443),
    }


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_valid(path, version):
    for document in documents(path):
        assert kubernetes_validate.validate(document, version, strict=True) == version


def test_validation_sees_a_typing_error():
    (deployment,) = documents(KUBERNETES / "base" / "deployment.yaml")
    pod_of(deployment)[1]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(deployment, KUBERNETES_VERSIONS[-1], strict=True)


def check_pod(spec):
    """Validates a pod inside a resource that Kubernetes itself does not define."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    for version in KUBERNETES_VERSIONS:
        assert kubernetes_validate.validate(pod, version, strict=True) == version


def test_inference_service_of_kserve():
    (service,) = documents(DEPLOY / "kserve.yaml")
    assert (service["apiVersion"], service["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    assert service["metadata"]["name"] == "ahnet"
    assert list(service["spec"]) == ["predictor"]
    model = service["spec"]["predictor"]["model"]
    assert model.pop("modelFormat") == {"name": "tensorflow"}
    cpu = kustomization(KUBERNETES / "overlays" / "cpu")
    assert model.pop("runtimeVersion") == cpu["images"][0]["newTag"]
    assert model.pop("storageUri").startswith("pvc://")
    # The rest are fields of a container; KServe's runtime listens for gRPC on 9000.
    check_pod({"containers": [{"name": "kserve-container", **model}]})
    assert [port["containerPort"] for port in model["ports"]] == [9000]


def test_training_job_starts_workers_that_the_command_understands():
    (job,) = documents(ROOT / "examples" / "tfjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "TFJob")
    assert list(job["spec"]) == ["runPolicy", "tfReplicaSpecs"]
    assert list(job["spec"]["tfReplicaSpecs"]) == ["Worker"]
    workers = job["spec"]["tfReplicaSpecs"]["Worker"]
    assert workers.pop("restartPolicy") == "OnFailure"
    check_pod(workers["template"]["spec"])
    (container,) = workers["template"]["spec"]["containers"]
    assert container["name"] == "tensorflow"
    assert container["command"] == ["python", "-m", "ahnet_tf.train"]
    # The variable as the operator sets it, in the pod of the second worker.
    hosts = [f"ahnet-train-worker-{index}.ns.svc:2222" for index in range(workers["replicas"])]
    task = {"type": "worker", "index": 1}
    variable = {"cluster": {"worker": hosts}, "task": task, "environment": "cloud"}
    assert workers_of({"TF_CONFIG": json.dumps(variable)}) == Workers(2, 1)
    # The command takes the arguments: it misses only the records.
    done = subprocess.run(
        [sys.executable, "-m", "ahnet_tf.train", *container["args"]],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "/mnt/ahnet/records" in done.stderr


def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def test_compose_file_is_valid():
    schema = get_builtin_schema("vendor.compose-spec")
    # Newer schemas are of another draft.
    check = jsonschema.validators.validator_for(schema)(schema)
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


def server_flags():
    _, container = pod_of(documents(KUBERNETES / "base" / "deployment.yaml")[0])
    return container["args"]


def test_all_say_the_same_to_the_server():
    for service in compose()["services"].values():
        assert service["command"] == server_flags()
    tags = [service["image"] for service in compose()["services"].values()]
    overlays = [kustomization(KUBERNETES / "overlays" / name)["images"][0] for name in OVERLAYS]
    assert tags == [f"{image['name']}:{image['newTag']}" for image in overlays]
    named = {Path(word.split("=")[1]).name for word in server_flags() if "=/config/" in word}
    assert sorted(named) == CONFIG_FILES
    (generator,) = kustomization(CONFIG)["configMapGenerator"]
    assert sorted(generator["files"]) == CONFIG_FILES


def test_flags_are_those_of_tensorflow_model_server():
    names = [flag.removeprefix("--").split("=")[0] for flag in server_flags()]
    assert len(set(names)) == len(names)
    assert set(names) <= FLAGS


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
    wrappers = descriptor_pb2.FileDescriptorProto()
    wrappers_pb2.DESCRIPTOR.CopyToProto(wrappers)
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{name}.proto", package="tensorflow.serving", syntax="proto3"
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
    return message_factory.GetMessages([wrappers, file])[f"tensorflow.serving.{name}"]()


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
