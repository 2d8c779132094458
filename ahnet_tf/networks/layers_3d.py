"""Layers across slices: stem, dense blocks, upsampling, pyramid volumetric pooling, final convolution.

Maps are [batch, z, y, x, channel]. Where a published layer works on a concatenation, these take its
parts as a list ("pieces") and the concatenation is never made.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from ahnet_tf.networks.dropout import SeededDropout
from ahnet_tf.networks.layers_2d import ConvNorm
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
    conv_to_few,
    fold,
    lanes,
    neighbouring_slices,
    resize,
    resize_in_plane,
    slice_conv,
    slice_max_pool,
    stem_conv,
    transposed_conv,
    unfold,
    widen,
)


@register
class VolumeStem(SettingsLayer):
    """The 3D stem: 7x7x3 convolution of in-plane stride 2, max pool of two slices, norm, ReLU.

    The kernel is [3, 7, 7, channel, filters] in z, y, x order. `slice_pool=False` leaves z as it is.
    """

    settings = ("filters", "slice_pool", "norm")

    def __init__(self, filters: int, slice_pool: bool = True, norm: str = "batch", **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.slice_pool = slice_pool
        self.norm = norm
        self.normalise = make_norm(norm, name="norm")

    def build(self, input_shape):
        shape = [3, 7, 7, input_shape[-1], self.filters]
        self.kernel = self.add_weight("kernel", shape, initializer=in_plane_normal(shape))
        build_inside(self.normalise, self.filters)
        super().build(input_shape)

    def call(self, inputs, training=None):
        if training:
            kernel = tf.transpose(self.kernel, [1, 2, 0, 3, 4])
            kernel = tf.reshape(kernel, [7, 7, 3 * inputs.shape[-1], self.filters])
            x = unfold(stem_conv(fold(neighbouring_slices(inputs, 3)), kernel), inputs)
        else:
            # The fastest way forward on CPU, with a slow gradient.
            padded = tf.pad(inputs, [[0, 0], [1, 1], [3, 3], [3, 3], [0, 0]])
            kernel = tf.cast(self.kernel, inputs.dtype)
            x = tf.nn.conv3d(padded, kernel, [1, 1, 2, 2, 1], "VALID")
        if self.slice_pool:
            x = slice_max_pool(x)
        return unfold(tf.nn.relu(self.normalise(fold(x), training=training)), x)


@register
class TransposedConv(SettingsLayer):
    """Transposed convolution of stride 2 without bias, cropped to the z, y, x of a second map.

    The kernel is [2 or 1, 2, 2, channel, filters]; with `slices=False` z stays as it is.
    """

    settings = ("filters", "slices")

    def __init__(self, filters: int, slices: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.slices = slices

    def build(self, input_shape):
        shape = [2 if self.slices else 1, 2, 2, input_shape[-1], self.filters]
        self.kernel = self.add_weight("kernel", shape, initializer=in_plane_normal(shape))
        super().build(input_shape)

    def call(self, inputs, like):
        size = axis_sizes(like)
        return transposed_conv(inputs, self.kernel)[:, : size[1], : size[2], : size[3]]


@register
class Resize(SettingsLayer):
    """Trilinear interpolation to the z, y, x of a second map, corners aligned."""

    def call(self, inputs, like):
        return resize(inputs, axis_sizes(like)[1:4])


def make_upsampling(mode: str, filters: int, name: str = "up") -> tf.keras.layers.Layer:
    """Returns the layer of `ModelConfig.upsampling`: "trilinear" or "transpose"."""
    return Resize(name=name) if mode == "trilinear" else TransposedConv(filters, name=name)


@register
class Transition(SettingsLayer):
    """Norm, ReLU, 1x1x1 convolution of a map or its pieces, upsampled to the encoder's map and added.

    `upsampling` is "trilinear", "transpose", or "none" where both maps have one size.
    """

    settings = ("filters", "upsampling", "norm", "pieces")

    def __init__(
        self,
        filters: int,
        upsampling: str,
        norm: str = "batch",
        pieces: Sequence[int] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.pieces = pieces
        self.filters = filters
        self.upsampling = upsampling
        self.norm = norm
        self.normalise = make_norm(norm, "norm", pieces)
        if upsampling != "none":
            self.up = make_upsampling(upsampling, filters)

    def build(self, input_shape):
        channels = channels_of(input_shape, self.pieces)
        shape = [1, 1, channels, self.filters]
        self.kernel = self.add_weight("kernel", shape, initializer=in_plane_normal(shape))
        build_inside(self.normalise, channels)
        super().build(input_shape)

    def call(self, inputs, skip, training=None):
        maps = as_pieces(inputs)
        pieces = self.normalise([fold(piece) for piece in maps], training=training)
        x = conv_pieces([tf.nn.relu(p) for p in pieces], self.kernel, sizes=self.pieces)
        x = unfold(x, maps[0])
        if self.upsampling != "none":
            x = self.up(x, skip)
        return x + skip


@register
class DenseLayer(SettingsLayer):
    """The pseudo-3D layer: 1x1x1 to 4 * growth, 3x3x1 to growth, plus 1x1x3 of it, 1x1x1.

    Takes a map or its pieces, gives the new piece, with zeros for channels up to a multiple of 16.
    Norm and ReLU stand before every convolution.
    """

    settings = ("growth", "norm", "pieces")

    def __init__(
        self, growth: int, norm: str = "batch", pieces: Sequence[int] | None = None, **kwargs
    ):
        super().__init__(**kwargs)
        self.pieces = pieces
        self.growth = growth
        self.norm = norm
        self.norm1 = make_norm(norm, "norm1", pieces)
        self.conv1 = ConvNorm(4 * growth, 1, norm=norm, pieces=pieces, name="conv1")
        self.norm3 = make_norm(norm, name="norm3")
        self.norm4 = make_norm(norm, name="norm4")

    def build(self, input_shape):
        growth = self.growth
        self.kernel2, self.kernel3, self.kernel4 = (
            self.add_weight(name, shape, initializer=in_plane_normal(shape))
            for name, shape in (
                ("kernel2", [3, 3, 4 * growth, growth]),
                ("kernel3", [3, 1, growth, growth]),
                ("kernel4", [1, 1, growth, growth]),
            )
        )
        build_inside(self.norm1, channels_of(input_shape, self.pieces))
        build_inside(self.norm3, growth)
        build_inside(self.norm4, growth)
        super().build(input_shape)

    def call(self, inputs, training=None):
        maps = as_pieces(inputs)
        pieces = self.norm1([fold(piece) for piece in maps], training=training)
        x = self.conv1([tf.nn.relu(piece) for piece in pieces], training=training)
        width = lanes(self.growth)
        x = conv(x, widen(self.kernel2, width, axis=3))
        across = unfold(tf.nn.relu(self.norm3(x, training=training)), maps[0])
        x += fold(slice_conv(across, widen(self.kernel3, width, axis=3)))
        x = tf.nn.relu(self.norm4(x, training=training))
        return unfold(conv(x, widen(self.kernel4, width, axis=3)), maps[0])


@register
class DenseBlock(SettingsLayer):
    """Pseudo-3D layers, each fed with all pieces before it; returns the list of pieces."""

    settings = ("layers", "channels", "growth", "norm")

    def __init__(self, layers: int, channels: int, growth: int, norm: str = "batch", **kwargs):
        super().__init__(**kwargs)
        self.layers = layers
        self.channels = channels
        self.growth = growth
        self.norm = norm
        self.dense = [
            DenseLayer(growth, norm, (channels, *[growth] * i), name=f"layer{i + 1}")
            for i in range(layers)
        ]

    def call(self, inputs, training=None):
        pieces = [inputs]
        for layer in self.dense:
            pieces = [*pieces, layer(pieces, training=training)]
        return pieces


@register
class PyramidPool(SettingsLayer):
    """Pyramid volumetric pooling: max pools of 8, 16, 32, ... pixels, each projected to one channel.

    Takes a map or its pieces, whose y and x are multiples of 8, gives [batch, z, y, x, level]. Each pool is
    taken from the one before; pixels that fill no whole cell are left out, as published, and a pool
    larger than the map takes all of it. `border` surrounds each projection with a cell of its bias, as
    the public PyTorch code does (it pads a 1x1x1 convolution), which the weights trained there expect.
    """

    settings = ("levels", "upsampling", "border", "pieces")

    def __init__(
        self,
        levels: int = 4,
        upsampling: str = "trilinear",
        border: bool = False,
        pieces: Sequence[int] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.pieces = pieces
        self.levels = levels
        self.upsampling = upsampling
        self.border = border

    def build(self, input_shape):
        shape = [1, 1, channels_of(input_shape, self.pieces), self.levels]
        self.kernel = self.add_weight("kernel", shape, initializer=in_plane_normal([1, 1, 1, 1]))
        self.bias = self.add_weight("bias", [self.levels], initializer="zeros")
        if self.upsampling == "transpose":
            self.up_bias = self.add_weight("up_bias", [self.levels], initializer="zeros")
            self.up_kernels = [
                self.add_weight(f"up_kernel{size}", [size, size, 1, 1], initializer="ones")
                for size in (2 ** (3 + i) for i in range(self.levels))
            ]
        super().build(input_shape)

    def call(self, inputs):
        pieces = as_pieces(inputs)
        size = tf.shape(pieces[0])[2:4]
        pools = [tf.nn.max_pool2d(fold(piece), 8, 8, "VALID") for piece in pieces]
        sizes = self.pieces or [piece.shape[-1] for piece in pieces]
        pool = tf.concat([x[..., :n] for x, n in zip(pools, sizes, strict=True)], axis=-1)
        maps = []
        for level in range(self.levels):
            if level:
                pool = _halve(pool)
            x = conv(pool, self.kernel[..., level : level + 1]) + self.bias[level]
            x = self._expand(x, level, size)
            maps.append(x[:, : size[0], : size[1]])
        return unfold(tf.concat(maps, axis=-1), pieces[0])

    def _expand(self, x, level, size):
        if self.upsampling == "transpose":
            step, cells = 2 ** (3 + level), tf.shape(x)[1:3]
            x = x[:, :, tf.newaxis, :, tf.newaxis] * self.up_kernels[level][:, tf.newaxis, :, 0]
            return tf.reshape(x, [-1, cells[0] * step, cells[1] * step, 1]) + self.up_bias[level]
        whole = tf.maximum(size // 2 ** (3 + level), 1)
        x = x[:, : whole[0], : whole[1]]
        if self.border:
            x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=self.bias[level])
        return resize_in_plane(x, size)


def _halve(x):
    """Max pools 2x2; a last row or column without a partner passes."""
    odd = tf.shape(x)[1:3] % 2
    x = tf.pad(x, [[0, 0], [0, odd[0]], [0, odd[1]], [0, 0]], constant_values=x.dtype.min)
    return tf.nn.max_pool2d(x, 2, 2, "VALID")


@register
class Final(SettingsLayer):
    """Norm, ReLU, dropout, 3x3x1 convolution of pieces to the classes, upsampled to the image."""

    settings = ("classes", "dropout", "upsampling", "norm", "pieces")

    def __init__(
        self,
        classes: int,
        dropout: float = 0.0,
        upsampling: str = "trilinear",
        norm: str = "batch",
        pieces: Sequence[int] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.pieces = pieces
        self.classes = classes
        self.dropout = dropout
        self.upsampling = upsampling
        self.norm = norm
        self.normalise = make_norm(norm, "norm", pieces)
        self.drop = SeededDropout(dropout, name="drop")
        self.up = make_upsampling(upsampling, classes)

    def build(self, input_shape):
        channels = channels_of(input_shape, self.pieces)
        shape = [3, 3, channels, self.classes]
        self.kernel = self.add_weight("kernel", shape, initializer=in_plane_normal(shape))
        build_inside(self.normalise, channels)
        super().build(input_shape)

    def call(self, inputs, image, training=None):
        maps = as_pieces(inputs)
        pieces = self.normalise([fold(piece) for piece in maps], training=training)
        pieces = self.drop([tf.nn.relu(piece) for piece in pieces], training=training)
        return self.up(unfold(conv_to_few(pieces, self.kernel, self.pieces), maps[0]), image)
