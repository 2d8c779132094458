"""Exports: every signature against the network itself, and what lies beside the graph."""

from __future__ import annotations

import errno
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from tensorflow.core.protobuf import saved_model_pb2

from ahnet_tf.config import ModelConfig
from ahnet_tf.inference.predictor import ExportSettings, open_predictor, settings_from_json
from ahnet_tf.networks import build_network
from ahnet_tf.weights.checkpoint import save_network
from preprocessing.errors import ModelError
from preprocessing.files import write_json
from preprocessing.records.schema import Patch, encode_patch
from preprocessing.tasks import Task, load_task
from serving import protocol
from serving.embedded.loaded_model import check_request, load_model, read_warm_up, run_request
from serving.export.__main__ import main, next_version
from serving.export.exporter import export_model
from serving.export.signatures import confusion_counts, dice_counts

SMALLEST = {
    "width": 1 / 16,
    "blocks": (1, 1, 1, 1),
    "growth": 4,
    "dense_layers": 1,
    "pvp_levels": 2,
}


@pytest.fixture(scope="module")
def ahnet(task, tmp_path_factory):
    """A small AH-Net, its export and the export loaded as TensorFlow does."""
    config = ModelConfig(**SMALLEST)
    network = build_network(config)
    exported = ExportSettings(task, config, (4, 32, 32), {"tensorflow": tf.__version__})
    folder = export_model(network, exported, tmp_path_factory.mktemp("ahnet") / "1")
    return network, exported, folder, load_model(folder, 1)


@pytest.fixture(scope="module")
def linear(linear_network, settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("linear") / "7"
    export_model(linear_network(0.5), settings, folder)
    return load_model(folder, 7)


def outputs_of(model, signature, **inputs):
    found = model.saved_model.signatures[signature](
        **{name: tf.constant(value) for name, value in inputs.items()}
    )
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("shape_zyx", [(1, 33, 47), (5, 64, 40)])
def test_ahnet_answers_as_the_network_does_at_any_size(ahnet, shape_zyx):
    network, _, _, model = ahnet
    image = np.random.default_rng(1).integers(-1000, 1000, (1, *shape_zyx, 1)).astype(np.int16)
    floats = image.astype(np.float32)
    expected = graph_probabilities(network, floats)
    assert np.ptp(expected) > 1e-3
    for name, given_image in (
        ("predict_windows", floats),
        ("serving_default", floats),
        ("predict_windows_int16", image),
    ):
        found = outputs_of(model, name, image=given_image)
        assert list(found) == ["probabilities"]
        assert found["probabilities"].dtype == np.float32
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
    for name, given_image in (("segment", floats), ("segment_int16", image)):
        label = outputs_of(model, name, image=given_image)["label"]
        assert label.dtype == np.uint8
        np.testing.assert_array_equal(label, expected.argmax(axis=-1))


def graph_probabilities(network, image) -> np.ndarray:
    """The network's answer from a graph for any size, where TensorFlow joins convolution and norm."""
    anything = tf.TensorSpec((None, None, None, None, image.shape[-1]), tf.float32)
    return tf.nn.softmax(tf.function(network, [anything])(image)).numpy()


def test_only_operations_of_the_core_registry(ahnet):
    """TF Serving's standard build has TensorFlow's own operations and no others."""
    content = (ahnet[2] / "saved_model.pb").read_bytes()
    graph = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0].graph_def
    nodes = list(graph.node) + [node for f in graph.library.function for node in f.node_def]
    operations = {node.op for node in nodes}
    assert {"Conv2D", "Conv3D"} & operations
    # Python's own functions are in the registry too, but exist in the process that made them alone.
    python = {name for name in dir(tf.raw_ops) if "PyFunc" in name}
    assert python
    core = set(dir(tf.raw_ops)) - python
    assert operations <= core, operations - core


def test_settings_lie_beside_the_graph_and_inside_it(ahnet):
    _, exported, folder, model = ahnet
    text = (folder / "assets.extra" / "ahnet.json").read_text(encoding="utf-8")
    assert settings_from_json(text, folder) == exported
    inside = outputs_of(model, "describe", unused=np.zeros(2, np.int32))["settings"]
    assert [json.loads(each) for each in inside] == 2 * [json.loads(text)]


def test_warm_up_requests_are_small_and_answered(ahnet):
    _, exported, folder, model = ahnet
    assert (folder / protocol.WARM_UP_FILE).stat().st_size < 1000
    requests = list(read_warm_up(folder))
    names = [request.model_spec.signature_name for request in requests]
    windows = ["predict_windows", "predict_windows_int16", "segment", "segment_int16"]
    assert sorted(names) == ["describe", *windows]
    for request in requests:
        answer = run_request(model, check_request(model, request, 10**6))
        for value in answer.values():
            assert value.shape[:4] in ((1,), (1, *exported.window_shape_zyx))


@pytest.mark.parametrize("content", [b"", b"cut off", b"longer than a record's header"])
def test_damaged_warm_up_requests_are_refused(tmp_path, content):
    file = tmp_path / protocol.WARM_UP_FILE
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(ModelError, match="expected a TFRecord of PredictionLog messages"):
        list(read_warm_up(tmp_path))


def test_serialized_examples_give_exact_sums_over_valid_voxels(linear, task):
    """Logits (0, HU / 100, 0.5): 0 HU is tumour, 100 HU is liver, background never wins."""
    image = np.zeros((3, 4, 5), np.int16)
    image[:, :2] = 100
    label = np.zeros((3, 4, 5), np.uint8)
    label[0] = 1
    label[1, :, 4] = 2
    examples = [
        encode_patch(_patch(image, label, valid_zyx=valid), task)
        for valid in ((3, 4, 5), (1, 4, 5))
    ]
    found = outputs_of(linear, "serialized_examples", examples=examples)
    # Slice 0 is liver: half is found. Slice 1 has 4 tumour voxels: those with y >= 2 are found.
    assert found["counts"].tolist() == [
        [[0, 0, 36], [10, 30, 20], [2, 30, 4]],
        [[0, 0, 0], [10, 10, 20], [0, 10, 0]],
    ]
    assert found["confusion"].tolist() == [
        [[0, 18, 18], [0, 10, 10], [0, 2, 2]],
        [[0, 0, 0], [0, 10, 10], [0, 0, 0]],
    ]
    assert found["counts"].dtype == np.int64


def _patch(image, label, *, valid_zyx):
    return Patch(
        image_zyx=image,
        label_zyx=label,
        case_id="case",
        source="hand",
        index=0,
        origin_zyx=(0, 0, 0),
        valid_zyx=valid_zyx,
        volume_shape_zyx=valid_zyx,
        spacing_mm=(1.0, 1.0, 5.0),
        intensity_quantiles=(0.0, 0.0, 100.0),
        case_label_voxels=(36, 20, 4),
    )


SHAPES = st.tuples(*[st.integers(1, 3)] * 4)


@hypothesis_settings(max_examples=25, deadline=None)
@given(data=st.data(), shape=SHAPES, classes=st.integers(2, 4))
def test_counts_are_those_of_masks(data, shape, classes):
    labels = st_numpy.arrays(np.uint8, shape, elements=st.integers(0, classes - 1))
    reference, predicted = data.draw(labels), data.draw(labels)
    weight = data.draw(st_numpy.arrays(np.float32, shape, elements=st.sampled_from([0, 1])))
    confusion = confusion_counts(*map(tf.constant, (reference, predicted, weight)), classes)
    counts = dice_counts(confusion).numpy()
    inside = weight > 0
    for value in range(classes):
        masks = ((predicted == value) & inside, (reference == value) & inside)
        for i in range(shape[0]):
            sums = [np.sum(masks[0][i] & masks[1][i]), *(np.sum(mask[i]) for mask in masks)]
            assert counts[i, value].tolist() == sums


def test_sigmoid_networks_give_independent_foreground_probabilities(linear_network, task, tmp_path):
    sigmoid = ExportSettings(task, ModelConfig(activation="sigmoid"), (4, 16, 16))
    export_model(linear_network(-1.0), sigmoid, tmp_path / "1")
    image = np.full((1, 1, 1, 1, 1), 100, np.int16)
    probabilities = open_predictor(str(tmp_path)).predict(image)[0, 0, 0, 0]
    # The logits of the two foreground classes are 1 and -1; the background is 1 - 0.731.
    np.testing.assert_allclose(probabilities, [0.268941, 0.731059, 0.268941], atol=1e-6)


@pytest.mark.slow
def test_a_network_with_one_output_is_exported_for_two_classes(tmp_path):
    task = Task("own", ("background", "lesion"), (-200.0, 250.0), patch_shape_zyx=(4, 32, 32))
    config = ModelConfig(**SMALLEST, architecture="unet3d", classes=1, activation="sigmoid")
    network = build_network(config, seed=3)
    settings = ExportSettings(task, config, (4, 32, 32))
    folder = export_model(network, settings, tmp_path / "1", precision="bfloat16")
    exact = export_model(network, settings, tmp_path / "2")
    image = np.random.default_rng(0).integers(-200, 250, (2, 4, 32, 32, 1)).astype(np.float32)
    lesion = 1 / (1 + np.exp(-network(image).numpy()))
    expected = np.concatenate([1 - lesion, lesion], -1)
    np.testing.assert_allclose(open_predictor(exact).predict(image), expected, atol=1e-5)
    assert np.abs(open_predictor(folder).predict(image) - expected).mean() < 0.01
    model = load_model(exact, 2)
    labels = outputs_of(model, "segment", image=image)["label"]
    np.testing.assert_array_equal(labels, expected[..., 1] > 0.5)
    record = encode_patch(
        _patch(image[0, ..., 0].astype(np.int16), labels[0], valid_zyx=(4, 32, 32)), task
    )
    counts = outputs_of(model, "serialized_examples", examples=[record])["counts"]
    assert counts[0].tolist() == [[n, n, n] for n in np.bincount(labels[0].ravel(), minlength=2)]


@pytest.mark.slow
def test_network_trained_in_bfloat16_is_exported_in_float32(task, tmp_path):
    config = ModelConfig(**SMALLEST, architecture="unet3d")
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        trained = build_network(config, seed=3)
        exported = ExportSettings(task, config, (4, 32, 32))
        export_model(trained, exported, tmp_path / "1")
        assert keras.mixed_precision.global_policy().name == "mixed_bfloat16"
    finally:
        keras.mixed_precision.set_global_policy("float32")
    same = build_network(config, seed=3)
    image = np.random.default_rng(0).integers(-200, 250, (1, 2, 32, 32, 1)).astype(np.int16)
    expected = graph_probabilities(same, image.astype(np.float32))
    coarse = tf.nn.softmax(tf.cast(trained(image.astype(np.float32)), tf.float32)).numpy()
    assert np.abs(coarse - expected).max() > 1e-5
    found = open_predictor(str(tmp_path)).predict(image)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_contradictions_are_refused_and_leave_nothing(linear_network, settings, tmp_path):
    two = ExportSettings(settings.task, ModelConfig(classes=2), (4, 16, 16))
    with pytest.raises(ModelError, match="3 classes, as in task 'tiny', found 2 classes"):
        export_model(linear_network(0.0), two, tmp_path / "1")
    image = keras.Input((None, None, None, 2))
    other = keras.Model(image, keras.layers.Conv3D(3, 1)(image))
    with pytest.raises(ModelError, match="1 channels and 3 classes, found 2 and 3"):
        export_model(other, settings, tmp_path / "1")
    assert list(tmp_path.iterdir()) == []


def test_failed_export_leaves_the_earlier_one(linear_network, settings, tmp_path, monkeypatch):
    """The disk is full in the middle of the export."""
    folder = export_model(linear_network(0.0), settings, tmp_path / "1")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("serving.export.exporter._write_warm_up", fail)
    with pytest.raises(OSError, match="No space left"):
        export_model(linear_network(1.0), settings, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_next_version(tmp_path):
    assert next_version(tmp_path / "absent") == 1
    for name in ("2", "10", "notes", ".11"):
        (tmp_path / name).mkdir()
    assert next_version(tmp_path) == 11


@pytest.mark.slow
def test_command_exports_a_checkpoint(tmp_path, capsys):
    config = ModelConfig(**SMALLEST, architecture="unet2d")
    network = build_network(config)
    save_network(tmp_path / "run", network, config)
    write_json(tmp_path / "run" / "task.json", load_task("ct_liver_small").to_dict())
    arguments = ["--model", str(tmp_path / "run"), "--output", str(tmp_path / "models")]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "models" / "1")
    predictor = open_predictor(str(tmp_path / "models"))
    assert predictor.settings.task == load_task("ct_liver_small")
    image = np.full((1, 2, 32, 32, 1), 70, np.int16)
    expected = tf.nn.softmax(network(image.astype(np.float32))).numpy()
    np.testing.assert_allclose(predictor.predict(image), expected, atol=1e-6)

    assert main([*arguments, "--version", "1"]) == 1
    error = capsys.readouterr().err
    assert "models/1: expected a version that does not exist yet" in error
    assert "use --version 2" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--version", "0"], "--version: expected a whole number from 1, found 0"),
        ([], "expected a checkpoint folder with task.json, found none"),
    ],
)
def test_command_says_what_is_wrong(tmp_path, capsys, extra, words):
    code = main(["--model", str(tmp_path), "--output", str(tmp_path / "out"), *extra])
    captured = capsys.readouterr()
    assert code == 1
    assert words in captured.err
    assert not (tmp_path / "out").exists()
