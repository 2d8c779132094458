"""Fixtures: SavedModels with known answers, toy records, processes for trainings."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest

from ahnet_tf.config import ModelConfig
from ahnet_tf.inference.predictor import ExportSettings
from preprocessing.files import write_json
from preprocessing.tasks import PRESETS, Task
from tests.ahnet_tf.forks import TrainingForks
from tests.ahnet_tf.toy import write_records

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


@pytest.fixture(scope="session")
def heat_map_model(tmp_path_factory) -> Path:
    """A SavedModel folder of a lesion task: the probability is the raw intensity / 1000, up to 1."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None] * 4 + [1], tf.float32, name="image")])
    def predict_windows(image):
        lesion = tf.clip_by_value(image / 1000, 0, 1)
        return {"probabilities": tf.concat([1 - lesion, lesion], -1)}

    folder = tmp_path_factory.mktemp("models") / "lesions" / "1"
    tf.saved_model.save(tf.Module(), str(folder), {"predict_windows": predict_windows})
    task = attrs.evolve(PRESETS["dbt_lesion"], normalization="none")
    settings = ExportSettings(task, ModelConfig(classes=2), (8, 16, 16))
    write_json(folder / "assets.extra" / "ahnet.json", settings.to_dict())
    return folder


@pytest.fixture(scope="session")
def forks():
    """Processes that start with the training imported."""
    found = TrainingForks()
    yield found
    found.close()


@pytest.fixture(scope="session")
def toy_records(tmp_path_factory) -> Path:
    """A folder of toy records as preprocessing.convert writes it (see `toy`)."""
    return write_records(tmp_path_factory.mktemp("toy") / "records")
