"""A real SavedModel whose right answer is known: it tells tissues apart by their intensity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ahnet_tf.config import ModelConfig
from ahnet_tf.predictors import ExportSettings
from preprocessing.files import write_json
from preprocessing.tasks import Task

LIVER_HU, TUMOUR_HU = 50, 150


@pytest.fixture(scope="session")
def threshold_task() -> Task:
    return Task(
        name="threshold",
        class_names=("background", "liver", "tumour"),
        intensity_window=(-200.0, 250.0),
        patch_shape_zyx=(4, 8, 8),
    )


@pytest.fixture(scope="session")
def threshold_model(tmp_path_factory, threshold_task) -> Path:
    """A SavedModel folder: tumour from `TUMOUR_HU` on, liver from `LIVER_HU`, with certainty."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None] * 4 + [1], tf.float32, name="image")])
    def predict_windows(image):
        tissue = tf.cast(image[..., 0] >= LIVER_HU, tf.int32)
        tissue += tf.cast(image[..., 0] >= TUMOUR_HU, tf.int32)
        return {"probabilities": tf.one_hot(tissue, 3)}

    folder = tmp_path_factory.mktemp("models") / "threshold" / "1"
    module = tf.Module()
    tf.saved_model.save(module, str(folder), {"predict_windows": predict_windows})
    settings = ExportSettings(threshold_task, ModelConfig(), (4, 8, 8), {"tensorflow": "2"})
    write_json(folder / "assets.extra" / "ahnet.json", settings.to_dict())
    return folder


@pytest.fixture(scope="session")
def tissues():
    """The function that the model above computes, from HU to label values."""

    def labels(voxels: np.ndarray) -> np.ndarray:
        return (voxels >= LIVER_HU).astype(np.uint8) + (voxels >= TUMOUR_HU)

    return labels
