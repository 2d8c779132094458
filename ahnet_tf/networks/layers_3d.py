"""Layers of AH-Net's decoder, on [batch, z, y, x, channel]: transitions, dense blocks, pooling."""

from __future__ import annotations

import keras
import tensorflow as tf

from ahnet_tf.networks import ops
from ahnet_tf.networks.dropout import SeededDropout
from ahnet_tf.networks.layers_2d import ConvNorm
from ahnet_tf.networks.normalization import make_norm, norm_relu
from ahnet_tf.networks.recompute import recomputed


@ops.register
class TransposedConv(keras.layers.Layer):
    """Transposed convolution of stride 2 without bias, cropped to the z, y, x of a second map.

    The kernel is [2 or 1, 2, 2, channel, filters]; with `slices=False` z stays as it is. Cells don't
    overlap, so each slice of a cell is a 1x1 convolution whose channels become pixels.
    """

    def __init__(self, filters: int, slices: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.slices = slices

    def build(self, input_shape):
        shape = [2 if self.slices else 1, 2, 2, input_shape[-1], self.filters]
        self.kernel = self.add_weight(name="kernel", shape=shape)

    def call(self, inputs, like):
        depth, _, _, count, filters = self.kernel.shape
        _, slices, rows, columns, _ = ops.axis_sizes(inputs)
        kernel = tf.transpose(self.kernel, [0, 3, 1, 2, 4])
        slabs = [
            tf.nn.depth_to_space(ops.conv(ops.fold(inputs), part), 2)
            for part in tf.unstack(tf.reshape(kernel, [depth, 1, 1, count, 4 * filters]))
        ]
        x = tf.stack(slabs, axis=1)
        x = tf.reshape(x, [-1, depth * slices, 2 * rows, 2 * columns, filters])
        _, depth, rows, columns, _ = ops.axis_sizes(like)
        return x[:, :depth, :rows, :columns]


@ops.register
class Transition(keras.layers.Layer):
    """Norm, ReLU, 1x1x1 convolution, upsampling to a second map, sum of both; of a map or pieces.

    `upsampling` is "trilinear", "transpose", or "none" where both maps have one size. The `final` one
    has dropout and a 3x3x1 convolution to few channels, and no sum.
    """

    def __init__(
        self,
        filters: int,
        upsampling: str,
        norm: str = "batch",
        channels: ops.Channels = None,
        final: bool = False,
        dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.upsampling = upsampling
        self.channels = channels
        self.final = final
        self.normalise = make_norm(norm, "norm", channels)
        self.drop = SeededDropout(dropout, name="drop")
        if upsampling == "transpose":
            self.up = TransposedConv(filters, name="up")

    def build(self, input_shape):
        size, channels = 3 if self.final else 1, sum(self.channels or input_shape[-1:])
        self.kernel = self.add_weight(name="kernel", shape=[size, size, channels, self.filters])

    def call(self, inputs, like, training=None):
        x = self.drop(norm_relu(self.normalise, inputs, training), training=training)
        x = (ops.conv_to_few if self.final else ops.conv_in_plane)(x, self.kernel, self.channels)
        if self.upsampling == "transpose":
            x = self.up(x, like)
        elif self.upsampling == "trilinear":
            x = ops.resize(x, ops.axis_sizes(like)[1:4])
        return x if self.final else ops.add(x, like)


@ops.register
class DenseLayer(keras.layers.Layer):
    """The pseudo-3D layer: 1x1x1 to 4 * growth, 3x3x1 to growth, plus 1x1x3 of it, 1x1x1.

    Norm and ReLU stand before every convolution. Takes the block's input and the pieces of the layers
    before, returns another piece: `growth` new channels and zeros up to a multiple of 16.
    """

    def __init__(self, growth: int, norm: str = "batch", **kwargs):
        super().__init__(**kwargs)
        self.growth = growth
        self.norm = norm

    def build(self, input_shape):
        norm, growth = self.norm, self.growth
        channels = [input_shape[0][-1], *[growth] * (len(input_shape) - 1)]
        self.norm1 = make_norm(norm, "norm1", channels)
        self.conv1 = ConvNorm(4 * growth, 1, norm=norm, channels=channels, name="conv1")
        self.norm3 = make_norm(norm, "norm3", [growth])
        self.norm4 = make_norm(norm, "norm4", [growth])
        self.kernel2 = self.add_weight(name="kernel2", shape=[3, 3, 4 * growth, growth])
        self.kernel3 = self.add_weight(name="kernel3", shape=[3, 1, growth, growth])
        self.kernel4 = self.add_weight(name="kernel4", shape=[1, 1, growth, growth])
        super().build(input_shape)

    def call(self, inputs, training=None):
        x = norm_relu(self.norm1, inputs, training)
        x = self.conv1(x, training=training)
        x = ops.conv_in_plane(x, ops.widen(self.kernel2))
        across = ops.conv_across(norm_relu(self.norm3, x, training), ops.widen(self.kernel3))
        x = ops.add(x, across)
        x = norm_relu(self.norm4, x, training)
        return ops.conv_in_plane(x, ops.widen(self.kernel4))


@ops.register
class DenseBlock(keras.layers.Layer):
    """Pseudo-3D layers; each takes the block's input and the pieces before it. Returns all of them."""

    def __init__(self, layers: int, growth: int, norm: str = "batch", **kwargs):
        super().__init__(**kwargs)
        self.dense = [DenseLayer(growth, norm, name=f"layer{i + 1}") for i in range(layers)]

    def call(self, inputs, training=None):
        pieces = [inputs]
        for layer in self.dense:
            # The pieces pass through, so that each layer adds its share to their gradients.
            pieces = recomputed(lambda x, layer=layer: [*x, layer(x, training=training)], pieces)
        return pieces


@ops.register
class PyramidPool(keras.layers.Layer):
    """Pyramid volumetric pooling: max pools of 8, 16, 32, ... pixels, each projected to one channel.

    Puts a piece, one channel for each level, before those of its input, whose y and x are multiples of
    8. Each pool is taken from the one before; pixels that fill no whole cell are left out, as published,
    and a pool larger than the map takes all of it. `border` surrounds each projection with a cell of its
    bias, as the public PyTorch code does (it pads a 1x1x1 convolution) and weights trained there expect.
    """

    def __init__(
        self,
        levels: int,
        upsampling: str = "trilinear",
        border: bool = False,
        channels: ops.Channels = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.levels = levels
        self.upsampling = upsampling
        self.border = border
        self.channels = channels

    def build(self, input_shape):
        shape = [1, 1, sum(self.channels or input_shape[-1:]), self.levels]
        self.kernel = self.add_weight(name="kernel", shape=shape)
        self.bias = self.add_weight(name="bias", shape=[self.levels], initializer="zeros")
        if self.upsampling == "transpose":
            self.up_bias = self.add_weight(name="up_bias", shape=[self.levels], initializer="zeros")
            self.up_kernels = [
                self.add_weight(name=f"up_kernel{size}", shape=[size, size, 1, 1])
                for size in (2 ** (3 + level) for level in range(self.levels))
            ]
        # A loaded model would build the layer twice, and keep the kernels of both lists.
        super().build(input_shape)

    def call(self, inputs):
        pieces = tf.nest.flatten(inputs)
        size = ops.axis_sizes(pieces[0])[2:4]
        pool = [tf.nn.max_pool2d(piece, 8, 8, "VALID") for piece in ops.fold(pieces)]
        pool = ops.join(pool, self.channels or [pool[0].shape[-1]])
        kernel = tf.cast(self.kernel, pool.dtype)
        maps = []
        for level in range(self.levels):
            if level:
                # A last row or column without a partner passes.
                pool = tf.nn.max_pool2d(pool, 2, 2, "SAME")
            one = slice(level, level + 1)
            # The ONNX converter can't add a scalar to a convolution.
            x = tf.nn.conv2d(pool, kernel[..., one], 1, "VALID") + self.bias[one]
            x = self._expand(ops.unfold(x, inputs), level, size)
            maps.append(x[:, :, : size[0], : size[1]])
        return [tf.concat(maps, axis=-1), *pieces]

    def _expand(self, x, level, size):
        step = 2 ** (3 + level)
        if self.upsampling == "transpose":
            _, slices, rows, columns, _ = ops.axis_sizes(x)
            x = x[:, :, :, tf.newaxis, :, tf.newaxis] * self.up_kernels[level][:, tf.newaxis, :, 0]
            return tf.reshape(x, [-1, slices, rows * step, columns * step, 1]) + self.up_bias[level]
        x = x[:, :, : tf.maximum(size[0] // step, 1), : tf.maximum(size[1] // step, 1)]
        if self.border:
            border = [[0, 0], [0, 0], [1, 1], [1, 1], [0, 0]]
            x = tf.pad(x, border, constant_values=self.bias[level])
        return ops.resize_in_plane(x, size)
