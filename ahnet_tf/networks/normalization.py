"""Normalization layers of feature maps: batch norm, batch norm over all replicas, group norm."""

from __future__ import annotations

import math

import tensorflow as tf

from ahnet_tf.networks.ops import fold, register, unfold

# As published.
EPSILON = 1e-5


def make_norm(kind: str, name: str) -> tf.keras.layers.Layer:
    """Returns the layer of `ModelConfig.norm`, "batch", "sync_batch" or "group", for folded maps.

    Weights are float32 under any policy.
    """
    if kind == "group":
        return GroupNorm(name=name)
    return tf.keras.layers.BatchNormalization(
        momentum=0.9, epsilon=EPSILON, synchronized=kind == "sync_batch", name=name
    )


def norm_relu(norm: tf.keras.layers.Layer, x: tf.Tensor, training: bool | None) -> tf.Tensor:
    """Applies `norm` and ReLU to [batch, z, y, x, channel]."""
    return unfold(tf.nn.relu(norm(fold(x), training=training)), x)


@register
class GroupNorm(tf.keras.layers.Layer):
    """Group norm (Wu and He 2018) of folded maps: within each slice, in 2D and 3D networks alike.

    Groups hold at least a sixteenth of the channels. Sums are float32 under any policy.
    """

    def __init__(self, **kwargs):
        super().__init__(**{"dtype": "float32"} | kwargs, autocast=False)

    def build(self, input_shape):
        channels = input_shape[-1]
        self.groups = math.gcd(channels, 16)
        self.gamma = self.add_weight(name="gamma", shape=[channels], initializer="ones")
        self.beta = self.add_weight(name="beta", shape=[channels], initializer="zeros")

    def call(self, inputs, training=None):
        x, channels = tf.cast(inputs, tf.float32), inputs.shape[-1]
        # A group's moments follow from its channels': the map itself is read twice and written once.
        mean, variance = (
            tf.reshape(moment, [-1, self.groups, channels // self.groups])
            for moment in tf.nn.moments(x, [1, 2])
        )
        group_mean = tf.reduce_mean(mean, -1, keepdims=True)
        spread = variance + tf.square(mean - group_mean)
        factor = tf.math.rsqrt(tf.reduce_mean(spread, -1, keepdims=True) + EPSILON)
        scale = factor * tf.reshape(self.gamma, [self.groups, -1])
        shift = tf.reshape(self.beta, [self.groups, -1]) - group_mean * scale
        scale, shift = (tf.reshape(each, [-1, 1, 1, channels]) for each in (scale, shift))
        return tf.cast(x * scale + shift, inputs.dtype)
