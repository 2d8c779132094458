"""Compiles the pipeline into v2 specs: JSON for Vertex AI, YAML for Kubeflow Pipelines 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from kfp.pipeline_spec import pipeline_spec_pb2
from kubernetes.utils import parse_quantity
from tfx.orchestration.kubeflow.v2.kubeflow_v2_dag_runner import (
    KubeflowV2DagRunner,
    KubeflowV2DagRunnerConfig,
)
from tfx.orchestration.pipeline import Pipeline

from pipeline.kubeflow.cluster import KubeflowSettings, PodSettings
from preprocessing.files import atomic_write, write_json

ResourceSpec = pipeline_spec_pb2.PipelineDeploymentConfig.PipelineContainerSpec.ResourceSpec


class V2Runner(KubeflowV2DagRunner):
    """TFX's runner plus environment variables of pods, for which it has no setting.

    `run(pipeline)` writes the spec as JSON into the folder `output`.
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
        executors = spec["deploymentSpec"]["executors"]
        for name, component in spec["components"].items():
            environment = self._settings.pod(name).environment.items()
            if environment:
                variables = [{"name": name, "value": value} for name, value in environment]
                executors[component["executorLabel"]]["container"]["env"] = variables
        # The tfx command line may have changed the output folder.
        write_json(Path(self._output_dir) / self._output_filename, job)
        return job


def set_resources(pipeline: Pipeline, settings: KubeflowSettings) -> None:
    """Sets CPU, memory and GPU limits of every component; see `write_yaml` for the rest."""
    for node in pipeline.components:
        pod = settings.pod(node.id)
        resources = ResourceSpec()
        if pod.cpu:
            resources.cpu_limit = float(parse_quantity(pod.cpu))
        if pod.memory:
            # The spec counts in units of 10^9 bytes.
            resources.memory_limit = float(parse_quantity(pod.memory)) / 1e9
        if pod.gpus:
            resources.accelerator.type = pod.gpu_type
            resources.accelerator.count = pod.gpus
        if resources.ByteSize():
            node.with_platform_config(resources)


def write_yaml(job: dict[str, Any], settings: KubeflowSettings, path: Path) -> None:
    """Writes the YAML of Kubeflow Pipelines 2: the pipeline spec and the platform spec."""
    root = job["runtimeConfig"]["gcsOutputDirectory"]
    documents = [job["pipelineSpec"] | {"defaultPipelineRoot": root}]
    executors = {}
    for name, component in job["pipelineSpec"]["components"].items():
        content = _pod_spec(settings, settings.pod(name))
        if content:
            executors[component["executorLabel"]] = content
    if executors:
        deployment = {"deploymentSpec": {"executors": executors}}
        documents.append({"platforms": {"kubernetes": deployment}})
    with atomic_write(path) as temporary:
        temporary.write_text(yaml.safe_dump_all(documents, sort_keys=True), encoding="utf-8")


def _pod_spec(settings: KubeflowSettings, pod: PodSettings) -> dict[str, Any]:
    """Returns volumes, secrets and node selection of a pod for Kubeflow's Kubernetes platform.

    The structure follows kubernetes_executor_config.proto of Kubeflow Pipelines.
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
    }
    content = {name: value for name, value in content.items() if value}
    if settings.image_pull_policy != "IfNotPresent":
        content["imagePullPolicy"] = settings.image_pull_policy
    return content
