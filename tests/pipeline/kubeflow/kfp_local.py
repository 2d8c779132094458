"""Runs a compiled v2 spec with `kfp.local`, in the environment of kfp 2: SPEC OUTPUT.

Before, the platform spec is read into the messages of Kubeflow Pipelines' Kubernetes platform.
"""

import sys

from google.protobuf import json_format
from kfp import components, local
from kfp.kubernetes import kubernetes_executor_config_pb2

spec, output = sys.argv[1:]
pipeline = components.load_component_from_file(spec)
platform = json_format.MessageToDict(pipeline.platform_spec)
for config in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
    message = kubernetes_executor_config_pb2.KubernetesExecutorConfig()
    json_format.ParseDict(config, message)
local.init(runner=local.DockerRunner(), pipeline_root=output)
pipeline()
