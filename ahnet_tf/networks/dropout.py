"""Dropout seeded by step, so that a resumed run reproduces its masks."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from contextvars import ContextVar

import keras
import tensorflow as tf

from ahnet_tf.networks.ops import register

_fold_in = tf.random.experimental.stateless_fold_in
_step_seed: ContextVar[tf.Tensor | None] = ContextVar("step_seed", default=None)


@contextlib.contextmanager
def dropout_seed(seed: tf.Tensor) -> Iterator[None]:
    """Seeds all dropout layers called inside, int32 [2]; without a seed each call draws new masks."""
    token = _step_seed.set(seed)
    try:
        yield
    finally:
        _step_seed.reset(token)


@register
class SeededDropout(keras.layers.Layer):
    """Drops values at `rate` in training, scales the others by 1 / (1 - rate); a mask for each layer."""

    def __init__(self, rate: float, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, inputs, training=None):
        if not training or not self.rate:
            return inputs
        seed = _step_seed.get()
        if seed is None:
            return tf.nest.map_structure(lambda x: tf.nn.dropout(x, self.rate), inputs)
        seed = _fold_in(seed, zlib.crc32(self.name.encode()) & 0x7FFFFFFF)
        pieces = [
            tf.nn.experimental.stateless_dropout(x, self.rate, _fold_in(seed, i))
            for i, x in enumerate(tf.nest.flatten(inputs))
        ]
        return tf.nest.pack_sequence_as(inputs, pieces)
