"""Normalization layers of feature maps: batch norm, batch norm over all replicas, group norm.

They take folded maps or pieces of `channels` (see `ops`). Weights are float32 under any policy.
`learns` says whether a layer's statistics are those of its input.
"""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from ahnet_tf.networks.ops import Channels, FeatureMap, fold, join, register, split, unfold
from ahnet_tf.networks.recompute import computes_again

# As published.
EPSILON = 1e-5
MOMENTUM = 0.9


def make_norm(kind: str, name: str, channels: Channels = None) -> keras.layers.Layer:
    """Returns the layer of `ModelConfig.norm`: "batch", "sync_batch" or "group"."""
    if kind == "group":
        return GroupNorm(channels, name=name)
    return BatchNorm(channels, synchronized=kind == "sync_batch", name=name)


def norm_relu(norm: keras.layers.Layer, x: FeatureMap, training: bool | None) -> FeatureMap:
    """Applies `norm` and ReLU to [batch, z, y, x, channel] or its pieces."""
    return unfold(tf.nest.map_structure(tf.nn.relu, norm(fold(x), training=training)), x)


@register
class BatchNorm(keras.layers.BatchNormalization):
    """Keras' batch norm, for pieces too, with a faster inference.

    In inference it is a depthwise convolution: TensorFlow computes scale, shift and a ReLU behind it in
    one pass, where its fused batch norm takes two, and in bfloat16 is several times slower. No sum may
    follow directly: TensorFlow 2.15 then fails to optimise the graph.
    """

    def __init__(self, channels: Channels = None, **kwargs):
        super().__init__(momentum=MOMENTUM, epsilon=EPSILON, **kwargs)
        self.channels = channels

    def build(self, input_shape):
        self.channels = self.channels or [input_shape[-1]]
        super().build((None, None, None, sum(self.channels)))
        # Keras would count the zero channels.
        self.input_spec = None

    def learns(self, training: bool | None) -> bool:
        return bool(training) and self.trainable

    def affine(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the scale and shift of inference, float32 [channel]."""
        scale = self.gamma * tf.math.rsqrt(self.moving_variance + EPSILON)
        return scale, self.beta - self.moving_mean * scale

    def call(self, inputs, training=None):
        pieces, learns = tf.nest.flatten(inputs), self.learns(training)
        weights = (self.gamma, self.beta) if learns else self.affine()
        parts = zip(pieces, *(split(each, pieces, self.channels) for each in weights), strict=True)
        if learns:
            norm = _synchronized_norm if self.synchronized else _fused_norm
            outputs, means, variances = zip(*(norm(*part) for part in parts), strict=True)
            if not computes_again():
                self._track(self.moving_mean, means)
                self._track(self.moving_variance, variances)
        else:
            outputs = [_scale_shift(*part) for part in parts]
        return tf.nest.pack_sequence_as(inputs, outputs)

    def _track(self, average, values):
        change = tf.stop_gradient(join(values, self.channels)) - average
        average.assign_add(change * (1 - MOMENTUM))


def _fused_norm(x, gamma, beta):
    return tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=EPSILON)


def _synchronized_norm(x, gamma, beta):
    """Returns the normalised map, mean and variance, over the equal shares of all replicas.

    Keras' own synchronized norm would update its averages whenever it is called, and takes the variance
    as the difference of two large numbers, which may be negative by rounding.
    """
    wide, mean_of = tf.cast(x, tf.float32), tf.distribute.ReduceOp.MEAN
    replica = tf.distribute.get_replica_context()
    own_mean, own_variance = tf.nn.moments(wide, [0, 1, 2])
    mean = replica.all_reduce(mean_of, own_mean)
    variance = replica.all_reduce(mean_of, own_variance + tf.square(own_mean - mean))
    scale = gamma * tf.math.rsqrt(variance + EPSILON)
    return tf.cast(wide * scale + (beta - mean * scale), x.dtype), mean, variance


def _scale_shift(x, scale, shift):
    kernel = tf.cast(tf.reshape(scale, [1, 1, -1, 1]), x.dtype)
    x = tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME")
    return tf.nn.bias_add(x, tf.cast(shift, x.dtype))


@register
class GroupNorm(keras.layers.Layer):
    """Group norm (Wu and He 2018) within each slice: at most 16 groups, sums in float32."""

    def __init__(self, channels: Channels = None, **kwargs):
        super().__init__(**{"dtype": "float32"} | kwargs, autocast=False)
        self.channels = channels

    def build(self, input_shape):
        self.channels = self.channels or [input_shape[-1]]
        shape = [sum(self.channels)]
        self.groups = math.gcd(*shape, 16)
        self.gamma = self.add_weight(name="gamma", shape=shape, initializer="ones")
        self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros")
        super().build(input_shape)

    def learns(self, training: bool | None) -> bool:
        return True

    def call(self, inputs, training=None):
        inputs = join(tf.nest.flatten(inputs), self.channels)
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
