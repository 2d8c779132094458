"""What all networks begin and end with.

Layers of the input: intensity window, padding, neighbouring slices; of the output: cropping, prior. And the
probabilities of classes.
"""

from __future__ import annotations

import functools
import math
from typing import TypeAlias

import keras
import tensorflow as tf

from ahnet_tf.networks.ops import axis_sizes, joined_layers, register

# Logits [batch, z, y, x, class], or a plane [batch, z, y, x] for each class.
Logits: TypeAlias = tf.Tensor | list[tf.Tensor]


def network_probabilities(network: keras.Model, image: tf.Tensor, activation: str) -> tf.Tensor:
    """Returns the `class_probabilities` of a network's logits for raw intensities [batch, z, y, x, channel]."""
    with joined_layers():
        logits = network(image, training=False)
    return class_probabilities(logits, activation)


def class_probabilities(logits: tf.Tensor, activation: str) -> tf.Tensor:
    """Returns probabilities [batch, z, y, x, class], float32, of logits; class 0 is the background.

    "softmax": exclusive classes. "sigmoid": independent foreground probabilities (heat maps), and 1 -
    their maximum for the background: the most probable class is a foreground class exactly where its
    probability is above a half, also after averaging over windows. A single output is the foreground's.
    """
    logits = tf.cast(logits, tf.float32)
    if activation == "softmax":
        shares = [tf.exp(share) for share in log_softmax(class_planes(logits))]
        return tf.transpose(tf.stack(shares), [1, 2, 3, 4, 0])
    foreground = tf.sigmoid(foreground_logits(logits))
    return tf.concat([1 - tf.reduce_max(foreground, -1, keepdims=True), foreground], -1)


def class_planes(values: Logits) -> list[tf.Tensor]:
    """Returns float32 [batch, z, y, x] for each class of [batch, z, y, x, class].

    Operations along an axis as short as that of the classes take several times as long as on planes.
    """
    if isinstance(values, list):
        return values
    return tf.unstack(tf.transpose(tf.cast(values, tf.float32), [4, 0, 1, 2, 3]))


def log_softmax(planes: list[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the logarithm of the softmax over planes."""
    largest = tf.stop_gradient(functools.reduce(tf.maximum, planes))
    shifted = [plane - largest for plane in planes]
    log_sum = tf.math.log(tf.add_n([tf.exp(plane) for plane in shifted]))
    return [plane - log_sum for plane in shifted]


def foreground_logits(logits: tf.Tensor) -> tf.Tensor:
    """Returns the logits of the foreground classes: all but the first, or a single one."""
    return logits if logits.shape[-1] == 1 else logits[..., 1:]


@register
class IntensityWindow(keras.layers.Layer):
    """Maps raw intensities low..high to -1..+1 and clips outside, in float32 whatever the policy."""

    def __init__(self, low: float, high: float, **kwargs):
        super().__init__(**{"dtype": "float32"} | kwargs)
        self.low = low
        self.high = high

    def build(self, input_shape):
        # The first layer of every network: Keras checks the image's shape against it.
        self.input_spec = keras.layers.InputSpec(ndim=5, axes={-1: input_shape[-1]})

    def call(self, inputs):
        return tf.clip_by_value((inputs - self.low) * (2 / (self.high - self.low)) - 1, -1, 1)


@register
class PadInPlane(keras.layers.Layer):
    """Pads zeros at the end of y and x up to a multiple of 32, the encoder's stride."""

    def call(self, inputs):
        # -size % 32 is the same, but the ONNX converter gets its sign wrong.
        rows, columns = ((32 - size % 32) % 32 for size in axis_sizes(inputs)[2:4])
        return tf.pad(inputs, [[0, 0], [0, 0], [0, rows], [0, columns], [0, 0]])


@register
class CropInPlane(keras.layers.Layer):
    """Crops to the y, x of a second map."""

    def call(self, inputs, like):
        rows, columns = axis_sizes(like)[2:4]
        return inputs[:, :, :rows, :columns]


@register
class ForegroundPrior(keras.layers.Layer):
    """Adds log(p / (1 - p)) to foreground logits: a fresh network predicts them rarely (Lin 2017)."""

    def __init__(self, probability: float, **kwargs):
        super().__init__(**{"dtype": "float32"} | kwargs)
        self.probability = probability

    def call(self, inputs):
        offset = math.log(self.probability / (1 - self.probability))
        foreground = foreground_logits(inputs).shape[-1]
        return inputs + tf.constant([0.0] * (inputs.shape[-1] - foreground) + [offset] * foreground)


@register
class NeighbouringSlices(keras.layers.Layer):
    """Stacks each slice's `count` neighbours, itself in the middle, as channels: slice-major.

    [batch, z, y, x, channel] becomes [batch, z, y, x, count * channel]; beyond the ends lie zeros.
    """

    def __init__(self, count: int = 3, **kwargs):
        super().__init__(**kwargs)
        self.count = count

    def call(self, inputs):
        reach, depth = self.count // 2, axis_sizes(inputs)[1]
        x = tf.pad(inputs, [[0, 0], [reach, reach], [0, 0], [0, 0], [0, 0]])
        return tf.concat([x[:, i : i + depth] for i in range(self.count)], axis=-1)
