"""Layers within slices: convolution, stem, residual bottleneck, GCN and refinement blocks.

Maps are [batch, z, y, x, channel], for the 2D networks too; `ConvNorm` takes folded ones as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from ahnet_tf.networks.normalization import (
    SettingsLayer,
    build_inside,
    channels_of,
    in_plane_normal,
    make_norm,
    register,
)
from ahnet_tf.networks.ops import (
    as_pieces,
    axis_sizes,
    conv,
    conv_pieces,
    fold,
    fold_plane,
    resize_in_plane,
    slice_max_pool,
    stem_conv,
    unfold,
    unfold_plane,
)

# Values in a kernel from which on a batch norm scales the convolution's output, not its kernel: such
# kernels belong to small maps.
SCALED_AFTER = 2**19


@register
class ConvNorm(SettingsLayer):
    """Convolution within slices, norm and, unless `relu` is off, ReLU; batch norm folded in inference.

    Takes a map, folded or not, or a list of folded pieces. `residual` is added before the ReLU.
    `pieces` says how many channels count in each.
    """

    settings = ("filters", "kernel_size", "strides", "norm", "relu", "pieces")

    def __init__(
        self,
        filters: int,
        kernel_size: int = 3,
        strides: int = 1,
        norm: str = "batch",
        relu: bool = True,
        pieces: Sequence[int] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.pieces = pieces
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.norm = norm
        self.relu = relu
        self.normalise = make_norm(norm, name="norm")

    def build(self, input_shape):
        shape = [
            self.kernel_size,
            self.kernel_size,
            channels_of(input_shape, self.pieces),
            self.filters,
        ]
        self.kernel = self.add_weight("kernel", shape, initializer=in_plane_normal(shape))
        build_inside(self.normalise, self.filters)
        super().build(input_shape)

    def call(self, inputs, residual=None, training=None):
        pieces = as_pieces(inputs)
        folded = [fold(piece) for piece in pieces]
        if self.normalise.learns(training):
            x = conv_pieces(folded, self.kernel, self.strides, self.pieces)
            x = self.normalise(x, training=training)
        else:
            scale, shift = self.normalise.affine()
            if self.kernel.shape.num_elements() >= SCALED_AFTER:
                x = conv_pieces(folded, self.kernel, self.strides, self.pieces)
                x = tf.nn.bias_add(x * tf.cast(scale, x.dtype), tf.cast(shift, x.dtype))
            else:
                kernel = tf.cast(self.kernel, tf.float32) * scale
                x = conv_pieces(folded, kernel, self.strides, self.pieces, bias=shift)
        if residual is not None:
            x += fold(residual)
        if self.relu:
            x = tf.nn.relu(x)
        return x if pieces[0].shape.rank == 4 else unfold(x, pieces[0])


@register
class Bottleneck(SettingsLayer):
    """ResNet-50's bottleneck with the stride in its 3x3 convolution, on [batch, z, y, x, channel].

    `filters` channels inside, 4 * filters out. With `slice_pool` (AH-downsampling) a max pool of two
    slices halves z of the main branch after its last norm and of the shortcut before its norm, as the
    authors' and MONAI's code do it.
    """

    settings = ("filters", "strides", "shortcut", "slice_pool", "norm")

    def __init__(
        self,
        filters: int,
        strides: int = 1,
        shortcut: bool = False,
        slice_pool: bool = False,
        norm: str = "batch",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self.shortcut = shortcut
        self.slice_pool = slice_pool
        self.norm = norm
        self.conv1 = ConvNorm(filters, 1, norm=norm, name="conv1")
        self.conv2 = ConvNorm(filters, 3, strides, norm=norm, name="conv2")
        self.conv3 = ConvNorm(4 * filters, 1, norm=norm, relu=not slice_pool, name="conv3")
        if slice_pool:
            self.project = PooledConvNorm(4 * filters, strides, norm=norm, name="shortcut")
        elif shortcut:
            self.project = ConvNorm(4 * filters, 1, strides, norm, relu=False, name="shortcut")

    def call(self, inputs, training=None):
        residual = inputs
        if self.shortcut:
            residual = self.project(inputs, training=training)
        x = self.conv2(self.conv1(fold(inputs), training=training), training=training)
        if not self.slice_pool:
            return unfold(self.conv3(x, residual=residual, training=training), inputs)
        x = slice_max_pool(unfold(self.conv3(x, training=training), inputs))
        return tf.nn.relu(x + residual)


@register
class PooledConvNorm(SettingsLayer):
    """Strided 1x1 convolution, max pool of two slices, norm: the shortcut of AH-downsampling."""

    settings = ("filters", "strides", "norm")

    def __init__(self, filters: int, strides: int = 2, norm: str = "batch", **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self.norm = norm
        self.normalise = make_norm(norm, name="norm")

    def build(self, input_shape):
        shape = [1, 1, input_shape[-1], self.filters]
        self.kernel = self.add_weight("kernel", shape, initializer=in_plane_normal(shape))
        build_inside(self.normalise, self.filters)
        super().build(input_shape)

    def call(self, inputs, training=None):
        x = unfold(conv(fold(inputs), self.kernel, self.strides), inputs)
        x = slice_max_pool(x)
        return unfold(self.normalise(fold(x), training=training), x)


@register
class Stem(SettingsLayer):
    """The 2D stem: 7x7 convolution of stride 2, norm, ReLU on [batch, z, y, x, channel], y, x even."""

    settings = ("filters", "norm")

    def __init__(self, filters: int, norm: str = "batch", **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.norm = norm
        self.normalise = make_norm(norm, name="norm")

    def build(self, input_shape):
        shape = [7, 7, input_shape[-1], self.filters]
        self.kernel = self.add_weight("kernel", shape, initializer=in_plane_normal(shape))
        build_inside(self.normalise, self.filters)
        super().build(input_shape)

    def call(self, inputs, training=None):
        x = self.normalise(stem_conv(fold(inputs), self.kernel), training=training)
        return unfold(tf.nn.relu(x), inputs)


@register
class MaxPool(SettingsLayer):
    """Max pool of stride 2: `size` 3 pads one zero (its input is a ReLU's output), 2 pads at the end.

    Within slices, and across them too with `slice_pool`.
    """

    settings = ("size", "slice_pool")

    def __init__(self, size: int = 3, slice_pool: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.size = size
        self.slice_pool = slice_pool

    def call(self, inputs):
        x = fold(inputs)
        if self.size == 3:
            x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
        x = unfold(tf.nn.max_pool2d(x, self.size, 2, "VALID"), inputs)
        if not self.slice_pool:
            return x
        if self.size == 2:
            return slice_max_pool(x)
        x = tf.pad(x, [[0, 0], [1, 1], [0, 0], [0, 0], [0, 0]])
        return unfold_plane(tf.nn.max_pool2d(fold_plane(x), [3, 1], [2, 1], "VALID"), x)


@register
class ResizeInPlane(SettingsLayer):
    """Bilinear interpolation within slices to the y, x size of a second map, corners aligned."""

    def call(self, inputs, like):
        return unfold(resize_in_plane(fold(inputs), axis_sizes(like)[2:4]), inputs)


@register
class GlobalConv(SettingsLayer):
    """The GCN block (Peng et al. 2017): k x 1 then 1 x k plus 1 x k then k x 1, with biases."""

    settings = ("filters", "size")

    def __init__(self, filters: int, size: int = 7, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.size = size

        def branch(name, *shapes):
            return [
                tf.keras.layers.Conv2D(filters, shape, padding="same", name=f"{name}{i}")
                for i, shape in enumerate(shapes, start=1)
            ]

        self.left = branch("left", (size, 1), (1, size))
        self.right = branch("right", (1, size), (size, 1))

    def call(self, inputs):
        x = fold(inputs)
        left = self.left[1](self.left[0](x))
        right = self.right[1](self.right[0](x))
        return unfold(left + right, inputs)


@register
class Refine(SettingsLayer):
    """Boundary refinement: norm, ReLU, conv 3x3 twice, added to the input; both halves share one norm."""

    settings = ("norm",)

    def __init__(self, norm: str = "batch", **kwargs):
        super().__init__(**kwargs)
        self.norm = norm
        self.normalise = make_norm(norm, name="norm")

    def build(self, input_shape):
        filters = input_shape[-1]
        self.conv1 = tf.keras.layers.Conv2D(filters, 3, padding="same", name="conv1")
        self.conv2 = tf.keras.layers.Conv2D(filters, 3, padding="same", name="conv2")
        super().build(input_shape)

    def call(self, inputs, training=None):
        x = fold(inputs)
        for convolve in (self.conv1, self.conv2):
            x = convolve(tf.nn.relu(self.normalise(x, training=training)))
        return inputs + unfold(x, inputs)
