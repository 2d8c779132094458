"""Weight decay, averaged weights and the loss scale of float16, against independent numbers."""

import contextlib
import math

import attrs
import keras
import numpy as np
import pytest
import tensorflow as tf

from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.networks import build_network
from ahnet_tf.networks.factory import named_weights, precision
from ahnet_tf.training.distribution import training_strategy
from ahnet_tf.training.logs import read_history
from ahnet_tf.training.optimizer import WeightAverage, make_optimizer
from ahnet_tf.training.train_step import make_train_step
from ahnet_tf.training.trainer import train_network
from ahnet_tf.weights.checkpoint import load_network
from tests.ahnet_tf.toy import MODEL, TASK, TRAINING, toy_patch

# Clipping would mix what the weights do.
CONFIG = TrainingConfig(steps=10, warmup_steps=0, decay="constant", learning_rate=0.01, clip_norm=0)


def batch_of(*numbers):
    patches = [toy_patch(number, "train") for number in numbers]
    image = np.stack([patch.image_zyx for patch in patches])[..., None].astype(np.float32)
    label = np.stack([patch.label_zyx for patch in patches])
    weight = np.ones(label.shape, np.float32)
    return {"image": tf.constant(image), "label": tf.constant(label), "weight": tf.constant(weight)}


def learner(config, model_config=MODEL, momentum=0.0):
    strategy = training_strategy(1)
    with strategy.scope(), precision(config.precision):
        model = build_network(model_config, seed=0)
    optimizer = make_optimizer(strategy, model, config)
    average = WeightAverage(strategy, model, momentum) if momentum else None
    step = make_train_step(strategy, model, optimizer, model_config, config, average)
    return model, optimizer, average, step


def values(model):
    return {name: weight.numpy() for name, weight in named_weights(model).items()}


def test_weight_decay_applies_to_kernels_only():
    """After one step AdamW differs from Adam by learning rate x decay x start weight (both 0.01)."""
    start = values(build_network(MODEL, seed=0))
    found = []
    for decay in (0.0, 0.01):
        model, _, _, step = learner(attrs.evolve(CONFIG, weight_decay=decay))
        step(batch_of(0, 1))
        found.append(values(model))
    plain, decayed = found
    kernels = [name for name in start if "kernel" in name]
    assert 0 < len(kernels) < len(start)
    for name in start:
        taken = 1e-4 * start[name] if name in kernels else np.zeros_like(start[name])
        # Both Adams round differently.
        np.testing.assert_allclose(plain[name] - decayed[name], taken, atol=2e-6, err_msg=name)
        assert np.abs(plain[name] - start[name]).max() > 1e-3 or not plain[name].any()


def test_ema_follows_weights_and_statistics_and_replaces_them_temporarily():
    """By the formula, and for trainable weights, which Keras averages as well, as its use_ema does."""
    model_config = attrs.evolve(MODEL, norm="batch")
    model, _, average, step = learner(CONFIG, model_config, momentum=0.75)
    twin = build_network(model_config, seed=0)
    peer = keras.optimizers.Adam(0.0, use_ema=True, ema_momentum=0.75)
    peer.build(twin.trainable_variables)
    no_gradients = [tf.zeros(v.shape) for v in twin.trainable_variables]
    # The averages of Keras 3 begin with the weights after its first step, those of Keras 2 before it.
    peer.apply_gradients(zip(no_gradients, twin.trainable_variables, strict=True))
    expected = values(model)
    for number in range(3):
        step(batch_of(number))
        now = values(model)
        expected = {name: 0.75 * expected[name] + 0.25 * now[name] for name in now}
        # Both Adams round differently: Keras' averages are fed with our weights.
        for one, other in zip(twin.trainable_variables, model.trainable_variables, strict=True):
            one.assign(other)
        peer.apply_gradients(zip(no_gradients, twin.trainable_variables, strict=True))
    peer.finalize_variable_values(twin.trainable_variables)
    assert any("moving_variance" in name for name in expected)
    with contextlib.suppress(RuntimeError), average.in_place():
        inside = values(model)
        raise RuntimeError
    for name, value in expected.items():
        np.testing.assert_allclose(inside[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
        np.testing.assert_array_equal(values(model)[name], now[name])
    assert any(np.abs(inside[name] - now[name]).max() > 1e-3 for name in now)
    trainable = {id(v): name for name, v in named_weights(twin).items()}
    for variable in twin.trainable_variables:
        name = trainable[id(variable)]
        np.testing.assert_allclose(variable.numpy(), inside[name], atol=1e-6, err_msg=name)


def train(records, output, **changes):
    files = [[str(records / split / "a.tfrecord.gz")] for split in ("train", "eval")]
    config = attrs.evolve(TRAINING, **changes)
    return train_network(MODEL, config, TASK, *files, output, progress=False)


@pytest.mark.slow
def test_averaged_network_is_evaluated_and_saved(toy_records, tmp_path):
    """With momentum near 1 the average is nearly what the training began with."""
    train(toy_records, tmp_path, ema_momentum=0.999999)
    start = values(build_network(MODEL, seed=TRAINING.seed))
    for folder in (tmp_path, tmp_path / "last"):
        for name, value in values(load_network(folder)[0]).items():
            np.testing.assert_allclose(value, start[name], atol=1e-6)
    rows = read_history(tmp_path / "history.csv")
    assert rows[0]["loss"] > rows[-1]["loss"]


TINY_AHNET = ModelConfig(width=0.125, blocks=(1, 1, 1, 1), growth=4, dense_layers=1, pvp_levels=1)


@pytest.mark.slow
def test_float16_skips_overflowing_steps_and_halves_the_scale():
    """A loss 100 times too large overflows until the scale is small enough, and then learns."""
    config = attrs.evolve(
        CONFIG, precision="mixed_float16", class_weights=(100.0, 100.0, 100.0), learning_rate=1e-3
    )
    model, optimizer, _, step = learner(config, TINY_AHNET)
    batch, losses, skipped = batch_of(0, 1), [], 0
    while len(losses) < 6:
        before = [weight.numpy() for weight in model.trainable_weights]
        loss, norm = map(float, step(batch))
        same = all(
            (old == new.numpy()).all()
            for old, new in zip(before, model.trainable_weights, strict=True)
        )
        assert same == (not math.isfinite(norm))
        if same:
            skipped += 1
            assert float(optimizer.loss_scale.numpy()) == 2.0 ** (15 - skipped)
        else:
            losses.append(loss)
    assert 0 < skipped < 15
    assert losses[-1] < losses[0]
    assert {tf.as_dtype(weight.dtype) for weight in model.weights} == {tf.float32}


def test_float16_gradients_are_those_of_float32():
    """Whatever the scale: unscaled, clipped and applied alike, but for float16's own rounding."""
    norms = {}
    for kind in ("float32", "mixed_float16"):
        _, _, _, step = learner(attrs.evolve(CONFIG, precision=kind), MODEL)
        loss, norm = step(batch_of(0, 1))
        norms[kind] = float(loss), float(norm)
    assert norms["mixed_float16"] == pytest.approx(norms["float32"], rel=0.02)


@pytest.mark.slow
def test_loss_scale_is_in_history_and_checkpoints(toy_records, tmp_path):
    files = [[str(toy_records / split / "a.tfrecord.gz")] for split in ("train", "eval")]
    config = attrs.evolve(
        TRAINING,
        precision="mixed_float16",
        class_weights=(1e4, 1e4, 1e4),
        steps=16,
        evaluate_every=16,
        checkpoint_every=12,
    )
    train_network(MODEL, config, TASK, *files, tmp_path, progress=False)
    rows = read_history(tmp_path / "history.csv")
    skipped = np.cumsum([row["skipped_steps"] for row in rows])
    assert 0 < skipped[-1] < 15
    assert [row["loss_scale"] for row in rows] == [2.0 ** (15 - n) for n in skipped]
    assert np.isfinite([row["loss"] for row in rows]).all()
    names = dict(tf.train.list_variables(str(tmp_path / "checkpoints" / "ckpt-16")))
    (scale,) = (name for name in names if "loss_scale" in name)
    saved = tf.train.load_variable(str(tmp_path / "checkpoints" / "ckpt-16"), scale)
    assert saved == rows[-1]["loss_scale"]
