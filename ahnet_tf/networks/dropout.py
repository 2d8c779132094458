"""Dropout seeded by step, so that a resumed run reproduces its masks."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from contextvars import ContextVar

import tensorflow as tf

from ahnet_tf.networks.ops import register

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
class SeededDropout(tf.keras.layers.Layer):
    """Drops values at `rate` in training, scales the others by 1 / (1 - rate); a mask for each layer."""

    def __init__(self, rate: float, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, inputs, training=None):
        if not training or not self.rate:
            return inputs
        pieces = [self._drop(x, i) for i, x in enumerate(tf.nest.flatten(inputs))]
        return pieces if isinstance(inputs, list) else pieces[0]

    def _drop(self, x, index):
        seed = _step_seed.get()
        if seed is None:
            return tf.nn.dropout(x, self.rate)
        salt = (zlib.crc32(self.name.encode()) + index) & 0x7FFFFFFF
        seed = tf.random.experimental.stateless_fold_in(seed, salt)
        return tf.nn.experimental.stateless_dropout(x, self.rate, seed)
