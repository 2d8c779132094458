"""Normalisation of folded maps [batch * z, y, x, channel], or of several pieces of one at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from ahnet_tf.networks.ops import as_pieces, scale_shift, widen

EPSILON = 1e-5
MOMENTUM = 0.9

register = tf.keras.saving.register_keras_serializable("ahnet_tf")


class SettingsLayer(tf.keras.layers.Layer):
    """A layer whose constructor's keywords are its attributes: `settings` names them."""

    settings: tuple[str, ...] = ()

    def get_config(self):
        return super().get_config() | {name: getattr(self, name) for name in self.settings}


def in_plane_normal(shape: Sequence[int]) -> tf.keras.initializers.Initializer:
    """The published initialisation: normal, variance 2 / (ky * kx * out), for [..., ky, kx, in, out]."""
    ky, kx, _, filters = shape[-4:]
    return tf.keras.initializers.RandomNormal(stddev=math.sqrt(2 / (ky * kx * filters)))


def channels_of(input_shape, pieces: Sequence[int] | None = None) -> int:
    """Returns the channels of a map, or of all pieces of a list together.

    `pieces` says how many channels count in each piece, if not all do.
    """
    if pieces:
        return sum(pieces)
    shapes = input_shape if isinstance(input_shape, list) else [input_shape]
    return sum(shape[-1] for shape in shapes)


def _sizes(pieces, counting, weight) -> list[int]:
    """Returns how many channels count in each piece; of a map alone, as many as `weight` has."""
    if counting or len(pieces) == 1:
        return list(counting or weight.shape)
    return [piece.shape[-1] for piece in pieces]


@register
class BatchNorm(SettingsLayer):
    """Batch norm over folded maps, or over the channels of several pieces at once.

    `pieces` says how many channels count in each piece; the others are zeros and stay so.

    Sums are float32 whatever the compute dtype. The moving variance is the unbiased one, epsilon 1e-5,
    momentum 0.9, as the published network has them. `synchronized` takes the statistics over all
    replicas of a tf.distribute strategy.
    """

    settings = ("synchronized", "pieces")

    def __init__(self, synchronized: bool = False, pieces: Sequence[int] | None = None, **kwargs):
        super().__init__(**kwargs)
        self.synchronized = synchronized
        self.pieces = pieces

    def build(self, input_shape):
        channels = channels_of(input_shape, self.pieces)
        statistic = {
            "shape": [channels],
            "dtype": tf.float32,
            "trainable": False,
            "synchronization": tf.VariableSynchronization.ON_READ,
            "aggregation": tf.VariableAggregation.MEAN,
            "experimental_autocast": False,
        }
        weight = {"shape": [channels], "dtype": tf.float32, "experimental_autocast": False}
        self.gamma = self.add_weight("gamma", initializer="ones", **weight)
        self.beta = self.add_weight("beta", initializer="zeros", **weight)
        self.moving_mean = self.add_weight("moving_mean", initializer="zeros", **statistic)
        self.moving_variance = self.add_weight("moving_variance", initializer="ones", **statistic)
        super().build(input_shape)

    def affine(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the scale and shift of inference, float32 [channel]."""
        scale = self.gamma * tf.math.rsqrt(self.moving_variance + EPSILON)
        return scale, self.beta - self.moving_mean * scale

    def learns(self, training: bool | None) -> bool:
        """Whether this call takes the batch's statistics: in training, unless frozen."""
        return bool(training) and self.trainable

    def call(self, inputs, training=None):
        pieces = as_pieces(inputs)
        sizes = _sizes(pieces, self.pieces, self.gamma)
        if not self.learns(training):
            scales, shifts = (tf.split(vector, sizes) for vector in self.affine())
            outputs = list(map(scale_shift, pieces, scales, shifts))
            return outputs if isinstance(inputs, list) else outputs[0]
        gammas, betas = tf.split(self.gamma, sizes), tf.split(self.beta, sizes)
        normalise = _synchronized_batch_norm if self.synchronized else _batch_norm
        outputs, means, variances = zip(*map(normalise, pieces, gammas, betas), strict=True)
        self._track(self.moving_mean, tf.concat(means, 0))
        self._track(self.moving_variance, tf.concat(variances, 0))
        return list(outputs) if isinstance(inputs, list) else outputs[0]

    def _track(self, average: tf.Variable, value: tf.Tensor) -> None:
        average.assign_sub((average - tf.stop_gradient(value)) * (1 - MOMENTUM))


def _batch_norm(x, gamma, beta):
    """Returns the normalised map, its mean and its unbiased variance."""
    channels, gamma, beta = (
        gamma.shape[0],
        widen(gamma, x.shape[-1], 0, 1.0),
        widen(beta, x.shape[-1], 0),
    )
    x, mean, variance = tf.compat.v1.nn.fused_batch_norm(
        x, gamma, beta, epsilon=EPSILON, is_training=True
    )
    return x, mean[:channels], variance[:channels]


def _synchronized_batch_norm(x, gamma, beta):
    """As `_batch_norm`, with statistics over the maps of all replicas."""
    channels, gamma, beta = (
        gamma.shape[0],
        widen(gamma, x.shape[-1], 0, 1.0),
        widen(beta, x.shape[-1], 0),
    )
    wide = tf.cast(x, tf.float32)
    count = tf.cast(tf.size(wide[..., 0]), tf.float32)
    sums = tf.stack([tf.reduce_sum(wide, [0, 1, 2]), tf.fill([x.shape[-1]], count)])
    context = tf.distribute.get_replica_context()
    total, count = tf.unstack(context.all_reduce(tf.distribute.ReduceOp.SUM, sums))
    mean = total / count
    deviations = tf.reduce_sum(tf.square(wide - mean), [0, 1, 2])
    deviations = context.all_reduce(tf.distribute.ReduceOp.SUM, deviations)
    variance = deviations / count
    normalised = tf.nn.batch_normalization(wide, mean, variance, beta, gamma, EPSILON)
    unbiased = deviations / tf.maximum(count - 1, 1)
    return tf.cast(normalised, x.dtype), mean[:channels], unbiased[:channels]


@register
class GroupNorm(SettingsLayer):
    """Group norm (Wu and He 2018) within each slice, so that 2D and 3D networks see the same numbers.

    Groups hold at least a sixteenth of the channels; pieces are concatenated first.
    """

    settings = ("pieces",)

    def __init__(self, pieces: Sequence[int] | None = None, **kwargs):
        super().__init__(**kwargs)
        self.pieces = pieces

    def build(self, input_shape):
        channels = channels_of(input_shape, self.pieces)
        weight = {"shape": [channels], "dtype": tf.float32, "experimental_autocast": False}
        self.groups = math.gcd(channels, 16)
        self.gamma = self.add_weight("gamma", initializer="ones", **weight)
        self.beta = self.add_weight("beta", initializer="zeros", **weight)
        super().build(input_shape)

    def learns(self, training: bool | None) -> bool:
        """Group norm takes its statistics from its input, always."""
        return True

    def call(self, inputs, training=None):
        pieces = as_pieces(inputs)
        sizes = _sizes(pieces, self.pieces, self.gamma)
        x = tf.concat([piece[..., :size] for piece, size in zip(pieces, sizes, strict=True)], -1)
        wide, channels = tf.cast(x, tf.float32), x.shape[-1]
        # A group's moments follow from its channels': the map itself is read twice and written once.
        mean, variance = (
            tf.reshape(moment, [-1, self.groups, channels // self.groups])
            for moment in tf.nn.moments(wide, [1, 2])
        )
        group_mean = tf.reduce_mean(mean, -1, keepdims=True)
        spread = variance + tf.square(mean - group_mean)
        factor = tf.math.rsqrt(tf.reduce_mean(spread, -1, keepdims=True) + EPSILON)
        scale = factor * tf.reshape(self.gamma, [self.groups, -1])
        shift = tf.reshape(self.beta, [self.groups, -1]) - group_mean * scale
        scale, shift = (tf.reshape(each, [-1, 1, 1, channels]) for each in (scale, shift))
        normal = tf.cast(wide * scale + shift, x.dtype)
        if isinstance(inputs, list):
            return [normal]
        return widen(normal, inputs.shape[-1], axis=-1)


def build_inside(layer: tf.keras.layers.Layer, channels: int) -> None:
    """Builds a layer's inner `layer` for maps of `channels`, its weights named after both."""
    with tf.name_scope(layer.name):
        layer.build(tf.TensorShape([None, None, None, channels]))


def make_norm(kind: str, name: str, pieces: Sequence[int] | None = None) -> tf.keras.layers.Layer:
    """Returns the norm layer of `ModelConfig.norm`: "batch", "sync_batch" or "group"."""
    if kind == "group":
        return GroupNorm(pieces, name=name)
    return BatchNorm(kind == "sync_batch", pieces, name=name)
