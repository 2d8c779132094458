"""Bilinear warp of images: TensorFlow Addons' where it is installed, an equal elsewhere."""

from __future__ import annotations

import tensorflow as tf


def warp_image(image: tf.Tensor, flow: tf.Tensor) -> tf.Tensor:
    """Returns [1, y, x, channel] with the value at (y, x) taken at (y, x) - `flow` of [1, y, x], float32.

    Between pixels it interpolates bilinearly; beyond the border it takes the border's value. Height and
    width are at least 2. The same values, bit for bit, as TensorFlow Addons' dense_image_warp.
    """
    _, height, width, channels = image.shape
    grid = tf.stack(tf.meshgrid(tf.range(height), tf.range(width), indexing="ij"), axis=-1)
    source = tf.cast(grid, flow.dtype) - flow[0]
    corner = tf.clip_by_value(tf.floor(source), 0.0, [height - 2.0, width - 2.0])
    along_y, along_x = tf.split(tf.clip_by_value(source - corner, 0.0, 1.0), 2, axis=-1)
    first = tf.tensordot(tf.cast(corner, tf.int32), [width, 1], axes=1)
    pixels = tf.reshape(image, [height * width, channels])
    corners = [tf.gather(pixels, first + step) for step in (0, 1, width, width + 1)]
    top = along_x * (corners[1] - corners[0]) + corners[0]
    bottom = along_x * (corners[3] - corners[2]) + corners[2]
    return (along_y * (bottom - top) + top)[tf.newaxis]


try:
    from tensorflow_addons.image import dense_image_warp
except ImportError:  # it has no release for TensorFlow after 2.15
    dense_image_warp = warp_image
