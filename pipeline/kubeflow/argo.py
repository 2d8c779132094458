"""Compiles the pipeline into an Argo workflow for the v1 API of Kubeflow Pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from kfp import dsl, onprem
from kubernetes import client
from tfx.orchestration.kubeflow.kubeflow_dag_runner import (
    KubeflowDagRunner,
    KubeflowDagRunnerConfig,
    get_default_pipeline_operator_funcs,
)

from pipeline.kubeflow.cluster import KubeflowSettings
from preprocessing.errors import PipelineError

# Linux' limit on one argument of a program (MAX_ARG_STRLEN).
LONGEST_ARGUMENT = 128 * 1024
# TFX's default is in the root folder, which the image's user can't write to.
UI_METADATA_PATH = "/tmp/mlpipeline-ui-metadata.json"


def argo_runner(settings: KubeflowSettings, output: Path, file_name: str) -> KubeflowDagRunner:
    """Returns TFX's runner, whose `run(pipeline)` writes the workflow into the folder `output`."""
    config = KubeflowDagRunnerConfig(
        tfx_image=settings.image,
        pipeline_operator_funcs=[*get_default_pipeline_operator_funcs(), _shorten, _pod(settings)],
        metadata_ui_path=UI_METADATA_PATH,
    )
    return KubeflowDagRunner(config=config, output_dir=str(output), output_filename=file_name)


def _shorten(op: dsl.ContainerOp) -> dsl.ContainerOp:
    """Minifies the pipeline description that TFX passes as an argument, with sorted keys.

    Raises PipelineError if it is still too long to start a pod.
    """
    arguments = list(op.arguments)
    place = arguments.index("--tfx_ir") + 1
    description = json.dumps(json.loads(arguments[place]), separators=(",", ":"), sort_keys=True)
    size = len(description.encode())
    if size >= LONGEST_ARGUMENT:
        expected = f"a pipeline description below Linux' limit of {LONGEST_ARGUMENT} bytes"
        raise PipelineError(f"component {op.human_name}", expected, f"{size} bytes")
    arguments[place] = description
    op.arguments = arguments
    return op


def _pod(settings: KubeflowSettings) -> Callable[[dsl.ContainerOp], dsl.ContainerOp]:
    """Returns a function that sets a pod's storage, limits, node selection and variables."""

    def change(op: dsl.ContainerOp) -> dsl.ContainerOp:
        for number, volume in enumerate(settings.volumes):
            op.apply(onprem.mount_pvc(volume.claim, f"volume-{number}", volume.mount_path))
        for number, secret in enumerate(settings.secrets):
            op.apply(onprem.use_k8s_secret(secret.name, secret.variables))
            if secret.mount_path:
                name = f"secret-{number}"
                content = client.V1SecretVolumeSource(secret_name=secret.name)
                op.add_volume(client.V1Volume(name=name, secret=content))
                place = client.V1VolumeMount(name=name, mount_path=secret.mount_path)
                op.container.add_volume_mount(place)
        # The runner has no setting for these, which belong to the workflow.
        secrets = [client.V1LocalObjectReference(name=name) for name in settings.image_pull_secrets]
        dsl.get_pipeline_conf().set_image_pull_secrets(secrets)
        # The human name of an operator is the component's id.
        pod = settings.pod(op.human_name)
        op.container.set_image_pull_policy(settings.image_pull_policy)
        if pod.cpu:
            op.container.set_cpu_request(pod.cpu).set_cpu_limit(pod.cpu)
        if pod.memory:
            op.container.set_memory_request(pod.memory).set_memory_limit(pod.memory)
        if pod.gpus:
            op.container.add_resource_limit(pod.gpu_type, str(pod.gpus))
        for label, value in pod.node_selector.items():
            op.add_node_selector_constraint(label, value)
        for name, value in pod.environment.items():
            op.container.add_env_variable(client.V1EnvVar(name=name, value=value))
        for toleration in pod.tolerations:
            op.add_toleration(client.V1Toleration(**toleration))
        return op

    return change
