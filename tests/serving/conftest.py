"""Exported models whose probabilities follow from pen and paper, and a server of one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

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
    import tensorflow as tf

    def make(offset: float) -> tf.keras.Model:
        image = tf.keras.Input((None, None, None, 1))
        logits = tf.keras.layers.Conv3D(3, 1)(image)
        network = tf.keras.Model(image, logits)
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


@pytest.fixture
def windows() -> np.ndarray:
    """int16 HU [batch, z, y, x, channel] of odd sizes."""
    return np.random.default_rng(0).integers(-1000, 1000, (2, 3, 5, 7, 1)).astype(np.int16)
