"""Opening models: SavedModels, versions, checkpoints, addresses, and refused locations."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from ahnet_tf.config import ModelConfig
from ahnet_tf.inference.predictor import (
    ExportSettings,
    content_digest,
    is_address,
    load_checkpoint,
    open_predictor,
    settings_from_json,
)
from ahnet_tf.networks import build_network
from ahnet_tf.weights.checkpoint import save_network
from preprocessing.errors import ModelError, ServingError, SettingsError
from preprocessing.files import write_json
from preprocessing.tasks import PRESETS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, threshold_task):
    folder = tmp_path_factory.mktemp("checkpoint")
    config = ModelConfig(architecture="unet2d", width=0.05)
    model = build_network(config, seed=3)
    save_network(folder, model, config)
    write_json(folder / "task.json", threshold_task.to_dict())
    return folder, model, config


def test_settings_survive_json():
    settings = ExportSettings(
        PRESETS["dbt_lesion"], ModelConfig(classes=2), (8, 64, 64), {"a": "1"}
    )
    assert settings_from_json(json.dumps(settings.to_dict()), "here") == settings


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"task": {}, "model": {}, "more": 1}'])
def test_foreign_settings_are_refused(text):
    with pytest.raises(ModelError, match="somewhere"):
        settings_from_json(text, "somewhere")


def test_saved_model_predicts(threshold_model, threshold_task):
    predictor = open_predictor(threshold_model)
    assert predictor.settings.task == threshold_task
    assert predictor.settings.window_shape_zyx == (4, 8, 8)
    windows = np.array([-1000, 60, 200], np.int16).reshape(1, 1, 1, 3, 1)
    probabilities = predictor.predict(windows)
    assert probabilities.dtype == np.float32
    np.testing.assert_array_equal(probabilities, np.eye(3).reshape(1, 1, 1, 3, 3))


def test_newest_version_is_taken(threshold_model, tmp_path):
    for version in ("2", "10"):
        (tmp_path / version).mkdir()
        for item in ("saved_model.pb", "variables", "assets.extra"):
            (tmp_path / version / item).symlink_to(threshold_model / item)
    (tmp_path / "9").symlink_to(tmp_path)
    (tmp_path / "11").mkdir()
    settings = json.loads((threshold_model / "assets.extra/ahnet.json").read_text())
    (tmp_path / "10" / "assets.extra").unlink()
    settings["versions"] = {"tensorflow": "ten"}
    write_json(tmp_path / "10" / "assets.extra" / "ahnet.json", settings)
    assert open_predictor(tmp_path).settings.versions == {"tensorflow": "ten"}


def test_digest_covers_what_predictions_depend_on(checkpoint, threshold_model, tmp_path):
    trained, exported = tmp_path / "trained", tmp_path / "exported"
    shutil.copytree(checkpoint[0], trained)
    shutil.copytree(threshold_model, exported / "2")
    digests = [content_digest(str(folder)) for folder in (trained, exported)]
    for name in ("overlay.png", "history.csv", "checkpoints/ckpt-1.index", "tensorboard/events"):
        for folder in (trained, exported, exported / "2"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("new")
    (exported / "1").mkdir()
    assert [content_digest(str(folder)) for folder in (trained, exported)] == digests
    assert digests[1] == content_digest(str(threshold_model))
    for folder, names in (
        (trained, ("model.json", "task.json", "weights.safetensors")),
        (
            exported / "2",
            ("saved_model.pb", "variables/variables.index", "assets.extra/ahnet.json"),
        ),
    ):
        for name in names:
            before = content_digest(str(folder))
            with open(folder / name, "ab") as file:
                file.write(b" ")
            assert content_digest(str(folder)) != before, name
    assert content_digest(str(tmp_path / "none")) is None


def test_wrong_channels_are_refused(threshold_model):
    predictor = open_predictor(threshold_model)
    with pytest.raises(ModelError, match="channels"):
        predictor.predict(np.zeros((1, 4, 8, 8, 2), np.int16))
    with pytest.raises(ModelError, match="channels"):
        predictor.predict(np.zeros((4, 8, 8, 1), np.int16))


def test_checkpoint_predicts_like_its_network(checkpoint, threshold_task):
    folder, model, config = checkpoint
    windows = np.random.default_rng(0).integers(-500, 500, (2, 3, 20, 24, 1)).astype(np.int16)
    predictor = open_predictor(folder)
    assert predictor.settings.task == threshold_task
    assert predictor.settings.model == config
    assert predictor.settings.window_shape_zyx == threshold_task.patch_shape_zyx
    logits = model(tf.constant(windows, tf.float32), training=False).numpy().astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    expected = exponentials / exponentials.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(predictor.predict(windows), expected, atol=2e-5)


def test_checkpoint_without_a_task_is_refused(checkpoint, tmp_path):
    _, model, config = checkpoint
    save_network(tmp_path, model, config)
    with pytest.raises(ModelError, match=r"task\.json"):
        load_checkpoint(tmp_path)


def test_locations_without_a_model(tmp_path):
    with pytest.raises(ModelError, match="nothing there"):
        open_predictor(tmp_path / "missing")
    with pytest.raises(ModelError, match="an empty folder"):
        open_predictor(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"notes\.txt"):
        open_predictor(tmp_path)
    with pytest.raises(ModelError, match="a file"):
        open_predictor(tmp_path / "notes.txt")


def test_foreign_and_damaged_saved_models(threshold_model, tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"not a graph")
    with pytest.raises(ModelError, match=r"ahnet\.json"):
        open_predictor(tmp_path)
    settings = json.loads((threshold_model / "assets.extra/ahnet.json").read_text())
    write_json(tmp_path / "assets.extra/ahnet.json", settings)
    with pytest.raises(ModelError, match="readable SavedModel"):
        open_predictor(tmp_path)
    other = tmp_path / "other"
    module = tf.Module()
    module.run = tf.function(lambda x: x, input_signature=[tf.TensorSpec([None], tf.float32)])
    tf.saved_model.save(module, str(other), {"serving_default": module.run})
    write_json(other / "assets.extra/ahnet.json", settings)
    with pytest.raises(ModelError, match="predict_windows"):
        open_predictor(other)
    settings["model"]["architecture"] = "ahnett"
    write_json(other / "assets.extra/ahnet.json", settings)
    with pytest.raises(SettingsError, match="Did you mean 'ahnet'"):
        open_predictor(other)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("localhost:8500", True),
        ("10.0.0.1:8500/ahnet", True),
        ("[::1]:8500", True),
        ("models/ahnet", False),
        ("localhost", False),
        ("host:port", False),
        ("C:\\models", False),
    ],
)
def test_addresses(location, expected):
    assert is_address(location) is expected


def test_address_without_a_server():
    with pytest.raises(ServingError, match="localhost:1"):
        open_predictor("localhost:1")
