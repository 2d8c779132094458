"""Compiles the pipeline into an Argo workflow for the v1 API of Kubeflow Pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from kfp import dsl, onprem
from kubernetes import client
from tfx.orchestration.kubeflow.kubeflow_dag_runner import (
    KubeflowDagRunner,
    KubeflowDagRunnerConfig,
    get_default_pipeline_operator_funcs,
)
from tfx.orchestration.pipeline import Pipeline

from pipeline.kubeflow.cluster import SHARED_MEMORY_PATH, KubeflowSettings
from preprocessing.errors import PipelineError
from preprocessing.files import atomic_write

# Linux' limit on one argument of a program (MAX_ARG_STRLEN).
LONGEST_ARGUMENT = 128 * 1024
# TFX's default is in the root folder, which the image's user can't write to.
UI_METADATA_PATH = "/tmp/mlpipeline-ui-metadata.json"


class ArgoRunner(KubeflowDagRunner):
    """TFX's runner plus pods, their account and a security context.

    `run(pipeline)` writes the workflow into the folder `output`. Its pods pass the strictest of
    Kubernetes' Pod Security Standards, "restricted".
    """

    def __init__(self, settings: KubeflowSettings, output: Path, file_name: str):
        defaults = get_default_pipeline_operator_funcs()
        config = KubeflowDagRunnerConfig(
            tfx_image=settings.image,
            pipeline_operator_funcs=[*defaults, _shorten, _pod(settings)],
            metadata_ui_path=UI_METADATA_PATH,
        )
        super().__init__(config=config, output_dir=str(output), output_filename=file_name)
        self._settings = settings

    def run(self, pipeline: Pipeline) -> None:
        """Writes the workflow of a pipeline, unless the tfx command line only inspects it."""
        super().run(pipeline)
        # The tfx command line may have changed the output folder.
        path = Path(self._output_dir) / self._output_filename
        if not path.is_file():
            return
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        _secure(workflow["spec"], self._settings)
        with atomic_write(path) as temporary:
            temporary.write_text(yaml.safe_dump(workflow, sort_keys=True), encoding="utf-8")


def _secure(spec: dict[str, Any], settings: KubeflowSettings) -> None:
    """Sets account and security context of a workflow, for which kfp's compiler has no settings."""
    if settings.service_account:
        spec["serviceAccountName"] = settings.service_account
    # For all containers of a pod, Argo's own included.
    spec["securityContext"] = {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        **({"fsGroup": settings.fs_group} if settings.fs_group else {}),
    }
    for template in spec["templates"]:
        if "container" in template:
            template["container"]["securityContext"] = {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                **({"runAsUser": settings.run_as_user} if settings.run_as_user else {}),
            }


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
        if pod.shared_memory:
            memory = client.V1EmptyDirVolumeSource(medium="Memory", size_limit=pod.shared_memory)
            op.add_volume(client.V1Volume(name="shared-memory", empty_dir=memory))
            place = client.V1VolumeMount(name="shared-memory", mount_path=SHARED_MEMORY_PATH)
            op.container.add_volume_mount(place)
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
