"""This project's AH-Net as a worker (see `peers`)."""

from __future__ import annotations

import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ahnet_tf.config import ModelConfig
from ahnet_tf.inference.sliding_window import most_probable, predict_slabs
from ahnet_tf.networks import build_network, named_weights
from ahnet_tf.networks.inputs import class_probabilities
from ahnet_tf.training.losses import softmax_focal
from ahnet_tf.training.optimizer import Adam
from benchmarks.parity import random_image
from benchmarks.peers import peak_memory_mib, serve

STATE = {}


def prepare(work, shape, precision, threads):
    """Sets up a forward pass or training step on noise of shape [batch, z, y, x, channel]."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    # Predictions in bfloat16 hold their weights in it too, trainings keep float32 ones.
    if precision == "bfloat16" and work == "training":
        precision = "mixed_bfloat16"
    keras.mixed_precision.set_global_policy(precision)
    model = build_network(ModelConfig(channels=shape[-1], intensity_window=(-4.0, 4.0)))
    image = tf.random.normal(shape)
    labels = tf.random.uniform(shape[:-1], 0, 3, tf.int32)
    optimizer = Adam(tf.distribute.get_strategy(), model.trainable_weights, lambda _: 1e-3)

    @tf.function
    def forward():
        return model(image, training=False)

    @tf.function
    def training():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(softmax_focal(labels, model(image, training=True)))
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


def prepare_prediction(volume, window, overlap, threads, classes):
    """Sets up a whole volume's prediction from an .npy [z, y, x] to label values on the same grid."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    model = build_network(ModelConfig(classes=classes, intensity_window=(-200.0, 250.0)))
    raw = np.load(volume)

    @tf.function
    def probabilities(image):
        return class_probabilities(model(image, training=False), "softmax")

    def predict(windows):
        return probabilities(tf.constant(windows, tf.float32)).numpy()

    def one_window():
        return tf.constant(predict(np.zeros((1, *window, 1), np.int16)))

    def whole():
        labels = np.empty(raw.shape, np.uint8)
        slabs = predict_slabs(raw, predict, tuple(window), classes, overlap=overlap)
        for z, probabilities in slabs:
            labels[z : z + len(probabilities)] = most_probable(probabilities)
        return tf.constant(labels)

    STATE["window"] = one_window
    STATE["step"] = whole


def once_window():
    """Predicts one window twice; returns as `once` does."""
    STATE["window"]()
    start = time.perf_counter()
    STATE["window"]()
    return time.perf_counter() - start, peak_memory_mib()


def once():
    """Runs what was prepared; returns the seconds it took and the process's peak memory in MiB."""
    start = time.perf_counter()
    STATE["step"]().numpy()
    return time.perf_counter() - start, peak_memory_mib()


if __name__ == "__main__":
    serve(
        {
            "prepare": prepare,
            "losses": losses,
            "prepare_prediction": prepare_prediction,
            "once_window": once_window,
            "once": once,
        }
    )
