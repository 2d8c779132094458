"""Checkpoints, an export and records of version 0.1 (tests/stored_0_1) still load and mean the same.

`expected.npz` holds one image and what the stored networks and the stored export made of it when they
were written.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ahnet_tf.data.records import find_records, scan_records
from ahnet_tf.inference.predictor import open_predictor
from ahnet_tf.train import main as train
from ahnet_tf.weights.checkpoint import load_network
from preprocessing.tasks import load_task

STORED = Path(__file__).resolve().parents[1] / "stored_0_1"


@pytest.fixture(scope="module")
def expected():
    with np.load(STORED / "expected.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", ["ahnet", "ahnet_transpose", "mcgcn", "unet2d", "unet3d"])
def test_checkpoints(expected, name):
    model, _ = load_network(STORED / "networks" / name)
    logits = model(expected["image"], training=False).numpy()
    np.testing.assert_allclose(logits, expected[name], atol=2e-5 * np.abs(expected[name]).max())


@pytest.mark.slow
def test_export(expected):
    predictor = open_predictor(STORED / "export")
    assert predictor.settings.task.class_names == ("background", "liver", "tumour")
    probabilities = predictor.predict(expected["image"])
    np.testing.assert_allclose(probabilities, expected["export_probabilities"], atol=1e-5)


def test_records():
    task = load_task(str(STORED / "records" / "task.json"))
    files = {split: find_records(STORED / "records" / split) for split in ("train", "eval")}
    assert sorted(scan_records(files["train"], task).volume_voxels) == ["volume-1", "volume-2"]
    assert scan_records(files["eval"], task, tiled=True).volume_voxels == {"volume-0": 20736}


@pytest.mark.slow
def test_settings_and_records_train(tmp_path):
    network = ["--set", "2d.architecture=unet2d", "--set", "2d.unet_levels=2"]
    run = ["--input", str(STORED / "records"), "--output", str(tmp_path / "run"), "--stage", "2d"]
    settings = ["--config", str(STORED / "run_settings.json"), *network, "--steps", "2"]
    assert train([*run, *settings]) == 0
    assert (tmp_path / "run" / "mcgcn" / "weights.safetensors").is_file()
