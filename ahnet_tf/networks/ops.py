"""Tensor operations of the layers: convolutions, pooling and interpolation.

Feature maps are [batch, z, y, x, channel], z the slice axis. Operations within slices see them
folded to [batch * z, y, x, channel], operations along z as [batch, z, y * x, channel], so that 2D
kernels do all the work: batch norm is fused for 4D tensors only, and on CPU TensorFlow's 3D max pool
gives its gradient to every one of several equal maxima.

Pieces: where a layer works on a concatenation, it takes the list of its parts and convolves each with
its share of the kernel. The concatenation and its gradient's slices are then never copied.

Lanes: dense layers append channels of zeros to their maps up to a multiple of 16; in bfloat16 oneDNN is
slow at other numbers. `channels` are the numbers of channels of a list of pieces without those zeros.
Weights have none either, `split` and `widen` append them. docs/network.md has figures.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeAlias

import keras
import numpy as np
import tensorflow as tf

# A map or its pieces, and the pieces' channels.
FeatureMap: TypeAlias = tf.Tensor | list[tf.Tensor]
Channels: TypeAlias = Sequence[int] | None

_joined: ContextVar[bool] = ContextVar("joined_layers", default=False)
# The attribute of an unfolded map that is the folded one.
_FOLDED = "_ahnet_folded"

register = keras.saving.register_keras_serializable("ahnet_tf")


def axis_sizes(x: tf.Tensor) -> list[int | tf.Tensor]:
    """Returns the size of each axis: a number where it is known, else a scalar tensor."""
    if x.shape.is_fully_defined():
        return x.shape.as_list()
    found = tf.unstack(tf.shape(x))
    return [each if size is None else size for size, each in zip(x.shape, found, strict=True)]


@contextlib.contextmanager
def joined_layers() -> Iterator[None]:
    """Passes folded maps from layer to layer, without the two reshapes between them.

    Graphs with dynamic sizes have fewer operations, and OpenVINO keeps the memory layout of maps. For
    inference only: the output of a layer has no gradient, since the next layer does not depend on it.
    """
    token = _joined.set(True)
    try:
        yield
    finally:
        _joined.reset(token)


def fold(x: FeatureMap) -> FeatureMap:
    """Reshapes [batch, z, y, x, channel] to [batch * z, y, x, channel]."""
    return tf.nest.map_structure(_fold, x)


def _fold(x: tf.Tensor) -> tf.Tensor:
    folded = getattr(x, _FOLDED, None)
    return tf.reshape(x, [-1, *axis_sizes(x)[2:]]) if folded is None else folded


def unfold(x: FeatureMap, like: FeatureMap) -> FeatureMap:
    """Reshapes [batch * z, y, x, channel] to [batch, z, y, x, channel] with the z of `like`."""
    z = axis_sizes(tf.nest.flatten(like)[0])[1]
    return tf.nest.map_structure(lambda y: _unfold(y, z), x)


def _unfold(x: tf.Tensor, z: int | tf.Tensor) -> tf.Tensor:
    unfolded = tf.reshape(x, [-1, z, *axis_sizes(x)[1:]])
    if _joined.get():
        setattr(unfolded, _FOLDED, x)
    return unfolded


def add(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Returns the sum of maps [batch, z, y, x, channel], as a sum of folded ones."""
    return unfold(fold(x) + fold(y), x)


def widen(x: tf.Tensor, size: int | None = None, axis: int = -1) -> tf.Tensor:
    """Appends zeros along an axis up to `size`, by default the next multiple of 16.

    By concatenation: TensorFlow 2.15 aborts where a convolution's kernel comes straight from tf.pad.
    """
    x = tf.convert_to_tensor(x)
    missing = x.shape.as_list()
    missing[axis] = (size or -(-missing[axis] // 16) * 16) - missing[axis]
    return tf.concat([x, tf.zeros(missing, x.dtype)], axis) if missing[axis] else x


def split(
    weights: tf.Tensor, pieces: Sequence[tf.Tensor], channels: Channels, axis: int = 0
) -> list[tf.Tensor]:
    """Splits weights by the `channels` of pieces, with zeros where the pieces have them."""
    parts = tf.split(tf.convert_to_tensor(weights), channels, axis)
    return [widen(part, x.shape[-1], axis) for part, x in zip(parts, pieces, strict=True)]


def join(pieces: Sequence[tf.Tensor], channels: Sequence[int]) -> tf.Tensor:
    """Concatenates pieces without their zero channels."""
    return tf.concat([x[..., :count] for x, count in zip(pieces, channels, strict=True)], -1)


def conv(
    x: FeatureMap,
    kernel: tf.Tensor,
    strides: int = 1,
    channels: Channels = None,
    bias: tf.Tensor | None = None,
) -> tf.Tensor:
    """Convolves a folded map or pieces with `kernel` [ky, kx, in, out], k // 2 zeros on all sides.

    Strided convolutions pad first: TensorFlow's "SAME" would pad them on one side only, and the
    gradient of its explicit padding is slow on CPU.
    """
    if isinstance(x, list):
        parts = split(kernel, x, channels, axis=2)
        if bias is None:
            return tf.add_n([conv(*pair, strides) for pair in zip(x, parts, strict=True)])
        # One convolution adds the bias and the other's result in its own pass.
        y = conv(x[0], parts[0], strides, bias=bias)
        return y if len(x) == 1 else conv(tf.concat(x[1:], -1), tf.concat(parts[1:], 2)) + y
    kernel = widen(tf.cast(kernel, x.dtype), x.shape[-1], axis=2)
    ky, kx = kernel.shape[:2]
    padding = "SAME" if strides == 1 else "VALID"
    if strides > 1 and (ky > 1 or kx > 1):
        x = tf.pad(x, [[0, 0], [ky // 2, ky // 2], [kx // 2, kx // 2], [0, 0]])
    y = tf.nn.conv2d(x, kernel, strides, padding)
    return y if bias is None else tf.nn.bias_add(y, tf.cast(bias, y.dtype))


def identity(size: int) -> tf.Tensor:
    """Returns the identity matrix as a constant: OpenVINO lacks the operation of `tf.eye`."""
    return tf.constant(np.eye(size, dtype=np.float32))


def conv_in_plane(x: FeatureMap, kernel: tf.Tensor, channels: Channels = None) -> tf.Tensor:
    """Convolves [batch, z, y, x, in] within slices with `kernel` [ky, kx, in, out], size unchanged."""
    return unfold(conv(fold(x), kernel, channels=channels), x)


def conv_to_few(x: FeatureMap, kernel: tf.Tensor, channels: Channels = None) -> tf.Tensor:
    """As `conv_in_plane` for a 3x3 kernel to a few channels, at half the time on CPU.

    A 1x1 convolution gives each pixel's share in its nine neighbours, a 3x3 one adds the shares up.
    """
    few = kernel.shape[-1]
    shares = tf.reshape(tf.transpose(kernel, [2, 0, 1, 3]), [1, 1, -1, 9 * few])
    adding = tf.transpose(tf.reshape(identity(9 * few), [3, 3, few, 9 * few]), [0, 1, 3, 2])
    return conv_in_plane(conv_in_plane(x, shares, channels), adding)


def along_slices(function: Callable, x: tf.Tensor) -> tf.Tensor:
    """Applies `function` to [batch, z, y, x, channel] reshaped to [batch, z, y * x, channel]."""
    _, slices, *plane, channels = axis_sizes(x)
    y = function(tf.reshape(x, [-1, slices, math.prod(plane), channels]))
    return tf.reshape(y, [-1, axis_sizes(y)[1], *plane, y.shape[-1]])


def conv_across(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Convolves along z with `kernel` [3, 1, in, out], one zero slice beyond either end."""
    return along_slices(lambda y: conv(y, kernel), x)


def slice_max_pool(x: tf.Tensor) -> tf.Tensor:
    """Max pool over pairs of slices; a last slice without a partner passes: z becomes ceil(z / 2)."""
    return along_slices(lambda y: tf.nn.max_pool2d(y, [2, 1], [2, 1], "SAME"), x)


def resize_in_plane(x: tf.Tensor, size_yx: Sequence[int | tf.Tensor]) -> tf.Tensor:
    """Interpolates [batch, z, y, x, channel] bilinearly to `size_yx`, corners aligned."""
    size = tf.stack(size_yx)
    resized = tf.raw_ops.ResizeBilinear(images=fold(x), size=size, align_corners=True)
    return unfold(tf.cast(resized, x.dtype), x)


def resize(x: tf.Tensor, size_zyx: Sequence[int | tf.Tensor]) -> tf.Tensor:
    """Interpolates [batch, z, y, x, channel] trilinearly to `size_zyx`, corners aligned."""
    depth = size_zyx[0]
    _, slices, *rest = axis_sizes(x)
    # A matrix product is faster than gathering neighbours.
    flat = tf.reshape(x, [-1, slices, math.prod(rest)])
    flat = tf.matmul(_interpolation_matrix(slices, depth, x.dtype), flat)
    return resize_in_plane(tf.reshape(flat, [-1, depth, *rest]), size_zyx[1:])


def _interpolation_matrix(size_in, size_out, dtype):
    """Returns [size_out, size_in], linear interpolation along one axis with corners aligned."""
    last_in = tf.cast(size_in - 1, tf.float32)
    last_out = tf.cast(tf.maximum(size_out - 1, 1), tf.float32)
    positions = tf.cast(tf.range(size_out), tf.float32) * last_in / last_out
    distances = tf.abs(positions[:, tf.newaxis] - tf.cast(tf.range(size_in), tf.float32))
    return tf.cast(tf.nn.relu(1 - distances), dtype)
