"""Adam or AdamW with its learning-rate schedule, and the moving average of the weights (EMA)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from ahnet_tf.config import TrainingConfig
from ahnet_tf.keras_versions import Variable, tensorflow_variables
from ahnet_tf.networks.factory import named_weights

BETAS = (0.9, 0.999)
EPSILON = 1e-8
# Of the dynamic loss scale: its first value, and the good steps before it doubles.
FIRST_SCALE, GOOD_STEPS = 2.0**15, 2000


class WarmUpThenDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to `learning_rate`, then cosine decay to a fraction of it at the last step.

    The first of n warm-up steps takes 1 / n of the rate, where Keras' own warm-up begins at 0.

    Args:
      config: steps, warm-up, rates; without a decay the rate is constant.
    """

    def __init__(self, config: TrainingConfig):
        self._warmup_steps = config.warmup_steps
        self._learning_rate = config.learning_rate
        self._decay = keras.optimizers.schedules.CosineDecay(
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


class Adam(tf.Module):
    """Adam (Kingma and Ba 2015) or AdamW (Loshchilov and Hutter 2019) by TensorFlow's fused update.

    The fused update is faster on CPUs than Keras' own, and Keras 2 and 3 share it. All variables are
    created at once: those of a first step would make TensorFlow trace it twice, and a checkpoint could
    not be checked before it. Beta is 0.9 and 0.999, epsilon 1e-8.

    Args:
      strategy: of the training; each replica updates its own copy of the weights, all alike.
      weights: trainable weights, with the gradients of the whole batch in the same order.
      schedule: learning rate by number of finished updates.
      weight_decay: what a step takes away of the weights in `decayed`, as a fraction of the rate.
      decayed: a subset of `weights`.
      loss_scale: first value of float16's dynamic scale; None for other precisions. A gradient that is
        not finite skips the step and halves the scale, 2000 good steps double it.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        weights: Sequence[Variable],
        schedule: Callable[[tf.Tensor], tf.Tensor],
        *,
        weight_decay: float = 0.0,
        decayed: Sequence[Variable] = (),
        loss_scale: float | None = None,
    ):
        super().__init__()
        self._weights = tensorflow_variables(weights)
        self._schedule = schedule
        self._weight_decay = weight_decay
        self._decayed = {id(weight) for weight in tensorflow_variables(decayed)}
        with strategy.scope():
            self.first_moments, self.second_moments = (
                [
                    tf.Variable(tf.zeros(weight.shape, weight.dtype), trainable=False)
                    for weight in self._weights
                ]
                for _ in range(2)
            )
            self.iterations = _replicated_scalar(0, tf.int64)
            self.good_steps = _replicated_scalar(0, tf.int64)
            self.loss_scale = _replicated_scalar(loss_scale, tf.float32) if loss_scale else None

    def scaled(self, loss: tf.Tensor) -> tf.Tensor:
        """Returns the loss to differentiate."""
        return loss if self.loss_scale is None else loss * self.loss_scale

    def unscaled(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Returns the gradients of the loss from those of the scaled loss."""
        if self.loss_scale is None:
            return list(gradients)
        return [gradient / self.loss_scale for gradient in gradients]

    def apply(self, gradients: Sequence[tf.Tensor]) -> None:
        """Updates the weights; called in each replica, with the same gradients."""
        if self.loss_scale is None:
            self._update(gradients)
            return
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(each)) for each in gradients])
        tf.cond(finite, lambda: self._update(gradients), lambda: None)
        good = tf.where(finite, self.good_steps + 1, 0)
        grows = good >= GOOD_STEPS
        factor = tf.where(finite, tf.where(grows, 2.0, 1.0), 0.5)
        self.loss_scale.assign(tf.maximum(self.loss_scale * factor, 1.0))
        self.good_steps.assign(tf.where(grows, tf.zeros_like(good), good))

    def _update(self, gradients: Sequence[tf.Tensor]) -> None:
        rate = self._schedule(self.iterations.value())
        updates = tf.cast(self.iterations + 1, tf.float32)
        powers = [tf.constant(beta, updates.dtype) ** updates for beta in BETAS]
        parts = zip(self._weights, self.first_moments, self.second_moments, gradients, strict=True)
        for weight, first, second, gradient in parts:
            own_rate, power1, power2 = (tf.cast(each, gradient.dtype) for each in (rate, *powers))
            if id(weight) in self._decayed:
                taken = tf.convert_to_tensor(weight) * self._weight_decay * own_rate
                tf.raw_ops.AssignSubVariableOp(resource=weight.handle, value=taken)
            tf.raw_ops.ResourceApplyAdam(
                var=weight.handle,
                m=first.handle,
                v=second.handle,
                beta1_power=power1,
                beta2_power=power2,
                lr=own_rate,
                beta1=BETAS[0],
                beta2=BETAS[1],
                epsilon=EPSILON,
                grad=gradient,
            )
        self.iterations.assign_add(1)


def make_optimizer(
    strategy: tf.distribute.Strategy, model: keras.Model, config: TrainingConfig
) -> Adam:
    """Returns Adam with the configured schedule, or AdamW, without decay of norms and biases."""
    return Adam(
        strategy,
        model.trainable_variables,
        WarmUpThenDecay(config),
        weight_decay=config.weight_decay,
        decayed=_kernels(model) if config.weight_decay else (),
        loss_scale=FIRST_SCALE if config.precision == "mixed_float16" else None,
    )


class WeightAverage(tf.Module):
    """Exponential moving average (EMA) of all weights, used for evaluation and export.

    After each step: average <- momentum * average + (1 - momentum) * weight. The moving statistics of
    batch norm are averaged with the same momentum, so that they match the averaged weights; Keras'
    `use_ema` leaves them out.

    Args:
      strategy: of the training; each replica updates its own copy without communication.
      model: the network, with its start weights.
      momentum: fraction of the average that a step keeps.
    """

    def __init__(self, strategy: tf.distribute.Strategy, model: keras.Model, momentum: float):
        super().__init__()
        # In an order that Keras 2 and 3 share.
        self._weights = tensorflow_variables(named_weights(model).values())
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


def _kernels(model: keras.Model) -> list[Variable]:
    return [
        variable
        for name, variable in named_weights(model).items()
        if variable.trainable and "kernel" in name.rsplit("/", 1)[-1]
    ]


def _replicated_scalar(value: float, dtype: tf.DType) -> tf.Variable:
    """Returns a variable of which each replica updates its own copy, all alike."""
    return tf.Variable(
        value,
        dtype=dtype,
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
