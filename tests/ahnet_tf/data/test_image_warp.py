"""The warp of images against TensorFlow Addons and by hand."""

import numpy as np
import pytest
import tensorflow as tf

from ahnet_tf.data.image_warp import warp_image


@pytest.mark.parametrize("shape", [(1, 17, 23, 5), (1, 2, 2, 1), (1, 64, 48, 3)])
def test_equal_to_tensorflow_addons_to_the_last_bit(shape):
    image_ops = pytest.importorskip("tensorflow_addons.image", exc_type=ImportError)
    random = np.random.default_rng(5)
    image = random.normal(0, 300, shape).astype(np.float32)
    # Up to far beyond the border, and some of it by whole pixels.
    flow = random.normal(0, 4, (*shape[:3], 2)).astype(np.float32)
    flow[:, ::3] = np.round(flow[:, ::3])
    expected = image_ops.dense_image_warp(tf.constant(image), tf.constant(flow))
    found = warp_image(tf.constant(image), tf.constant(flow))
    np.testing.assert_array_equal(found, expected)


def test_half_a_pixel_and_beyond_the_border():
    image = tf.constant([[0.0, 10.0], [20.0, 50.0]])[tf.newaxis, ..., tf.newaxis]
    flow = tf.constant([[[0.0, -0.5], [0.0, -3.0]], [[0.5, 0.0], [0.5, 0.5]]])[tf.newaxis]
    # Sources: (0, 0.5), (0, 4), (0.5, 0), (0.5, 0.5).
    np.testing.assert_allclose(warp_image(image, flow)[0, ..., 0], [[5, 10], [10, 20]])
