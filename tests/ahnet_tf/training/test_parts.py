"""Parts of a training against numbers computed by hand."""

import ctypes
import math
import resource
import subprocess
import sys

import attrs
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.networks.dropout import SeededDropout, dropout_seed
from ahnet_tf.networks.factory import build_network
from ahnet_tf.networks.inputs import class_probabilities
from ahnet_tf.training import distribution as devices
from ahnet_tf.training.logs import COLUMNS, History, read_history
from ahnet_tf.training.optimizer import WarmUpThenDecay
from ahnet_tf.training.train_step import batch_loss
from ahnet_tf.training.validation import (
    CaseDice,
    class_labels,
    mean_over_classes,
    predicted_classes,
    tile_counts,
)
from preprocessing.errors import SettingsError
from preprocessing.tasks import PRESETS, Task

LIVER = PRESETS["ct_liver"]


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        # Two steps of warm-up, then t = 0, 1/4, 1/2, 3/4 and, after the last step, 1.
        ("cosine", [0.05, 0.1, 0.1, 0.0868198, 0.055, 0.0231802, 0.01]),
        ("constant", [0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]),
    ],
)
def test_learning_rate_rises_then_falls(decay, expected):
    config = TrainingConfig(
        steps=6, warmup_steps=2, learning_rate=0.1, final_learning_rate=0.1, decay=decay
    )
    schedule = WarmUpThenDecay(config)
    np.testing.assert_allclose([schedule(step) for step in range(7)], expected, rtol=1e-5)


def test_no_warm_up_begins_at_the_full_rate():
    schedule = WarmUpThenDecay(TrainingConfig(steps=5, warmup_steps=0, learning_rate=0.2))
    assert float(schedule(0)) == pytest.approx(0.2)


def test_class_labels_are_classes_and_their_union():
    assert class_labels(LIVER) == ["liver", "tumour", "foreground"]
    assert class_labels(Task("own", ("background", "lesion"), (0, 1))) == ["lesion"]


def test_tile_counts_ignore_weightless_voxels():
    label = np.array([[[[0, 1, 1, 2, 2]]]])
    predicted = np.array([[[[1, 1, 2, 2, 2]]]])
    weight = np.array([[[[1.0, 1, 1, 1, 0]]]])
    counts = tile_counts(label, predicted, tf.constant(weight), 3).numpy()
    # both, predicted, true: liver, tumour, their union.
    assert counts.tolist() == [[[1, 2, 2], [1, 2, 1], [3, 4, 3]]]


def test_dice_per_case_adds_up_its_tiles_and_counts_undefined_ones():
    found = CaseDice(["liver", "tumour"])
    found.add(np.array([b"a", b"b"]), np.array([[[3, 4, 5], [0, 0, 0]], [[1, 1, 1], [0, 2, 0]]]))
    found.add(np.array([b"a"]), np.array([[[1, 2, 1], [0, 0, 0]]]))
    summary = found.summary()
    assert summary["cases"]["a"]["liver"] == 2 * 4 / (6 + 6)
    assert math.isnan(summary["cases"]["a"]["tumour"])
    assert summary["cases"]["b"] == {"liver": 1.0, "tumour": 0.0}
    assert summary["dice"] == {"liver": pytest.approx((2 / 3 + 1) / 2), "tumour": 0.0}
    assert summary["undefined"] == {"liver": 0, "tumour": 1}
    assert mean_over_classes(summary["dice"]) == pytest.approx(5 / 12)


def test_mean_over_classes_ignores_union_and_undefined_classes():
    assert mean_over_classes({"liver": 0.8, "tumour": math.nan, "foreground": 0.1}) == 0.8
    assert mean_over_classes({"tumour": math.nan}) == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_tiles_of_a_volume_count_what_the_volume_counts(seed):
    rng = np.random.default_rng(seed)
    label, predicted = rng.integers(0, 3, (2, 1, 4, 6, 8))
    weight = tf.ones(label.shape)
    whole = tile_counts(label, predicted, weight, 3)
    halves = [
        tile_counts(label[..., part], predicted[..., part], weight[..., part], 3)
        for part in (slice(0, 3), slice(3, 8))
    ]
    np.testing.assert_array_equal(whole, tf.add_n(halves))


def test_predicted_classes_by_hand():
    logits = tf.constant([[[[[0.0, 2.0, 1.0], [-1.0, -2.0, -3.0], [5.0, -1.0, 0.5]]]]])
    assert predicted_classes(logits, ModelConfig()).numpy().ravel().tolist() == [1, 0, 0]
    sigmoid = ModelConfig(activation="sigmoid")
    assert predicted_classes(logits, sigmoid).numpy().ravel().tolist() == [1, 0, 2]


def test_one_output_is_the_probability_of_the_foreground():
    # log(3) and -log(3): 3/4 and 1/4.
    logits = tf.constant([[[[[1.0986123], [-1.0986123]]]]])
    found = class_probabilities(logits, "sigmoid").numpy()
    np.testing.assert_allclose(found[0, 0, 0], [[0.25, 0.75], [0.75, 0.25]], rtol=1e-6)
    config = ModelConfig(classes=1, activation="sigmoid")
    assert predicted_classes(logits, config).numpy().ravel().tolist() == [1, 0]


@pytest.mark.parametrize("target", ["label", "heat_map"])
@pytest.mark.parametrize("loss", ["focal", "cross_entropy", "dice_focal", "heat_map_l2"])
def test_one_output_is_trained_as_the_lesion_of_two(loss, target):
    """The background's output of a heat map has no part in its loss; labels are a heat map of 0 and 1."""
    lesion = tf.random.stateless_normal((1, 2, 3, 4, 1), (1, 2))
    labels = tf.constant(np.arange(24).reshape(1, 2, 3, 4) % 2, tf.float32)
    weight = {"weight": tf.ones(labels.shape)}
    settings = TrainingConfig(loss=loss, batch_size=1, class_weights=(1.0, 5.0))
    two = ModelConfig(classes=2, activation="sigmoid")
    total = tf.constant(24.0)
    both = tf.concat([tf.zeros_like(lesion), lesion], -1)
    expected = batch_loss(both, weight | {"heat_map": labels}, two, settings, total)
    one = attrs.evolve(two, classes=1)
    found = batch_loss(lesion, weight | {target: labels}, one, settings, total)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("loss", ["focal", "cross_entropy", "dice_focal", "heat_map_l2"])
def test_shares_of_replicas_add_up_to_the_loss_of_the_whole_batch(loss):
    rng = np.random.default_rng(1)
    logits = tf.constant(rng.normal(size=(4, 2, 3, 5, 3)), tf.float32)
    # Replicas with unequal weights: a mean of their means would be another number.
    weight = np.ones((4, 2, 3, 5), np.float32)
    weight[0], weight[3, 1] = 0, 0
    batch = {"label": tf.constant(rng.integers(0, 3, weight.shape)), "weight": tf.constant(weight)}
    config = TrainingConfig(loss=loss, batch_size=4, class_weights=(0.5, 1.0, 3.0))
    total = tf.reduce_sum(weight)
    whole = batch_loss(logits, batch, ModelConfig(), config, total)
    parts = [
        batch_loss(
            logits[rows], {k: v[rows] for k, v in batch.items()}, ModelConfig(), config, total
        )
        for rows in (slice(0, 1), slice(1, 4))
    ]
    assert float(whole) > 0
    np.testing.assert_allclose(sum(map(float, parts)), float(whole), rtol=1e-6)


@pytest.mark.parametrize("loss", ["focal", "dice_focal"])
def test_loss_ignores_padding(loss):
    rng = np.random.default_rng(2)
    logits = tf.constant(rng.normal(size=(2, 2, 4, 5, 3)), tf.float32)
    label = tf.constant(rng.integers(0, 3, (2, 2, 4, 5)))
    weight = np.ones((2, 2, 4, 5), np.float32)
    weight[:, :, 2:] = 0
    config = TrainingConfig(loss=loss, batch_size=2)
    whole = {"label": label, "weight": tf.constant(weight)}
    cropped = {"label": label[:, :, :2], "weight": tf.ones((2, 2, 2, 5))}
    total = tf.constant(40.0)
    np.testing.assert_allclose(
        batch_loss(logits, whole, ModelConfig(), config, total),
        batch_loss(logits[:, :, :2], cropped, ModelConfig(), config, total),
        rtol=1e-5,
    )
    nothing = {"label": label, "weight": tf.zeros(label.shape)}
    config = TrainingConfig(loss="focal")
    assert batch_loss(logits, nothing, ModelConfig(), config, tf.constant(0.0)) == 0


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_most_probable_class_is_the_predicted_one(activation):
    logits = tf.random.stateless_normal((1, 4, 5, 6, 3), (1, 2))
    probabilities = class_probabilities(logits, activation)
    config = ModelConfig(activation=activation)
    np.testing.assert_array_equal(
        np.argmax(probabilities, -1), predicted_classes(logits, config).numpy()
    )
    assert float(tf.reduce_min(probabilities)) > 0
    if activation == "softmax":
        np.testing.assert_allclose(tf.reduce_sum(probabilities, -1), 1, rtol=1e-5)


@pytest.mark.parametrize("loss", ["focal", "cross_entropy", "dice_focal", "heat_map_l2"])
def test_heat_map_trains_only_the_lesion_output(loss):
    heat_map = tf.random.stateless_uniform((1, 2, 3, 4), (3, 4))
    batch = {
        "label": tf.cast(heat_map >= 0.5, tf.uint8),
        "heat_map": heat_map,
        "weight": tf.ones((1, 2, 3, 4)),
    }
    logits = tf.Variable(tf.random.stateless_normal((1, 2, 3, 4, 2), (5, 6)))
    config = TrainingConfig(loss=loss, batch_size=1, class_weights=(1.0, 4.0))
    model = ModelConfig(classes=2, activation="sigmoid")
    with tf.GradientTape() as tape:
        value = batch_loss(logits, batch, model, config, tf.constant(24.0))
    gradient = tape.gradient(value, logits).numpy()
    assert not gradient[..., 0].any()
    assert np.abs(gradient[..., 1]).min() > 0


def test_heat_map_loss_by_hand():
    # p = 1/2 against 0.8: |0.3|^2 * log 2, weighted by 0.8 * 5 + 0.2 * 1.
    batch = {"label": tf.ones((1, 1, 1, 1)), "weight": tf.ones((1, 1, 1, 1))}
    batch["heat_map"] = tf.constant([[[[0.8]]]])
    config = TrainingConfig(loss="focal", gamma=2.0, class_weights=(1.0, 5.0))
    model = ModelConfig(classes=2, activation="sigmoid")
    loss = batch_loss(tf.zeros((1, 1, 1, 1, 2)), batch, model, config, tf.constant(1.0))
    assert float(loss) == pytest.approx(0.09 * math.log(2) * 4.2, rel=1e-5)


def test_cross_entropy_of_even_logits_is_the_logarithm_of_the_classes():
    batch = {"label": tf.zeros((1, 1, 2, 2), tf.int32), "weight": tf.ones((1, 1, 2, 2))}
    config = TrainingConfig(loss="cross_entropy")
    loss = batch_loss(tf.zeros((1, 1, 2, 2, 3)), batch, ModelConfig(), config, tf.constant(4.0))
    assert float(loss) == pytest.approx(math.log(3), rel=1e-6)


def test_history_resumes_after_the_last_checkpoint(tmp_path):
    path = tmp_path / "history.csv"
    row = dict.fromkeys(COLUMNS, 0.5)
    history = History(path, ["liver"], 0)
    for step in (5, 10, 15):
        history.add(row | {"step": step, "dice_liver": math.nan, "undefined_liver": 2})
    with open(path, "a") as file:
        file.write("20,0.5,0.")
    assert [kept["step"] for kept in read_history(path)] == [5, 10, 15]
    History(path, ["liver"], 10).add(row | {"step": 11})
    rows = read_history(path)
    assert [kept["step"] for kept in rows] == [5, 10, 11]
    assert math.isnan(rows[0]["dice_liver"])
    assert rows[0]["undefined_liver"] == 2
    assert rows[0]["loss"] == 0.5


def test_history_of_an_earlier_version_gets_empty_columns(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("step,loss,dice_liver\n5,0.25,0.5\n")
    History(path, ["liver"], 5)
    (row,) = read_history(path)
    assert (row["step"], row["loss"], row["dice_liver"]) == (5, 0.25, 0.5)
    assert math.isnan(row["mean_dice"])


def test_full_disk_leaves_the_history_unchanged(tmp_path):
    path = tmp_path / "history.csv"
    history = History(path, ["liver"], 0)
    for step in range(100):
        history.add(dict.fromkeys(COLUMNS, 0.5) | {"step": step})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            History(path, ["liver"], 90)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["history.csv"]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["unet2d", "mcgcn", "ahnet"])
def test_a_prior_shifts_the_logits_of_the_foreground_alone(architecture):
    small = {"classes": 3, "width": 0.125, "blocks": (1, 1, 1, 1), "growth": 4, "dense_layers": 1}
    plain = ModelConfig(architecture, activation="sigmoid", **small)
    prior = attrs.evolve(plain, foreground_prior=0.01)
    image = tf.random.stateless_normal((1, 2, 32, 32, 1), (1, 2), stddev=100)
    one, other = (build_network(config, seed=3) for config in (plain, prior))
    shift = other(image) - one(image)
    # log(0.01 / 0.99)
    expected = np.broadcast_to([0, -4.59512, -4.59512], shift.shape)
    np.testing.assert_allclose(shift, expected, atol=1e-4)
    assert [w.shape for w in one.weights] == [w.shape for w in other.weights]
    with pytest.raises(SettingsError, match="foreground_prior: expected 0 with a softmax"):
        attrs.evolve(prior, activation="softmax")


def test_a_prior_shifts_a_single_output():
    image = tf.random.stateless_normal((1, 2, 32, 32, 1), (1, 2), stddev=100)
    single = ModelConfig("unet2d", classes=1, activation="sigmoid", width=0.125, unet_levels=2)
    one, other = (
        build_network(attrs.evolve(single, foreground_prior=prior))(image) for prior in (0.0, 0.01)
    )
    np.testing.assert_allclose(other - one, np.full(one.shape, -4.59512), atol=1e-4)


def test_dropout_depends_on_the_seed_of_the_step():
    layer, x = SeededDropout(0.25, name="drop"), tf.ones((64, 64))

    def dropped(seed, layer=layer):
        with dropout_seed(tf.constant(seed)):
            return layer(x, training=True)

    first = dropped([1, 2]).numpy()
    np.testing.assert_array_equal(first, dropped([1, 2]))
    assert set(np.unique(first)) == {0, np.float32(4 / 3)}
    # 4096 values: five standard deviations are 0.034.
    assert abs((first == 0).mean() - 0.25) < 0.034
    assert (first != dropped([1, 3]).numpy()).any()
    assert (first != dropped([1, 2], SeededDropout(0.25, name="other")).numpy()).any()
    np.testing.assert_array_equal(layer(x, training=False), x)
    assert (layer(x, training=True).numpy() != layer(x, training=True).numpy()).any()


ARENAS = """
import ctypes, os, sys, threading
from ahnet_tf.training.distribution import share_one_arena
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
libc.malloc.restype = ctypes.c_void_p
def arenas(name):
    file = ctypes.c_void_p(libc.fopen(name.encode(), b"w"))
    libc.malloc_info(0, file)
    libc.fclose(file)
    return open(name).read().count("<heap nr=")
if sys.argv[2] == "one":
    share_one_arena()
before = arenas(sys.argv[1])
together = threading.Barrier(30)
def allocate():
    together.wait()
    libc.malloc(100_000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(30)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(arenas(sys.argv[1]) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="not glibc")
def test_threads_share_one_arena(tmp_path):
    added = {}
    for kind in ("one", "many"):
        command = [sys.executable, "-c", ARENAS, str(tmp_path / "info.xml"), kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        added[kind] = int(done.stdout)
    assert added["one"] == 0 < added["many"]


def test_unused_gpus_are_reported(tmp_path, monkeypatch, capsys):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(devices, "DEVICE_FILES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices.set_up_devices(0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: TensorFlow can't use the 2 NVIDIA GPU(s)")
    assert "make env GPU=1" in line
    # Somebody has said that no GPU is to be used.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    devices.set_up_devices(0)
    assert capsys.readouterr().err == ""
