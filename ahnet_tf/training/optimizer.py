"""Adam or AdamW with its learning-rate schedule, and the moving average of the weights (EMA)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from ahnet_tf.config import TrainingConfig
from ahnet_tf.networks.factory import named_weights


class WarmUpThenDecay(tf.keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to `learning_rate`, then cosine decay to a fraction of it at the last step.

    The first of n warm-up steps takes 1 / n of the rate, where Keras' own warm-up begins at 0.

    Args:
      config: steps, warm-up, rates; without a decay the rate is constant.
    """

    def __init__(self, config: TrainingConfig):
        self._warmup_steps = config.warmup_steps
        self._learning_rate = config.learning_rate
        self._decay = tf.keras.optimizers.schedules.CosineDecay(
            config.learning_rate,
            decay_steps=config.steps - config.warmup_steps,
            alpha=config.final_learning_rate if config.decay == "cosine" else 1.0,
        )

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        """Returns the rate of the update that follows `step` updates, float32."""
        step = tf.cast(step, tf.int64)
        decayed = self._decay(tf.maximum(step - self._warmup_steps, 0))
        rising = self._learning_rate * tf.cast(step + 1, decayed.dtype) / max(1, self._warmup_steps)
        return tf.where(step < self._warmup_steps, rising, decayed)


def make_optimizer(
    strategy: tf.distribute.Strategy, model: tf.keras.Model, config: TrainingConfig
) -> Any:
    """Returns Adam (0.9, 0.999, 1e-8) with the configured schedule, its variables created.

    With a weight decay it is AdamW (Loshchilov and Hutter 2019), without decay of norms and biases;
    otherwise Keras' legacy Adam, whose fused update is faster on CPUs. "mixed_float16" adds Keras'
    dynamic loss scale: a gradient that is not finite skips the step and halves the scale, 2000 good
    steps double it.
    """
    schedule = WarmUpThenDecay(config)
    with strategy.scope():
        if config.weight_decay:
            optimizer = tf.keras.optimizers.AdamW(
                schedule, config.weight_decay, beta_1=0.9, beta_2=0.999, epsilon=1e-8
            )
            optimizer.exclude_from_weight_decay(var_list=_norms_and_biases(model))
            optimizer.build(model.trainable_variables)
        else:
            optimizer = tf.keras.optimizers.legacy.Adam(
                schedule, beta_1=0.9, beta_2=0.999, epsilon=1e-8
            )
            _create_variables(optimizer, model.trainable_variables)
        if config.precision == "mixed_float16":
            optimizer = tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
    return optimizer


class WeightAverage(tf.Module):
    """Exponential moving average (EMA) of all weights, used for evaluation and export.

    After each step: average <- momentum * average + (1 - momentum) * weight. The moving statistics of
    batch norm are averaged with the same momentum, so that they match the averaged weights; Keras'
    `use_ema` leaves them out, and is not available in the legacy Adam.

    Args:
      strategy: of the training; each replica updates its own copy without communication.
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
        """Updates the averages after a step; called in each replica."""
        for average, weight in zip(self.averages, self._weights, strict=True):
            average.assign_sub((average - weight) * (1 - self._momentum))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Replaces the network's weights by their averages inside the context."""
        own = [weight.numpy() for weight in self._weights]
        for weight, average in zip(self._weights, self.averages, strict=True):
            weight.assign(average.numpy())
        try:
            yield
        finally:
            for weight, value in zip(self._weights, own, strict=True):
                weight.assign(value)


def _norms_and_biases(model: tf.keras.Model) -> list[tf.Variable]:
    return [
        variable
        for name, variable in named_weights(model).items()
        if variable.trainable and "kernel" not in name.rsplit("/", 1)[-1]
    ]


def _create_variables(
    optimizer: tf.keras.optimizers.legacy.Optimizer, weights: list[tf.Variable]
) -> None:
    # Variables created in the first step would make TensorFlow trace it twice, and a checkpoint could
    # not be checked before it. Reading a setting or the count creates its variable.
    _ = optimizer.iterations, optimizer.beta_1, optimizer.beta_2
    for moment in ("m", "v"):
        for weight in weights:
            optimizer.add_slot(weight, moment)
