"""Other forms of an export: bfloat16, and ONNX against TensorFlow."""

from __future__ import annotations

import json
import sys

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from ahnet_tf.config import ModelConfig
from ahnet_tf.inference.predictor import ExportSettings, open_predictor, settings_from_json
from ahnet_tf.networks import build_network, named_weights
from ahnet_tf.weights.checkpoint import save_network
from preprocessing.errors import ModelError
from preprocessing.files import write_json
from preprocessing.tasks import load_task
from serving.export.__main__ import main
from serving.export.exporter import export_model, export_onnx

SMALLEST = {
    "width": 1 / 16,
    "blocks": (1, 1, 1, 1),
    "growth": 4,
    "dense_layers": 1,
    "pvp_levels": 2,
}


def hounsfield(shape_zyx, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(-300, 400, (2, *shape_zyx, 1)).astype(np.int16)


def test_onnx_without_its_converter(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(ModelError, match=r"found none.*pip install '.\[onnx\]'"):
        export_onnx(None, None, tmp_path / "ahnet.onnx")


@pytest.mark.slow
def test_bfloat16_export_is_half_the_size_and_near(task, tmp_path):
    config = ModelConfig(**SMALLEST, architecture="unet3d")
    network = build_network(config, seed=5)
    settings = ExportSettings(task, config, (4, 32, 32))
    sizes = {}
    for precision in ("float32", "bfloat16"):
        folder = tmp_path / precision / "1"
        export_model(network, settings, folder, precision=precision)
        sizes[precision] = sum(path.stat().st_size for path in (folder / "variables").iterdir())
    assert sizes["bfloat16"] < 0.7 * sizes["float32"]
    image = hounsfield((4, 40, 33))
    expected = tf.nn.softmax(network(image.astype(np.float32))).numpy()
    predictor = open_predictor(str(tmp_path / "bfloat16"))
    assert predictor.settings.precision == "bfloat16"
    found = predictor.predict(image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    difference = np.abs(found - expected)
    # Eight bits of mantissa, through a random network whose logits are in the tens.
    assert 1e-5 < difference.max() < 0.3
    assert keras.mixed_precision.global_policy().name == "float32"


@pytest.mark.slow
def test_onnx_answers_as_tensorflow_does_at_any_size(tmp_path, task):
    config = ModelConfig(**SMALLEST)
    network = build_network(config, seed=1)
    for weight in network.weights:
        # As after a training: additions of zeros would be left out of the file.
        if weight.name.rpartition("/")[2] in ("bias:0", "beta:0"):
            weight.assign_add(tf.linspace(0.1, 0.2, weight.shape[0]))
    # Fresh logits are in the hundreds, where probabilities are 0 or 1 and rounding is large.
    final = named_weights(network)["final/kernel"]
    final.assign(0.004 * final)
    settings = ExportSettings(task, config, (4, 32, 32))
    path = export_onnx(network, settings, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert settings_from_json(metadata["ahnet"], path) == settings
    for seed, shape_zyx in enumerate([(5, 64, 40), (1, 33, 47)]):
        image = hounsfield(shape_zyx, seed).astype(np.float32)
        (found,) = session.run(["probabilities"], {"image": image})
        expected = tf.nn.softmax(network(image)).numpy()
        assert np.ptp(expected) > 1e-3
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_command_writes_onnx_beside_the_export(tmp_path, capsys):
    config = ModelConfig(**SMALLEST, architecture="unet2d")
    save_network(tmp_path / "run", build_network(config), config)
    write_json(tmp_path / "run" / "task.json", load_task("ct_liver_small").to_dict())
    words = ["--model", str(tmp_path / "run"), "--output", str(tmp_path / "models")]
    onnx = str(tmp_path / "net.onnx")
    assert main([*words, "--onnx", onnx, "--precision", "bfloat16"]) == 1
    assert "--onnx: expected --precision float32 with it" in capsys.readouterr().err
    assert main([*words, "--onnx", onnx]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "models" / "1"), onnx]
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    image = hounsfield((2, 32, 32))
    (found,) = session.run(None, {"image": image.astype(np.float32)})
    expected = open_predictor(str(tmp_path / "models")).predict(image)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    written = json.loads((tmp_path / "models" / "1" / "assets.extra" / "ahnet.json").read_text())
    assert written["precision"] == "float32"
