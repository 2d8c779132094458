"""What the networks are made of, as functions of tensors.

Feature maps between layers are [batch, z, y, x, channel], z the slice axis. What works within slices sees
[batch * z, y, x, channel], what works along z sees [batch, z, y * x, channel]: 2D kernels do it all. On
CPU they are at least as fast as 3D ones, and their bfloat16 gradients are sound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

# Values in a 1x1 kernel from which on a matrix product is faster than a convolution.
LARGE_KERNEL = 2**17


def axis_sizes(x: tf.Tensor) -> list[int | tf.Tensor]:
    """Returns the size of each axis: a number where it is known, else a scalar.

    Operations on sizes are a large part of a graph, and numbers need none.
    """
    if x.shape.is_fully_defined():
        return x.shape.as_list()
    found = tf.unstack(tf.shape(x))
    return [each if size is None else size for size, each in zip(x.shape, found, strict=True)]


def fold(x: tf.Tensor) -> tf.Tensor:
    """Turns [batch, z, y, x, channel] into [batch * z, y, x, channel]; 4D tensors pass."""
    if x.shape.rank == 4:
        return x
    return tf.reshape(x, [-1, *axis_sizes(x)[2:]])


def unfold(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Turns [batch * z, y, x, channel] back into [batch, z, y, x, channel] with the z of `like`."""
    return tf.reshape(x, [-1, axis_sizes(like)[1], *axis_sizes(x)[1:]])


def as_pieces(x: tf.Tensor | list[tf.Tensor]) -> list[tf.Tensor]:
    """Returns a map given as its channel groups ("pieces"), or whole, as the list of its pieces."""
    return list(x) if isinstance(x, (list, tuple)) else [x]


def lanes(channels: int) -> int:
    """Returns the next multiple of 16: the kernels for CPUs are slow at other numbers of channels."""
    return -(-channels // 16) * 16


def widen(x: tf.Tensor, size: int, axis: int, value: float = 0.0) -> tf.Tensor:
    """Appends `value` along an axis up to `size`.

    By concatenation: TensorFlow 2.15 aborts where a convolution's kernel comes straight from tf.pad.
    """
    x = tf.convert_to_tensor(x)
    missing = size - x.shape[axis]
    if not missing:
        return x
    shape = axis_sizes(x)
    shape[axis] = missing
    return tf.concat([x, tf.fill(shape, tf.cast(value, x.dtype))], axis)


def conv(
    x: tf.Tensor, kernel: tf.Tensor, strides: int = 1, bias: tf.Tensor | None = None
) -> tf.Tensor:
    """Convolves a folded map with `kernel` [ky, kx, in, out], padding k // 2 zeros on all sides.

    Channels of `x` beyond the kernel's are left out. TensorFlow's own "SAME" pads a strided
    convolution on one side only, and its explicit padding has a slow gradient on CPU, so strided
    convolutions pad first. Large 1x1 kernels are matrix products: convolutions reorder them each time.
    """
    kernel = widen(tf.cast(kernel, x.dtype), x.shape[-1], axis=2)
    ky, kx, channels, filters = kernel.shape
    if ky == kx == strides == 1 and channels * filters >= LARGE_KERNEL:
        product = tf.matmul(tf.reshape(x, [-1, channels]), kernel[0, 0])
        return tf.reshape(_biased(product, bias), [-1, *axis_sizes(x)[1:3], filters])
    if strides > 1 and (ky > 1 or kx > 1):
        x = tf.pad(x, [[0, 0], [ky // 2, ky // 2], [kx // 2, kx // 2], [0, 0]])
    padding = "SAME" if strides == 1 else "VALID"
    return _biased(tf.nn.conv2d(x, kernel, strides, padding), bias)


def _biased(x: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
    return x if bias is None else tf.nn.bias_add(x, tf.cast(bias, x.dtype))


def conv_pieces(
    pieces: Sequence[tf.Tensor],
    kernel: tf.Tensor,
    strides: int = 1,
    sizes: Sequence[int] | None = None,
    bias: tf.Tensor | None = None,
) -> tf.Tensor:
    """Convolves the concatenation of folded `pieces` with `kernel`, as a sum over the pieces.

    `sizes` are the channels that count in each piece; all of them by default. With a bias there are two
    terms, each with half of it: the second convolution then adds bias and first term by itself.
    """
    if len(pieces) == 1:
        return conv(pieces[0], kernel, strides, bias)
    parts = tf.split(kernel, sizes or [piece.shape[-1] for piece in pieces], axis=2)
    if bias is None:
        return tf.add_n([conv(p, part, strides) for p, part in zip(pieces, parts, strict=True)])
    first = conv(pieces[0], parts[0], strides, bias / 2)
    wide = [widen(part, p.shape[-1], axis=2) for p, part in zip(pieces, parts, strict=True)]
    rest = conv(tf.concat(pieces[1:], -1), tf.concat(wide[1:], 2), strides, bias / 2)
    return rest + first


def conv_to_few(
    pieces: Sequence[tf.Tensor], kernel: tf.Tensor, sizes: Sequence[int] | None = None
) -> tf.Tensor:
    """As `conv_pieces` for a 3x3 `kernel` with a handful of outputs, about twice as fast on CPU.

    A 1x1 convolution gives each pixel's share in its nine neighbours; a 3x3 one with ones and zeros
    adds the shares up.
    """
    channels, classes = kernel.shape[2:]
    shares = tf.reshape(tf.transpose(kernel, [2, 0, 1, 3]), [1, 1, channels, 9 * classes])
    adding = np.eye(9 * classes, dtype=np.float32).reshape(3, 3, classes, 9 * classes)
    return conv(conv_pieces(pieces, shares, sizes=sizes), adding.transpose(0, 1, 3, 2))


def scale_shift(x: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """Returns x * scale + shift by channel, as a 1x1 depthwise convolution: one pass on CPU."""
    scale, shift = (widen(tf.cast(v, x.dtype), x.shape[-1], axis=0) for v in (scale, shift))
    kernel = tf.reshape(scale, [1, 1, -1, 1])
    return tf.nn.bias_add(tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME"), shift)


def resize_in_plane(x: tf.Tensor, size_yx: Sequence[int | tf.Tensor]) -> tf.Tensor:
    """Interpolates a folded map bilinearly to `size_yx`, corners aligned; keeps the dtype."""
    resized = tf.raw_ops.ResizeBilinear(images=x, size=tf.stack(size_yx), align_corners=True)
    return tf.cast(resized, x.dtype)


def stem_conv(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Convolves a folded map of even size with a 7x7 `kernel`, stride 2, three zeros on all sides.

    Four neighbouring pixels become channels and the kernel a 4x4 one: the same sums, with a gradient
    twice as fast on CPU as that of the strided convolution.
    """
    channels, filters = kernel.shape[2:]
    kernel = tf.pad(kernel, [[1, 0], [1, 0], [0, 0], [0, 0]])
    kernel = tf.reshape(kernel, [4, 2, 4, 2, channels, filters])
    kernel = tf.reshape(tf.transpose(kernel, [0, 2, 1, 3, 4, 5]), [4, 4, 4 * channels, filters])
    x = tf.nn.space_to_depth(tf.pad(x, [[0, 0], [4, 2], [4, 2], [0, 0]]), 2)
    return tf.nn.conv2d(x, tf.cast(kernel, x.dtype), 1, "VALID")


def fold_plane(x: tf.Tensor) -> tf.Tensor:
    """Turns [batch, z, y, x, channel] into [batch, z, y * x, channel]."""
    _, slices, rows, columns, channels = axis_sizes(x)
    return tf.reshape(x, [-1, slices, rows * columns, channels])


def unfold_plane(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Turns [batch, z, y * x, channel] back into 5D with the y, x of `like`."""
    _, slices, _, channels = axis_sizes(x)
    return tf.reshape(x, [-1, slices, *axis_sizes(like)[2:4], channels])


def slice_max_pool(x: tf.Tensor) -> tf.Tensor:
    """Max pool over pairs of slices; a last slice without a partner passes: z becomes ceil(z / 2)."""
    return unfold_plane(tf.nn.max_pool2d(fold_plane(x), [2, 1], [2, 1], "SAME"), x)


def slice_conv(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Convolves along z with `kernel` [3, 1, in, out], one zero slice beyond either end.

    Channels of `x` beyond the kernel's are left out.
    """
    kernel = widen(tf.cast(kernel, x.dtype), x.shape[-1], axis=2)
    return unfold_plane(tf.nn.conv2d(fold_plane(x), kernel, 1, "SAME"), x)


def neighbouring_slices(x: tf.Tensor, count: int) -> tf.Tensor:
    """Stacks each slice's `count` neighbours, itself in the middle, as channels: slice-major.

    [batch, z, y, x, channel] becomes [batch, z, y, x, count * channel]; beyond the ends lie zeros.
    """
    reach = count // 2
    depth = axis_sizes(x)[1]
    x = tf.pad(x, [[0, 0], [reach, reach], [0, 0], [0, 0], [0, 0]])
    return tf.concat([x[:, i : i + depth] for i in range(count)], axis=-1)


def interpolation_matrix(
    size_in: int | tf.Tensor, size_out: int | tf.Tensor, dtype: tf.DType
) -> tf.Tensor:
    """Returns [size_out, size_in], linear interpolation along one axis with corners aligned."""
    last_in = tf.cast(size_in - 1, tf.float32)
    last_out = tf.cast(tf.maximum(size_out - 1, 1), tf.float32)
    positions = tf.cast(tf.range(size_out), tf.float32) * last_in / last_out
    distances = tf.abs(positions[:, tf.newaxis] - tf.cast(tf.range(size_in), tf.float32))
    return tf.cast(tf.nn.relu(1 - distances), dtype)


def resize_slices(x: tf.Tensor, depth: int | tf.Tensor) -> tf.Tensor:
    """Interpolates linearly along z to `depth` slices, corners aligned."""
    _, slices, *rest = axis_sizes(x)
    flat = tf.reshape(x, [-1, slices, math.prod(rest)])
    flat = tf.matmul(interpolation_matrix(slices, depth, x.dtype), flat)
    return tf.reshape(flat, [-1, depth, *rest])


def resize(x: tf.Tensor, size_zyx: Sequence[int | tf.Tensor]) -> tf.Tensor:
    """Interpolates trilinearly to `size_zyx`, corners aligned; keeps the dtype."""
    x = resize_slices(x, size_zyx[0])
    return unfold(resize_in_plane(fold(x), size_zyx[1:]), x)


def transposed_conv(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Transposed convolution with `kernel` [depth, 2, 2, in, out], its strides its size."""
    depth, _, _, channels, filters = kernel.shape
    _, slices, rows, columns, _ = axis_sizes(x)
    kernel = tf.reshape(tf.cast(kernel, x.dtype), [depth, 1, 1, 4, channels, filters])
    slabs = []
    for part in tf.unstack(tf.transpose(kernel, [0, 1, 2, 4, 3, 5])):
        flat = conv(fold(x), tf.reshape(part, [1, 1, channels, 4 * filters]))
        slabs.append(tf.nn.depth_to_space(flat, 2))
    x = tf.stack(slabs, axis=1)
    return tf.reshape(x, [-1, depth * slices, 2 * rows, 2 * columns, filters])
