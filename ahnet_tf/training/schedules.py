"""The learning rate from step to step: linear warm-up, then cosine, polynomial or constant."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from ahnet_tf.config import TrainingConfig

POLYNOMIAL_POWER = 0.9


class WarmUpThenDecay(tf.keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly to `learning_rate`, then falls to a fraction of it at the last step.

    With n steps of warm-up of N in all, and t = (step - n) / (N - n) in [0, 1], the factor after
    the warm-up is f + (1 - f) d(t), f the final fraction, d(t) = (1 + cos(pi t)) / 2 (cosine,
    Loshchilov and Hutter 2017), (1 - t) ** 0.9 (polynomial) or 1 (constant).

    Args:
      config: steps, rates, warm-up and decay.
    """

    def __init__(self, config: TrainingConfig):
        self.config = config

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        """Returns the rate of the update that follows `step` finished ones, float32."""
        config = self.config
        step = tf.cast(step, tf.float32)
        warmup = float(config.warmup_steps)
        rising = (step + 1) / max(1.0, warmup)
        t = tf.clip_by_value((step - warmup) / (config.steps - warmup), 0.0, 1.0)
        decay = {
            "cosine": lambda: (1 + tf.cos(math.pi * t)) / 2,
            "polynomial": lambda: (1 - t) ** POLYNOMIAL_POWER,
            "constant": lambda: tf.ones_like(t),
        }[config.decay]()
        final = config.final_learning_rate
        factor = tf.where(step < warmup, rising, final + (1 - final) * decay)
        return config.learning_rate * factor

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"config": self.config}
