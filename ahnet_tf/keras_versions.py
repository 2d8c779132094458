"""What Keras 2 and Keras 3 do differently: one code base runs on both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

# The class of a layer's weights; in Keras 3 it wraps TensorFlow's.
Variable = getattr(keras, "Variable", tf.Variable)


def layer_attributes(layer: keras.layers.Layer) -> dict[str, Any]:
    """Returns a layer's attributes; Keras 3 stores the kernel of a convolution as a property."""
    attributes = vars(layer)
    if "kernel" not in attributes and hasattr(layer, "kernel"):
        return {"kernel": layer.kernel} | attributes
    return attributes


def tensorflow_variables(weights: Iterable[Any]) -> list[tf.Variable]:
    """Returns weights as TensorFlow's variables, which checkpoints and SavedModels can hold."""
    return list(weights) if Variable is tf.Variable else [weight.value for weight in weights]
