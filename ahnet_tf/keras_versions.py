"""What Keras 2 and Keras 3 do differently: one code base runs on both."""

from __future__ import annotations

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


def tensorflow_variables(model: keras.Model) -> list[tf.Variable]:
    """Returns a model's weights as TensorFlow's variables, which a SavedModel can hold."""
    if Variable is tf.Variable:
        return model.variables
    return [variable.value for variable in model.variables]
