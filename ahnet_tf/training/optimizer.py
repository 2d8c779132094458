"""The optimizer: Adam as published, with weight decay and a loss scale where they are asked for."""

from __future__ import annotations

import tensorflow as tf

from ahnet_tf.config import TrainingConfig
from ahnet_tf.networks.factory import named_weights
from ahnet_tf.training.schedules import WarmUpThenDecay

Optimizer = tf.keras.optimizers.legacy.Optimizer | tf.keras.optimizers.Optimizer


def make_optimizer(
    strategy: tf.distribute.Strategy, model: tf.keras.Model, config: TrainingConfig
) -> Optimizer:
    """Returns Adam (0.9, 0.999, 1e-8) with the configured schedule, its state created.

    With a weight decay that is AdamW (Loshchilov and Hutter 2019), which spares norms and biases.
    Otherwise it is Keras' legacy class, whose fused update is faster on CPUs. For "mixed_float16"
    Keras' dynamic loss scale is around it: it halves the scale and leaves out the step where a gradient
    is not finite, and doubles it after 2000 good steps.
    """
    schedule = WarmUpThenDecay(config)
    with strategy.scope():
        if config.weight_decay:
            optimizer = tf.keras.optimizers.AdamW(
                schedule, config.weight_decay, beta_1=0.9, beta_2=0.999, epsilon=1e-8
            )
            optimizer.exclude_from_weight_decay(var_list=_without_decay(model))
            optimizer.build(model.trainable_variables)
        else:
            optimizer = tf.keras.optimizers.legacy.Adam(
                schedule, beta_1=0.9, beta_2=0.999, epsilon=1e-8
            )
            _create_moments(optimizer, model.trainable_variables)
        if config.precision == "mixed_float16":
            optimizer = tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
    return optimizer


def _without_decay(model: tf.keras.Model) -> list[tf.Variable]:
    """Returns every weight that is no kernel: scales and shifts of norms, biases."""
    return [
        variable
        for name, variable in named_weights(model).items()
        if variable.trainable and "kernel" not in name.rsplit("/", 1)[-1]
    ]


def _create_moments(
    optimizer: tf.keras.optimizers.legacy.Optimizer, weights: list[tf.Variable]
) -> None:
    # Created within the first step they would make TensorFlow trace it twice, and a checkpoint could
    # not be checked at once. To read a setting or the count creates its variable.
    _ = optimizer.iterations, optimizer.beta_1, optimizer.beta_2
    for moment in ("m", "v"):
        for weight in weights:
            optimizer.add_slot(weight, moment)
