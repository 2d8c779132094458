"""Compiles the pipeline into v2 specs: YAML for Kubeflow Pipelines 2, JSON for Vertex AI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from kubernetes.utils import parse_quantity
from tfx.orchestration.kubeflow.v2.kubeflow_v2_dag_runner import (
    KubeflowV2DagRunner,
    KubeflowV2DagRunnerConfig,
)
from tfx.orchestration.pipeline import Pipeline

from pipeline.kubeflow.cluster import SHARED_MEMORY_PATH, KubeflowSettings, PodSettings
from preprocessing.files import atomic_write, write_json


class V2Runner(KubeflowV2DagRunner):
    """TFX's runner plus what it has no setting for: pods, and the YAML of Kubeflow Pipelines 2.

    `run(pipeline)` writes the spec into the folder `output`, as YAML if the file's name says so.
    """

    def __init__(self, settings: KubeflowSettings, output: Path, file_name: str):
        config = KubeflowV2DagRunnerConfig(
            default_image=settings.image,
            default_commands=["python", "-m", "pipeline.kubeflow.entrypoint_v2"],
            use_pipeline_spec_2_1=True,
        )
        super().__init__(config=config, output_dir=str(output), output_filename=file_name)
        self._settings = settings

    def run(self, pipeline: Pipeline, **options: Any) -> dict[str, Any] | None:
        """Writes and returns the spec of a pipeline; None if the tfx command line only inspects it."""
        job = super().run(pipeline, **options)
        if job is None:
            return None
        spec = job["pipelineSpec"]
        for name, component in spec["components"].items():
            pod = self._settings.pod(name)
            container = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
            if pod.environment:
                pairs = pod.environment.items()
                container["env"] = [{"name": name, "value": value} for name, value in pairs]
            if resources := _resources(pod):
                container["resources"] = resources
        # The tfx command line may have changed the output folder.
        path = Path(self._output_dir) / self._output_filename
        if path.suffix == ".yaml":
            _write_yaml(job, self._settings, path)
        else:
            job["runtimeConfig"]["gcsOutputDirectory"] = self._settings.artifacts()
            write_json(path, job)
        return job


def _resources(pod: PodSettings) -> dict[str, Any]:
    """Returns the message ResourceSpec of a pod, which is limits; empty if there are none."""
    resources: dict[str, Any] = {}
    if pod.cpu:
        resources["cpuLimit"] = float(parse_quantity(pod.cpu))
    if pod.memory:
        # The spec counts in units of 10^9 bytes.
        resources["memoryLimit"] = float(parse_quantity(pod.memory)) / 1e9
    if pod.gpus:
        resources["accelerator"] = {"type": pod.gpu_type, "count": str(pod.gpus)}
    return resources


def _write_yaml(job: dict[str, Any], settings: KubeflowSettings, path: Path) -> None:
    """Writes the YAML of Kubeflow Pipelines 2: the pipeline spec and the platform spec."""
    spec = dict(job["pipelineSpec"])
    if root := settings.artifacts():
        spec["defaultPipelineRoot"] = root
    executors = {}
    for name, component in spec["components"].items():
        label = component["executorLabel"]
        # The engine runs no hooks.
        spec["deploymentSpec"]["executors"][label]["container"].pop("lifecycle", None)
        content = _pod_spec(settings, settings.pod(name))
        if content:
            executors[label] = content
    documents = [spec]
    if executors:
        deployment = {"deploymentSpec": {"executors": executors}}
        documents.append({"platforms": {"kubernetes": deployment}})
    with atomic_write(path) as temporary:
        temporary.write_text(yaml.safe_dump_all(documents, sort_keys=True), encoding="utf-8")


def _pod_spec(settings: KubeflowSettings, pod: PodSettings) -> dict[str, Any]:
    """Returns volumes, secrets, node selection and user of a pod for Kubeflow's Kubernetes platform.

    The structure follows kubernetes_executor_config.proto of Kubeflow Pipelines. An engine fails on
    fields that it does not know, so that those of newer engines are written for a setting only.
    """
    content: dict[str, Any] = {
        "pvcMount": [
            {"constant": volume.claim, "mountPath": volume.mount_path}
            for volume in settings.volumes
        ],
        "secretAsEnv": [
            {
                "secretName": secret.name,
                "keyToEnv": [
                    {"secretKey": key, "envVar": variable}
                    for key, variable in secret.variables.items()
                ],
            }
            for secret in settings.secrets
            if secret.variables
        ],
        "secretAsVolume": [
            {"secretName": secret.name, "mountPath": secret.mount_path}
            for secret in settings.secrets
            if secret.mount_path
        ],
        "imagePullSecret": [{"secretName": name} for name in settings.image_pull_secrets],
        "nodeSelector": {"labels": dict(pod.node_selector)} if pod.node_selector else None,
        "tolerations": [dict(toleration) for toleration in pod.tolerations],
        "emptyDirMounts": [
            {
                "volumeName": "shared-memory",
                "mountPath": SHARED_MEMORY_PATH,
                "medium": "Memory",
                "sizeLimit": pod.shared_memory,
            }
        ]
        if pod.shared_memory
        else None,
        "securityContext": {"runAsUser": settings.run_as_user, "runAsNonRoot": True}
        if settings.run_as_user
        else None,
    }
    content = {name: value for name, value in content.items() if value}
    if settings.image_pull_policy != "IfNotPresent":
        content["imagePullPolicy"] = settings.image_pull_policy
    return content
