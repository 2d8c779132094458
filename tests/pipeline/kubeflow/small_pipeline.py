"""The smallest pipeline compiled for clusters, and what its run must leave."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest
from ml_metadata import MetadataStore
from ml_metadata.proto import metadata_store_pb2

from ahnet_tf.inference.predictor import open_predictor

BUCKET = "gs://ahnet-bucket"
CLUSTER = {
    "image": "registry.example.org/ahnet-tf:0.1.0",
    "storage_root": "/mnt/ahnet/runs",
    "artifact_root": "minio://mlpipeline/team-a/",
    "namespace": "team-a",
    "experiment": "liver's",
    "service_account": "default-editor",
    "run_as_user": 1234,
    "fs_group": 2000,
    "image_pull_policy": "Always",
    "image_pull_secrets": ["registry"],
    "volumes": [{"claim": "ahnet", "mount_path": "/mnt/ahnet"}],
    "secrets": [{"name": "store", "variables": {"key": "STORE_KEY"}, "mount_path": "/var/store"}],
    "pods": {
        "default": {"cpu": "500m", "memory": "2Gi"},
        "Trainer3D": {
            "gpus": 2,
            "gpu_type": "nvidia.com/mig-3g.40gb",
            "shared_memory": "8Gi",
            "node_selector": {"pool": "gpu"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "environment": {"NCCL_DEBUG": "WARN"},
        },
    },
}
ENGINES = {
    "kubeflow-v2": ("/mnt/ahnet", CLUSTER),
    "kubeflow": ("/mnt/ahnet", CLUSTER),
    "vertex": (BUCKET, CLUSTER | {"storage_root": f"{BUCKET}/runs", "artifact_root": ""}),
}
# TFX 1.15 is the last release on PyPI that writes Argo workflows.
HAS_ARGO = importlib.metadata.version("tfx").startswith("1.15.")
# Beside TFX 1.21, but not beside TFX 1.15.
HAS_KFP_2 = importlib.metadata.version("kfp").startswith("2.")
needs_argo = pytest.mark.skipif(not HAS_ARGO, reason="only TFX 1.15 writes Argo workflows")


def command(folder: Path, engine: str, records: Path, options: tuple[str, ...]) -> list[str]:
    """Returns the options that compile the smallest pipeline for an engine into `folder`."""
    data, cluster = ENGINES[engine]
    file = folder / f"{engine}.json"
    file.write_text(json.dumps(cluster), encoding="utf-8")
    task = str(records / "task.json")
    own = ["--cluster", str(file), "--input", f"{data}/records", "--output", str(folder / "specs")]
    # Training quality does not matter here: two steps, and any model is blessed. But it has to find some
    # liver, hence the weights: TFMA refuses all changes against a baseline whose score is exactly 0.
    short = ["steps=2", "warmup_steps=0", "evaluate_every=0", "class_weights=[0.01,1.0,0.01]"]
    settings = [word for each in short for word in ("--set", each)]
    return [*own, "--task", task, *options, *settings, "--threshold-liver", "0"]


def check_pushed_model(volume: Path, task) -> None:
    predictor = open_predictor(volume / "runs" / "serving_model" / "ahnet")
    assert predictor.settings.task == task
    probabilities = predictor.predict(np.zeros((1, *task.patch_shape_zyx, 1), np.int16))
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)


def open_metadata(file: Path) -> MetadataStore:
    """Returns the store of an Argo workflow's metadata."""
    connection = metadata_store_pb2.ConnectionConfig()
    connection.sqlite.filename_uri = str(file)
    return MetadataStore(connection)
