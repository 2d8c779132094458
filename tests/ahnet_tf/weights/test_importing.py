"""Weights of each family are imported unchanged; files that do not fit are refused with reasons."""

import importlib.util
import urllib.request

import attrs
import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from ahnet_tf.config import ModelConfig
from ahnet_tf.inference.predictor import ExportSettings, open_predictor, predictor_of
from ahnet_tf.networks import build_network, named_weights
from ahnet_tf.weights.__main__ import main
from ahnet_tf.weights.checkpoint import load_network
from ahnet_tf.weights.importing import import_network, read_arrays
from ahnet_tf.weights.keras_resnet50 import NAME, imagenet_file
from ahnet_tf.weights.torch_names import ahnet_source, encoder_source
from benchmarks.parity import random_weight
from preprocessing.errors import ModelError
from preprocessing.tasks import PRESETS, Task
from tests.ahnet_tf.weights.keras_h5 import layer_weights, write_keras_h5

SMALL = ModelConfig(
    width=0.0625, blocks=(2, 1, 1, 1), growth=4, dense_layers=2, pvp_levels=2, pvp_border=True
)
SMALL_2D = attrs.evolve(SMALL, architecture="mcgcn", pvp_border=False)


def torchvision_source(name):
    return encoder_source(name, volumetric=False)


def random_network(config):
    model = build_network(config)
    for name, variable in named_weights(model).items():
        variable.assign(random_weight(name, variable.shape))
    return model


def state_of(model, source):
    state = {}
    for name, variable in named_weights(model).items():
        found = source(name)
        if found:
            state |= found.write(variable.numpy())
    return {name: np.ascontiguousarray(value) for name, value in state.items()}


def assert_same_weights(found, expected, prefix=""):
    found = named_weights(found)
    for name, value in named_weights(expected).items():
        if name.startswith(prefix):
            np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture(scope="module")
def ahnet():
    return random_network(SMALL)


@pytest.fixture(scope="module")
def mcgcn():
    return random_network(SMALL_2D)


@pytest.mark.slow
def test_monai_round_trip_by_the_command(ahnet, tmp_path, capsys):
    state = state_of(ahnet, lambda name: ahnet_source(name, 2))
    assert state["conv1.weight"].shape == (4, 1, 7, 7, 3)
    assert state["dense0.denselayer2.conv3.weight"].shape == (4, 4, 1, 1, 3)
    assert state["psp.project_modules.1.weight"].shape == (1, 12, 1, 1, 1)
    path = tmp_path / "monai.safetensors"
    state = {f"module.{name}": value for name, value in state.items()}
    safetensors.numpy.save_file(state, path)
    np.savez(tmp_path / "monai.npz", **state)
    for name, value in read_arrays(tmp_path / "monai.npz").items():
        np.testing.assert_array_equal(value, state[f"module.{name}"])
    code = main(
        ["import", str(path), "--to", str(tmp_path / "out"), "--intensity-window", "-100", "400"]
    )
    assert code == 0
    assert "fresh: 0 weights" in capsys.readouterr().out
    model, config = load_network(tmp_path / "out")
    assert config == attrs.evolve(SMALL, intensity_window=(-100.0, 400.0))
    assert_same_weights(model, ahnet)


@pytest.mark.slow
def test_imported_with_a_task_it_predicts(tmp_path, capsys):
    config = attrs.evolve(SMALL, blocks=(1, 1, 1, 1), dense_layers=1)
    network = random_network(config)
    np.savez(tmp_path / "monai.npz", **state_of(network, lambda name: ahnet_source(name, 2)))
    words = ["import", str(tmp_path / "monai.npz"), "--to", str(tmp_path / "out")]
    for options, line in (
        (["--classes", "7"], f"--classes: expected 3, as in {tmp_path}/monai.npz, found 7"),
        (["--architecture", "mcgcn"], "--architecture: expected ahnet, as in"),
        (["--task", "dbt_lesion"], "classes: expected 2 (background, lesion), found 3"),
    ):
        assert main([*words, *options]) == 1
        assert f"error: {line}" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert main([*words, "--task", "ct_liver", "--classes", "3"]) == 0
    predictor = open_predictor(tmp_path / "out")
    assert predictor.settings.task == PRESETS["ct_liver"]
    image = np.random.default_rng(0).integers(-200, 250, (1, 4, 32, 32, 1)).astype(np.float32)
    expected = tf.nn.softmax(network(image))
    np.testing.assert_allclose(predictor.predict(image), expected, atol=1e-5)


@pytest.mark.slow
def test_one_output_of_an_imported_network_is_a_sigmoids(tmp_path):
    one = random_network(attrs.evolve(SMALL, classes=1, activation="sigmoid"))
    np.savez(tmp_path / "one.npz", **state_of(one, lambda name: ahnet_source(name, 2)))
    model, config, _ = import_network(tmp_path / "one.npz", SMALL)
    assert (config.classes, config.activation) == (1, "sigmoid")
    task = Task("own", ("background", "lesion"), config.intensity_window)
    predictor = predictor_of(model, ExportSettings(task, config, (4, 32, 32)), "here")
    image = np.random.default_rng(0).integers(-200, 250, (1, 4, 32, 32, 1)).astype(np.float32)
    found = predictor.predict(image)
    expected = 1 / (1 + np.exp(-one(image).numpy()))
    np.testing.assert_allclose(found, np.concatenate([1 - expected, expected], -1), atol=1e-5)


@pytest.mark.slow
def test_torchvision_fills_the_encoder(mcgcn, tmp_path):
    state = state_of(mcgcn, torchvision_source)
    state |= {"fc.weight": np.zeros((10, 8), np.float32), "fc.bias": np.zeros(10, np.float32)}
    np.savez(tmp_path / "resnet.npz", **state)
    found, _, report = import_network(tmp_path / "resnet.npz", SMALL_2D)
    assert_same_weights(found, mcgcn, "stem")
    assert_same_weights(found, mcgcn, "res")
    assert all(name.startswith(("gcn", "refine")) for name, _ in report.fresh)
    # In 3D, colours become slices; two image channels share the kernel of a slice.
    config = attrs.evolve(SMALL, channels=2)
    volume, _, _ = import_network(tmp_path / "resnet.npz", config)
    kernel = named_weights(volume)["stem/kernel"].numpy()
    flat = named_weights(mcgcn)["stem/kernel"].numpy()
    for z in range(3):
        for channel in range(2):
            np.testing.assert_array_equal(kernel[z, :, :, channel], flat[:, :, z] / 2)


def keras_file(path, model, groups="layer_names"):
    """Writes what Keras' save_weights writes, from the weights of an MC-GCN, with biases of 0.5."""
    weights = {name: value.numpy() for name, value in named_weights(model).items()}
    layers = {}
    for name, value in weights.items():
        layer, *middle, leaf = name.split("/")
        if not name.startswith(("stem", "res")):
            continue
        key = "conv1"
        if layer != "stem":
            stage, block = int(layer[3]), int(layer.split("block")[1])
            number = 0 if middle[0] == "shortcut" else int(middle[0][4])
            key = f"conv{stage + 1}_block{block}_{number}"
        kind = "conv" if leaf == "kernel" else "bn"
        layers.setdefault(f"{key}_{kind}", {})[leaf] = value
        if leaf == "kernel":
            layers[f"{key}_{kind}"]["bias"] = np.full(value.shape[-1], 0.5, np.float32)
    write_keras_h5(path, layers, groups)


def test_keras_biases_are_folded_into_the_norm(mcgcn, tmp_path):
    keras_file(tmp_path / "resnet_notop.h5", mcgcn)
    found, _, _ = import_network(tmp_path / "resnet_notop.h5", SMALL_2D)
    found, given = named_weights(found), named_weights(mcgcn)
    for name in ("stem/norm", "res1_block1/shortcut/norm", "res4_block1/conv3/norm"):
        mean = f"{name}/moving_mean"
        np.testing.assert_allclose(found[mean], given[mean] - 0.5, rtol=1e-6)
        np.testing.assert_array_equal(found[f"{name}/gamma"], given[f"{name}/gamma"])
    kernel = "res2_block1/conv2/kernel"
    np.testing.assert_array_equal(found[kernel], given[kernel])


@pytest.mark.slow
def test_keras_own_resnet50_fits_by_name(tmp_path):
    """The file is written by Keras' application; features agree up to res1, which has no stride."""
    resnet = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(64, 64, 3))
    generator = np.random.default_rng(8)
    for weight in resnet.weights:
        noise = generator.uniform(0.5, 1.5, weight.shape).astype(np.float32)
        weight.assign(weight.numpy() + noise * (0.02 if "kernel" in weight.name else 0.3))
    path = tmp_path / NAME
    write_keras_h5(path, layer_weights(resnet))
    config = ModelConfig(architecture="mcgcn", intensity_window=(-1.0, 1.0))
    model, _, report = import_network(path, config)
    assert len(report.copied) == 53 * 5
    middle = generator.uniform(-1, 1, (1, 3, 64, 64, 1)).astype(np.float32)
    names = ("stem", "res1_block3")
    ours = keras.Model(model.input, [model.get_layer(name).output for name in names])(middle)
    names = ("conv1_relu", "conv2_block3_out")
    theirs = keras.Model(resnet.input, [resnet.get_layer(name).output for name in names])
    image = np.moveaxis(middle[0, :, :, :, 0], 0, -1)[np.newaxis]
    for found, expected in zip(ours, theirs(image), strict=True):
        np.testing.assert_allclose(found[:, 1], expected, rtol=1e-3, atol=1e-3 * np.ptp(expected))


def test_missing_weights_are_all_named(ahnet, tmp_path):
    state = state_of(ahnet, lambda name: ahnet_source(name, 2))
    del state["layer1.1.bn2.running_var"]
    state["up0.conv.weight"] = state["up0.conv.weight"][:, :-1]
    np.savez(tmp_path / "monai.npz", **state)
    with pytest.raises(ModelError) as caught:
        import_network(tmp_path / "monai.npz", ModelConfig())
    text = str(caught.value)
    assert (
        "layer1.1.bn2.running_var (for res1_block2/conv2/norm/moving_variance) is missing" in text
    )
    assert "up1/kernel is (1, 1, 127, 64) instead of (1, 1, 128, 64)" in text


def test_encoder_of_another_width_is_refused(mcgcn, tmp_path):
    keras_file(tmp_path / "small.h5", mcgcn)
    wide = attrs.evolve(SMALL_2D, width=0.125)
    with pytest.raises(
        ModelError, match=r"stem/kernel is \(7, 7, 3, 4\) instead of \(7, 7, 3, 8\)"
    ):
        import_network(tmp_path / "small.h5", wide)


def test_group_norm_is_refused(mcgcn, tmp_path):
    """It has no place for the moving statistics."""
    keras_file(tmp_path / "small.h5", mcgcn)
    with pytest.raises(ModelError, match="batch norm, found norm=group"):
        import_network(tmp_path / "small.h5", attrs.evolve(SMALL_2D, norm="group"))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".h5", ".pth"])
def test_damaged_files_are_refused(suffix, tmp_path, capsys):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"no weights")
    assert main(["import", str(path), "--to", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert str(path) in error
    assert not (tmp_path / "out").exists()


def test_nothing_in_a_file_is_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.savez(tmp_path / "trap.npz", weights=np.array([Trap()], dtype=object))
    with pytest.raises(ModelError):
        read_arrays(tmp_path / "trap.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_pth_without_torch_says_what_to_do(tmp_path):
    path = tmp_path / "resnet50.pth"
    path.write_bytes(b"PK")
    with pytest.raises(ModelError, match=r"no torch here\. .*safetensors"):
        read_arrays(path)


def test_pth_with_torch(mcgcn, tmp_path):
    torch = pytest.importorskip("torch")
    state = state_of(mcgcn, torchvision_source)
    torch.save(
        {"state_dict": {k: torch.from_numpy(v) for k, v in state.items()}}, tmp_path / "a.pt"
    )
    assert read_arrays(tmp_path / "a.pt").keys() == state.keys()


def test_foreign_names_and_missing_files_are_refused(tmp_path):
    np.savez(tmp_path / "foreign.npz", a=np.zeros(3))
    with pytest.raises(ModelError, match=r"1 arrays \(a, \.\.\.\)"):
        import_network(tmp_path / "foreign.npz", ModelConfig())
    with pytest.raises(ModelError, match="no such file"):
        read_arrays(tmp_path / "missing.npz")
    with pytest.raises(ModelError, match="a file of weights"):
        read_arrays(tmp_path / "weights.bin")


@pytest.fixture
def no_network(monkeypatch):
    """Redirects downloads to a closed local port, which refuses them at once."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    # urllib reads the variables once and caches them.
    urllib.request.install_opener(None)
    yield
    urllib.request.install_opener(None)


def test_imagenet_without_network_says_which_file_goes_where(tmp_path, no_network):
    with pytest.raises(ModelError) as caught:
        imagenet_file(tmp_path)
    assert str(tmp_path / "models" / NAME) in str(caught.value)
    (tmp_path / "models" / NAME).write_bytes(b"half a file")
    with pytest.raises(ModelError, match="expected MD5 4d473c1d"):
        imagenet_file(tmp_path)
