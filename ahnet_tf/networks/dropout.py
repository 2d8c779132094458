"""Dropout whose masks follow from a seed of the step, so that a run that goes on drops what it would have."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from contextvars import ContextVar

import tensorflow as tf

from ahnet_tf.networks.normalization import SettingsLayer, register

_step_seed: ContextVar[tf.Tensor | None] = ContextVar("step_seed", default=None)


@contextlib.contextmanager
def dropout_seed(seed: tf.Tensor) -> Iterator[None]:
    """Gives all dropout of a network's call its seed, int32 [2]; without one masks are drawn anew."""
    token = _step_seed.set(seed)
    try:
        yield
    finally:
        _step_seed.reset(token)


@register
class SeededDropout(SettingsLayer):
    """Drops values at `rate` in training and scales the others by 1 / (1 - rate); pieces alike.

    Each layer and piece has a mask of its own.
    """

    settings = ("rate",)

    def __init__(self, rate: float, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, inputs, training=None):
        if not training or not self.rate:
            return inputs
        pieces = inputs if isinstance(inputs, list) else [inputs]
        dropped = [self._drop(piece, number) for number, piece in enumerate(pieces)]
        return dropped if isinstance(inputs, list) else dropped[0]

    def _drop(self, x, number):
        seed = _step_seed.get()
        if seed is None:
            return tf.nn.dropout(x, self.rate)
        salt = zlib.crc32(f"{self.name}/{number}".encode()) & 0x7FFFFFFF
        seed = tf.random.experimental.stateless_fold_in(seed, salt)
        return tf.nn.experimental.stateless_dropout(x, self.rate, seed)
