"""This project's AH-Net as a worker (see `peers`)."""

from __future__ import annotations

import contextlib
from pathlib import Path

import attrs
import keras
import numpy as np
import tensorflow as tf

import ahnet_tf
from ahnet_tf.config import ModelConfig
from ahnet_tf.networks import build_network, named_weights
from ahnet_tf.networks.inputs import network_probabilities
from ahnet_tf.networks.recompute import recompute_blocks
from ahnet_tf.training.distribution import share_one_arena
from ahnet_tf.training.losses import softmax_focal
from ahnet_tf.training.optimizer import Adam
from benchmarks.openvino_worker import label_map
from benchmarks.parity import random_image
from benchmarks.peers import serve, timed
from preprocessing.tasks import PRESETS

STATE = {}


def _use(device, threads, work="forward"):
    """Sets up the device, "cpu" or "cuda"."""
    STATE["device"] = device
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    if device == "cpu":
        if work == "training":
            # As the command does.
            share_one_arena()
        tf.config.set_visible_devices([], "GPU")
    elif not tf.config.list_physical_devices("GPU"):
        raise SystemExit("TensorFlow finds no GPU: its CUDA packages are missing, or the driver")


def prepare(
    work,
    shape,
    precision,
    threads,
    device="cpu",
    jit_compile=False,
    settings=None,
    recompute=False,
):
    """Sets up a forward pass or training step on noise of shape [batch, z, y, x, channel].

    `settings` are attributes of ModelConfig, `recompute` is the one of TrainingConfig.
    """
    _use(device, threads, work)
    # Predictions in bfloat16 hold their weights in it too, trainings keep float32 ones.
    if precision == "bfloat16" and work == "training":
        precision = "mixed_bfloat16"
    keras.mixed_precision.set_global_policy(precision)
    config = ModelConfig(channels=shape[-1], intensity_window=(-4.0, 4.0), **(settings or {}))
    model = build_network(config)
    image = tf.random.normal(shape)
    labels = tf.random.uniform(shape[:-1], 0, 3, tf.int32)
    optimizer = Adam(tf.distribute.get_strategy(), model.trainable_weights, lambda _: 1e-3)

    @tf.function(jit_compile=jit_compile)
    def forward():
        return model(image, training=False)

    @tf.function(jit_compile=jit_compile)
    def training():
        with tf.GradientTape() as tape:
            with recompute_blocks() if recompute else contextlib.nullcontext():
                logits = model(image, training=True)
            loss = tf.reduce_mean(softmax_focal(labels, logits))
        gradients = tape.gradient(loss, model.trainable_weights)
        optimizer.apply(gradients)
        return loss

    STATE["step"] = {"forward": forward, "training": training}[work]


def losses(steps, shape, learning_rate, settings, weights):
    """Returns the losses of a float32 training of AH-Net on one batch.

    The initial weights are those of the .npz file `weights`, which the first call writes.
    """
    model = build_network(ModelConfig(intensity_window=(-1.0, 1.0), **settings))
    variables = named_weights(model)
    if not Path(weights).exists():
        np.savez(weights, **{name: variable.numpy() for name, variable in variables.items()})
    with np.load(weights) as arrays:
        for name, variable in variables.items():
            variable.assign(arrays[name])
    image = random_image(shape)
    # Bright voxels, so that there is something to learn.
    labels = tf.constant(np.digitize(image[..., 0], (0.3, 0.8)), tf.int32)
    optimizer = Adam(tf.distribute.get_strategy(), model.trainable_weights, lambda _: learning_rate)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(softmax_focal(labels, model(image, training=True)))
        optimizer.apply(tape.gradient(loss, model.trainable_weights))
        return loss

    return [float(step()) for _ in range(steps)]


def write_checkpoint(folder, window):
    """Writes a new AH-Net of the full size as a checkpoint, for windows [z, y, x]."""
    task = attrs.evolve(PRESETS["ct_liver"], patch_shape_zyx=tuple(window))
    ahnet_tf.save(ahnet_tf.build("ahnet", task=task), folder, task)


def prepare_prediction(volume, window, overlap, threads, classes, precision):
    """Sets up a whole volume's prediction from an .npy [z, y, x] to label values on the same grid."""
    _use("cpu", threads)
    keras.mixed_precision.set_global_policy(precision)
    model = build_network(ModelConfig(classes=classes, intensity_window=(-200.0, 250.0)))
    raw = np.load(volume)

    @tf.function
    def probabilities(image):
        return network_probabilities(model, image, "softmax")

    def predict(windows):
        return probabilities(tf.constant(windows, tf.float32)).numpy()

    STATE["window"] = lambda: predict(np.zeros((1, *window, 1), np.int16))
    STATE["step"] = lambda: label_map(raw, predict, window, classes, overlap)


def once_window():
    """Predicts one window twice; returns as `once` does."""
    STATE["window"]()
    return timed(STATE["window"])


def once():
    """Runs what was prepared; returns the seconds it took and the peak memory in MiB.

    That is the memory of this call on a GPU, or of the process so far.
    """
    if STATE["device"] == "cpu":
        return timed(_computed)
    tf.config.experimental.reset_memory_stats("GPU:0")
    return timed(_computed, lambda: tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20)


def _computed():
    answer = STATE["step"]()
    if tf.is_tensor(answer):
        # Waits for the GPU, and copies one value only.
        tf.reshape(answer, [-1])[0].numpy()


if __name__ == "__main__":
    serve(
        {
            "prepare": prepare,
            "losses": losses,
            "write_checkpoint": write_checkpoint,
            "prepare_prediction": prepare_prediction,
            "once_window": once_window,
            "once": once,
        }
    )
