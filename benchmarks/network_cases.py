"""What AH-Net's layers compute, with an optimization and in plain TensorFlow.

Cases that the networks do not use are evidence against them, and are there to be tried on other CPUs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from ahnet_tf.networks.layers_3d import TransposedConv
from ahnet_tf.networks.normalization import GroupNorm
from ahnet_tf.networks.ops import resize
from benchmarks import network_sites as sites


@dataclass(frozen=True)
class Case:
    """An optimization and what replaces it: functions of the maps [z, y, x, channel] and weights."""

    used: bool
    sites: tuple[sites.Site, ...]
    fast: Callable
    plain: Callable
    kinds: tuple[str, ...] = ("forward", "training")


def conv(x, kernel, strides=1):
    padding = "SAME" if strides == 1 else "VALID"
    return tf.nn.conv2d(x, kernel, strides, padding)


def padded(x, size):
    return tf.pad(x, [[0, 0], [size, size], [size, size], [0, 0]])


def widen(x, width, axes=(-1,)):
    """Appends zeros along `axes` up to `width`."""
    for axis in axes:
        shape = x.shape.as_list()
        shape[axis] = width - shape[axis]
        x = tf.concat([x, tf.zeros(shape, x.dtype)], axis)
    return x


def scale_of(norm):
    gamma, variance = norm[0], tf.abs(norm[3]) + 1
    return gamma * tf.math.rsqrt(variance + 1e-5)


def folded_norm(x, kernel, norm):
    """Convolution with batch norm's scale in the kernel and its shift as bias."""
    norm = tf.cast(norm, tf.float32)
    scale = scale_of(norm)
    kernel = kernel * tf.cast(scale, x.dtype)
    shift = tf.cast(norm[1] - norm[2] * scale, x.dtype)
    return tf.nn.bias_add(conv(x, kernel), shift)


def batch_norm(x, norm, training=False):
    norm = tf.cast(norm, tf.float32)
    statistics = {} if training else {"mean": norm[2], "variance": tf.abs(norm[3]) + 1}
    return tf.compat.v1.nn.fused_batch_norm(
        x, norm[0], norm[1], epsilon=1e-5, is_training=training, **statistics
    )[0]


def separate_norm(x, kernel, norm):
    return batch_norm(conv(x, kernel), norm)


def scaled_output(x, kernel, norm):
    """Convolution, then batch norm's scale and shift: no product with a large kernel."""
    norm = tf.cast(norm, tf.float32)
    scale = scale_of(norm)
    shift = norm[1] - norm[2] * scale
    return tf.nn.bias_add(conv(x, kernel) * tf.cast(scale, x.dtype), tf.cast(shift, x.dtype))


def bottleneck(convolve):
    def call(x, kernel1, kernel2, kernel3, norm1, norm2, norm3):
        y = tf.nn.relu(convolve(x, kernel1, norm1))
        y = tf.nn.relu(convolve(y, kernel2, norm2))
        return tf.nn.relu(convolve(y, kernel3, norm3) + x)

    return call


def depthwise_norm(x, norm):
    """Batch norm in inference as a 1x1 depthwise convolution."""
    norm = tf.cast(norm, tf.float32)
    scale = scale_of(norm)
    kernel = tf.cast(tf.reshape(scale, [1, 1, -1, 1]), x.dtype)
    shift = tf.cast(norm[1] - norm[2] * scale, x.dtype)
    x = tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME")
    return tf.nn.relu(tf.nn.bias_add(x, shift))


def matmul(x, kernel):
    product = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), kernel[0, 0])
    return tf.reshape(product, [*x.shape[:3], -1])


def dense_tail(width, training):
    """A pseudo-3D layer after its first convolution, on maps of 20 channels or of `width` with zeros."""

    def call(x, kernel2, kernel3, kernel4, norm3, norm4):
        kernel2, kernel4 = widen(kernel2, width), widen(kernel4, width, (3, 2))
        kernel3 = widen(kernel3, width, (3, 2))
        norm3, norm4 = widen(norm3, width), widen(norm4, width)
        x = conv(x, kernel2)
        across = tf.nn.relu(batch_norm(x, norm3, training))
        flat = tf.reshape(across, [1, across.shape[0], -1, across.shape[-1]])
        x += tf.reshape(conv(flat, kernel3), x.shape)
        return conv(tf.nn.relu(batch_norm(x, norm4, training)), kernel4)

    return call


def on_pieces(training):
    """Norm, ReLU and 1x1 convolution of the pieces of a concatenation, summed."""

    def call(*inputs):
        *pieces, kernel, norm = inputs
        sizes = [piece.shape[-1] for piece in pieces]
        kernels, norms = tf.split(kernel, sizes, 2), tf.split(norm, sizes, 1)
        return tf.add_n(
            [
                conv(tf.nn.relu(batch_norm(piece, n, training)), k)
                for piece, k, n in zip(pieces, kernels, norms, strict=True)
            ]
        )

    return call


def on_concatenation(training):
    def call(*inputs):
        *pieces, kernel, norm = inputs
        return conv(tf.nn.relu(batch_norm(tf.concat(pieces, -1), norm, training)), kernel)

    return call


def to_few(x, kernel):
    """A 1x1 convolution to each pixel's share in its nine neighbours, added up by one of ones and zeros."""
    channels, classes = kernel.shape[2:]
    shares = tf.reshape(tf.transpose(kernel, [2, 0, 1, 3]), [1, 1, channels, 9 * classes])
    adding = np.eye(9 * classes, dtype=np.float32).reshape(3, 3, classes, 9 * classes)
    return conv(conv(x, shares), tf.cast(adding.transpose(0, 1, 3, 2), x.dtype))


def pools(x):
    found = [tf.nn.max_pool2d(x, 8, 8, "VALID")]
    for _ in range(3):
        found.append(tf.nn.max_pool2d(found[-1], 2, 2, "SAME"))
    return found


def separate_pools(x):
    return [tf.nn.max_pool2d(x, size, size, "VALID") for size in (8, 16, 32, 64)]


def neighbours(x):
    """Three neighbouring slices as channels."""
    wide = tf.pad(x, [[1, 1], [0, 0], [0, 0], [0, 0]])
    return tf.concat([wide[i : i + x.shape[0]] for i in range(3)], -1)


def stem_space_to_depth(x, kernel):
    """Four neighbouring pixels become channels and the kernel a 4x4 one without stride."""
    channels, filters = kernel.shape[2:]
    kernel = tf.pad(kernel, [[1, 0], [1, 0], [0, 0], [0, 0]])
    kernel = tf.reshape(kernel, [4, 2, 4, 2, channels, filters])
    kernel = tf.reshape(tf.transpose(kernel, [0, 2, 1, 3, 4, 5]), [4, 4, 4 * channels, filters])
    x = tf.pad(neighbours(x), [[0, 0], [4, 2], [4, 2], [0, 0]])
    return tf.nn.conv2d(tf.nn.space_to_depth(x, 2), kernel, 1, "VALID")


def stem_strided(x, kernel):
    return conv(padded(neighbours(x), 3), kernel, 2)


def stem_convolved(x, kernel):
    stacked = conv(tf.reshape(x, [1, x.shape[0], -1, 1]), tf.eye(3, dtype=x.dtype)[:, None, None])
    return conv(padded(tf.reshape(stacked, [*x.shape[:3], 3]), 3), kernel, 2)


def stem_3d(x, kernel):
    x = tf.pad(x, [[1, 1], [3, 3], [3, 3], [0, 0]])[tf.newaxis]
    kernel = tf.transpose(kernel[:, :, :, tf.newaxis], [2, 0, 1, 3, 4])
    return tf.nn.conv3d(x, kernel, [1, 1, 2, 2, 1], "VALID")


def across_folded(x, kernel):
    return conv(tf.reshape(x, [1, x.shape[0], -1, x.shape[-1]]), kernel)


def across_3d(x, kernel):
    return tf.nn.conv3d(x[tf.newaxis], kernel[:, :, tf.newaxis], [1] * 5, "SAME")


def slice_pool_folded(x):
    flat = tf.reshape(x, [1, x.shape[0], -1, x.shape[-1]])
    return tf.nn.max_pool2d(flat, [2, 1], [2, 1], "SAME")


def slice_pool_3d(x):
    return tf.nn.max_pool3d(x[tf.newaxis], [2, 1, 1], [2, 1, 1], "SAME")


def pool_in_two_steps(x):
    x = tf.nn.max_pool2d(padded(x, 1), 3, 2, "VALID")
    flat = tf.reshape(
        tf.pad(x, [[1, 1], [0, 0], [0, 0], [0, 0]]), [1, x.shape[0] + 2, -1, x.shape[-1]]
    )
    return tf.nn.max_pool2d(flat, [3, 1], [2, 1], "VALID")


def pool_3d(x):
    x = tf.pad(x, [[1, 1], [1, 1], [1, 1], [0, 0]])[tf.newaxis]
    return tf.nn.max_pool3d(x, 3, 2, "VALID")


def strided_padded(x, kernel):
    return conv(padded(x, 1), kernel, 2)


def strided_explicit(x, kernel):
    return tf.nn.conv2d(x, kernel, 2, [[0, 0], [1, 1], [1, 1], [0, 0]])


def conv_3d(x, kernel):
    return tf.nn.conv3d(x[tf.newaxis], kernel[tf.newaxis], [1] * 5, "SAME")


def norm_folded(x, norm):
    return batch_norm(x, norm, training=True)


def norm_5d(x, norm):
    norm = tf.cast(norm, tf.float32)
    wide = tf.cast(x, tf.float32)[tf.newaxis]
    mean, variance = tf.nn.moments(wide, [0, 1, 2, 3])
    y = tf.nn.batch_normalization(wide, mean, variance, norm[1], norm[0], 1e-5)
    return tf.cast(y, x.dtype)


def transposed_as_1x1(x, kernel):
    layer = TransposedConv(kernel.shape[-1], dtype=x.dtype)
    layer.kernel, layer.built = kernel, True
    return layer(x[tf.newaxis], tf.zeros([1, *(2 * size for size in x.shape[:3]), 1]))


def transposed_3d(x, kernel):
    shape = [1, 2 * x.shape[0], 2 * x.shape[1], 2 * x.shape[2], kernel.shape[-1]]
    kernel = tf.transpose(kernel, [0, 1, 2, 4, 3])
    return tf.nn.conv3d_transpose(x[tf.newaxis], kernel, shape, [1, 2, 2, 2, 1])


@functools.cache
def group_norm(own, channels):
    """Returns a layer with its weights, made outside of the compiled functions that call it."""
    with tf.init_scope():
        groups = math.gcd(channels, 16)
        theirs = keras.layers.GroupNormalization(groups, epsilon=1e-5, dtype="float32")
        layer = GroupNorm() if own else theirs
        layer.build((None, None, None, channels))
    return layer


def group_norm_own(x):
    return group_norm(True, x.shape[-1])(x)


def group_norm_keras(x):
    return tf.cast(group_norm(False, x.shape[-1])(x), x.dtype)


def upsample_matmul(x):
    return resize(x[tf.newaxis], [2 * size for size in x.shape[:3]])


def upsample_gather(x):
    """Linear interpolation along z between gathered neighbours."""
    size = [2 * n for n in x.shape[1:3]]
    slices = x.shape[0]
    at = np.linspace(0, slices - 1, 2 * slices)
    low = np.minimum(at.astype(int), max(slices - 2, 0))
    share = tf.cast((at - low).reshape(-1, 1, 1, 1), x.dtype)
    x = tf.gather(x, low) * (1 - share) + tf.gather(x, np.minimum(low + 1, slices - 1)) * share
    y = tf.raw_ops.ResizeBilinear(images=x, size=size, align_corners=True)
    return tf.cast(y, x.dtype)


FORWARD, TRAINING = ("forward",), ("training",)
CASES = {
    "batch norm in the convolution": Case(
        True,
        sites.bottleneck_sites(sites.STAGES),
        bottleneck(folded_norm),
        bottleneck(separate_norm),
        FORWARD,
    ),
    "norm after large kernels": Case(
        True,
        sites.bottleneck_sites(sites.STAGES[3:]),
        bottleneck(scaled_output),
        bottleneck(folded_norm),
        FORWARD,
    ),
    "norm as depthwise convolution": Case(
        True,
        sites.NORMS,
        depthwise_norm,
        lambda x, norm: tf.nn.relu(batch_norm(x, norm)),
        FORWARD,
    ),
    "large 1x1 kernels as products": Case(False, sites.LARGE_1X1, matmul, conv),
    "channels in sixteens, inference": Case(
        True, sites.DENSE_TAILS, dense_tail(32, False), dense_tail(20, False), FORWARD
    ),
    "channels in sixteens, training": Case(
        True, sites.DENSE_TAILS, dense_tail(32, True), dense_tail(20, True), TRAINING
    ),
    "pieces, not concatenations, inference": Case(
        True, sites.PIECES, on_pieces(False), on_concatenation(False), FORWARD
    ),
    "pieces, not concatenations, training": Case(
        True, sites.PIECES, on_pieces(True), on_concatenation(True), TRAINING
    ),
    "3x3 to few classes as 1x1": Case(True, (sites.Site(2, 128, ((3, 3, 128, 3),)),), to_few, conv),
    "pyramid pools from each other": Case(True, (sites.Site(2, 124, ()),), pools, separate_pools),
    "stem's slices stacked by a convolution": Case(
        True, (sites.Site(1, 1, ((7, 7, 3, 64),)),), stem_convolved, stem_strided
    ),
    "stem by space to depth": Case(
        False, (sites.Site(1, 1, ((7, 7, 3, 64),)),), stem_space_to_depth, stem_strided
    ),
    "stem as 3D convolution": Case(
        False, (sites.Site(1, 1, ((7, 7, 3, 64),)),), stem_3d, stem_strided
    ),
    "3x3x3 pool in two steps": Case(True, (sites.Site(2, 64, ()),), pool_in_two_steps, pool_3d),
    "slice pool on folded maps": Case(
        True,
        (
            sites.Site(2, 64, ()),
            sites.Site(8, 512, (), 2),
            sites.Site(16, 1024, (), 2),
            sites.Site(32, 2048, (), 2),
        ),
        slice_pool_folded,
        slice_pool_3d,
    ),
    "slice convolution on folded maps": Case(
        True,
        tuple(sites.Site(stride, 20, ((3, 1, 20, 20),), count) for stride, count in sites.DENSE),
        across_folded,
        across_3d,
    ),
    "slices folded into the batch, 3x3": Case(
        True,
        tuple(
            sites.Site(s, width, ((3, 3, width, width),), count) for s, width, count in sites.STAGES
        )
        + tuple(sites.Site(s, 80, ((3, 3, 80, 20),), count) for s, count in sites.DENSE),
        conv,
        conv_3d,
    ),
    "slices folded into the batch, norm": Case(
        True,
        tuple(sites.Site(s, width, ((4, width),), 2 * count) for s, width, count in sites.STAGES)
        + tuple(
            sites.Site(s, 4 * width, ((4, 4 * width),), count) for s, width, count in sites.STAGES
        )
        + sites.NORMS,
        norm_folded,
        norm_5d,
        TRAINING,
    ),
    "strides padded first": Case(
        True,
        tuple(
            sites.Site(s // 2, width, ((3, 3, width, width),)) for s, width, _ in sites.STAGES[1:]
        ),
        strided_padded,
        strided_explicit,
    ),
    "upsampling of slices as product": Case(
        True,
        (
            sites.Site(2, 3, ()),
            sites.Site(4, 64, ()),
            sites.Site(8, 256, ()),
            sites.Site(16, 512, ()),
            sites.Site(32, 1024, ()),
        ),
        upsample_matmul,
        upsample_gather,
    ),
    "transposed convolution as 1x1": Case(
        True,
        (
            sites.Site(2, 3, ((2, 2, 2, 3, 3),)),
            sites.Site(4, 64, ((2, 2, 2, 64, 64),)),
            sites.Site(8, 256, ((2, 2, 2, 256, 256),)),
        ),
        transposed_as_1x1,
        transposed_3d,
    ),
    "own group norm": Case(
        True,
        tuple(sites.Site(s, width, (), 2 * count) for s, width, count in sites.STAGES)
        + tuple(sites.Site(s, 4 * width, (), count) for s, width, count in sites.STAGES)
        + tuple(sites.Site(site.stride, site.channels, (), site.count) for site in sites.NORMS),
        group_norm_own,
        group_norm_keras,
    ),
}
