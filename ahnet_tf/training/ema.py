"""A moving average of a network's weights, which is evaluated and kept in their place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf


class WeightAverage(tf.Module):
    """Averages of all weights: average <- momentum * average + (1 - momentum) * weight.

    The moving statistics of batch norm are averaged with the same momentum, so that they belong to the
    averaged weights. (Keras' own `use_ema` leaves them out, and needs the slower of its Adams.)

    Args:
      strategy: of the training; each replica keeps up its own copy, without any communication.
      model: the network, with its start weights.
      momentum: fraction of the average that a step keeps.
    """

    def __init__(self, strategy: tf.distribute.Strategy, model: tf.keras.Model, momentum: float):
        super().__init__()
        self._weights = model.weights
        self._momentum = momentum
        with strategy.scope():
            self.averages = [
                tf.Variable(
                    weight.numpy(),
                    trainable=False,
                    dtype=weight.dtype,
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.MEAN,
                )
                for weight in self._weights
            ]

    def update(self) -> None:
        """Takes the weights after a step into the averages; called by each replica."""
        for average, weight in zip(self.averages, self._weights, strict=True):
            average.assign_sub((average - weight) * (1 - self._momentum))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Gives the network the averaged weights for a while, and its own back."""
        own = [weight.numpy() for weight in self._weights]
        for weight, average in zip(self._weights, self.averages, strict=True):
            weight.assign(average.numpy())
        try:
            yield
        finally:
            for weight, value in zip(self._weights, own, strict=True):
                weight.assign(value)
