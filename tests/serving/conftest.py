"""Exported models whose probabilities follow from pen and paper, and a server of one of them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml

from ahnet_tf.config import ModelConfig
from ahnet_tf.inference.predictor import ExportSettings
from preprocessing.tasks import Task


@pytest.fixture(scope="session")
def task() -> Task:
    return Task(
        name="tiny",
        class_names=("background", "liver", "tumour"),
        intensity_window=(-200.0, 250.0),
        patch_shape_zyx=(3, 4, 5),
    )


@pytest.fixture(scope="session")
def settings(task) -> ExportSettings:
    return ExportSettings(task, ModelConfig(), (4, 16, 16), {"tensorflow": "2.15.1"})


@pytest.fixture(scope="session")
def linear_network() -> Callable:
    """Makes a network with the logits (0, HU / 100, offset) at each voxel."""

    def make(offset: float) -> keras.Model:
        image = keras.Input((None, None, None, 1))
        logits = keras.layers.Conv3D(3, 1)(image)
        network = keras.Model(image, logits)
        kernel = np.array([0, 0.01, 0], np.float32).reshape(1, 1, 1, 1, 3)
        network.set_weights([kernel, np.array([0, 0, offset], np.float32)])
        return network

    return make


@pytest.fixture(scope="session")
def linear_probabilities() -> Callable:
    """The softmax of those logits, in NumPy's float64."""

    def expected(windows: np.ndarray, offset: float) -> np.ndarray:
        hu = windows[..., 0].astype(np.float64)
        weights = np.exp(np.stack([0 * hu, hu / 100, 0 * hu + offset], axis=-1))
        return weights / weights.sum(axis=-1, keepdims=True)

    return expected


@pytest.fixture(scope="session")
def export_linear(linear_network, settings) -> Callable:
    """Exports such a network to BASE/VERSION; its offset is the version's number."""
    from serving.export.exporter import export_model

    def export(base: Path, version: int) -> Path:
        return export_model(linear_network(float(version)), settings, base / str(version))

    return export


@pytest.fixture(scope="session")
def models(tmp_path_factory, export_linear) -> Path:
    """A folder with version 1."""
    base = tmp_path_factory.mktemp("models")
    export_linear(base, 1)
    return base


@pytest.fixture(scope="session")
def server(models):
    from serving.embedded.core import start_server

    with start_server(models) as running:
        yield running


TF_SERVING = shutil.which("tensorflow_model_server")
DEPLOY = Path(__file__).resolve().parents[2] / "serving" / "deploy"


@pytest.fixture(
    scope="session",
    params=[
        "embedded",
        pytest.param(
            "tf_serving",
            marks=pytest.mark.skipif(
                TF_SERVING is None,
                reason="no tensorflow_model_server on the PATH: TF Serving itself was not tried",
            ),
        ),
    ],
)
def model_server(request, models, tmp_path_factory) -> Iterator[str]:
    """HOST:PORT of the embedded server, and of TF Serving with the flags and files of deploy/."""
    if request.param == "embedded":
        yield request.getfixturevalue("server").address
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    config = tmp_path_factory.mktemp("config")
    for path in (DEPLOY / "config").glob("*.config"):
        text = path.read_text(encoding="utf-8").replace("/models/ahnet", str(models))
        (config / path.name).write_text(text, encoding="utf-8")
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    flags = [flag.replace("/config", str(config)) for flag in compose["x-serving"]["command"]]
    flags = [flag for flag in flags if not flag.startswith(("--port", "--rest_api_port"))]
    process = subprocess.Popen(
        [str(TF_SERVING), f"--port={port}", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as connection:
                if connection.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, "tensorflow_model_server has ended"
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def windows() -> np.ndarray:
    """int16 HU [batch, z, y, x, channel] of odd sizes."""
    return np.random.default_rng(0).integers(-1000, 1000, (2, 3, 5, 7, 1)).astype(np.int16)
