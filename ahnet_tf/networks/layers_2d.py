"""Layers within slices of [batch, z, y, x, channel]: convolution, pooling, GCN, refinement."""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from ahnet_tf.networks import ops
from ahnet_tf.networks.normalization import make_norm

# Values in a kernel from which on scaling the map instead is faster.
LARGE_KERNEL = 2**19


@ops.register
class ConvNorm(keras.layers.Layer):
    """Convolution of a map or pieces within slices, norm and, unless `relu` is off, ReLU.

    With `slice_pool` a max pool of two slices comes between convolution and norm, `residual` is added
    before the ReLU. In inference batch norm's scale is in the kernel, or behind it if it is larger
    than the map; TensorFlow computes convolution, shift, sum and ReLU of a folded map in one pass.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 3,
        strides: int = 1,
        norm: str = "batch",
        relu: bool = True,
        slice_pool: bool = False,
        channels: ops.Channels = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.relu = relu
        self.slice_pool = slice_pool
        self.channels = channels
        self.normalise = make_norm(norm, name="norm")

    def build(self, input_shape):
        size, channels = self.kernel_size, sum(self.channels or input_shape[-1:])
        self.kernel = self.add_weight(name="kernel", shape=[size, size, channels, self.filters])
        self.normalise.build([self.filters])
        super().build(input_shape)

    def call(self, inputs, residual=None, training=None):
        x, like = ops.fold(inputs), inputs
        if self.slice_pool or self.normalise.learns(training):
            x = ops.conv(x, self.kernel, self.strides, self.channels)
            if self.slice_pool:
                like = ops.slice_max_pool(ops.unfold(x, inputs))
                x = ops.fold(like)
            x = self.normalise(x, training=training)
        else:
            x = self._conv_affine(x, *self.normalise.affine())
        if residual is not None:
            x += ops.fold(residual)
        return ops.unfold(tf.nn.relu(x) if self.relu else x, like)

    def _conv_affine(self, x, scale, shift):
        scale = tf.cast(scale, self.compute_dtype)
        if math.prod(self.kernel.shape) < LARGE_KERNEL:
            return ops.conv(x, self.kernel * scale, self.strides, self.channels, shift)
        x = ops.conv(x, self.kernel, self.strides, self.channels) * scale
        return tf.nn.bias_add(x, tf.cast(shift, x.dtype))


@ops.register
class MaxPool(keras.layers.Layer):
    """Max pool of stride 2: `size` 3 pads one zero (its input is a ReLU's output), 2 pads at the end.

    Within slices, and across them too with `slice_pool`.
    """

    def __init__(self, size: int = 3, slice_pool: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.size = size
        self.slice_pool = slice_pool

    def call(self, inputs):
        x = ops.fold(inputs)
        if self.size == 3:
            x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
        x = ops.unfold(tf.nn.max_pool2d(x, self.size, 2, "VALID"), inputs)
        if not self.slice_pool:
            return x
        if self.size == 2:
            return ops.slice_max_pool(x)
        x = tf.pad(x, [[0, 0], [1, 1], [0, 0], [0, 0], [0, 0]])
        return ops.along_slices(lambda y: tf.nn.max_pool2d(y, [3, 1], [2, 1], "VALID"), x)


@ops.register
class ResizeInPlane(keras.layers.Layer):
    """Bilinear interpolation within slices to the y, x size of a second map, corners aligned."""

    def call(self, inputs, like):
        return ops.resize_in_plane(inputs, ops.axis_sizes(like)[2:4])


@ops.register
class GlobalConv(keras.layers.Layer):
    """The GCN block (Peng et al. 2017): 7x1 then 1x7 plus 1x7 then 7x1 convolutions, with biases."""

    def __init__(self, filters: int, **kwargs):
        super().__init__(**kwargs)

        def conv(name, *size):
            return keras.layers.Conv2D(filters, size, padding="same", name=name)

        self.left = [conv("left1", 7, 1), conv("left2", 1, 7)]
        self.right = [conv("right1", 1, 7), conv("right2", 7, 1)]

    def call(self, inputs):
        x = ops.fold(inputs)
        left = self.left[1](self.left[0](x))
        right = self.right[1](self.right[0](x))
        return ops.unfold(left + right, inputs)


@ops.register
class Refine(keras.layers.Layer):
    """Boundary refinement: norm, ReLU, 3x3 convolution twice, added to the input.

    Each convolution has a norm of its own. The authors' code uses one for both, whose moving
    statistics are then those of neither: inference differs from training (they infer in training mode).
    """

    def __init__(self, filters: int, norm: str = "batch", **kwargs):
        super().__init__(**kwargs)
        self.norms = [make_norm(norm, name=f"norm{i}") for i in (1, 2)]
        self.convs = [
            keras.layers.Conv2D(filters, 3, padding="same", name=f"conv{i}") for i in (1, 2)
        ]

    def call(self, inputs, training=None):
        x = ops.fold(inputs)
        for normalise, convolve in zip(self.norms, self.convs, strict=True):
            x = convolve(tf.nn.relu(normalise(x, training=training)))
        return inputs + ops.unfold(x, inputs)
