"""Keras' own ResNet-50 as an encoder.

Its convolutions have biases, which move into the norms, and from stage 2 on its stages stride in their
first 1x1 convolution, where this encoder, as torchvision's, strides in the 3x3 one. The weights have the
same shapes and serve either way; features are exactly Keras' up to res1 only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from ahnet_tf.networks.normalization import EPSILON

KERAS_EPSILON = 1.001e-5


def keras_encoder_weight(name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns an encoder weight from the arrays of Keras' ResNet-50, exact in inference.

    A convolution's bias moves into the mean of the norm after it, the difference of the epsilons into
    the variance.

    Raises:
      KeyError: the weight's name in Keras, which `arrays` lacks.
    """
    layer, *middle, leaf = name.split("/")
    if layer == "stem":
        conv, norm = "conv1_conv", "conv1_bn"
    else:
        stage, block = map(int, re.fullmatch(r"res(\d)_block(\d+)", layer).groups())
        number = 0 if middle[0] == "shortcut" else int(middle[0][-1])
        prefix = f"conv{stage + 1}_block{block}_{number}"
        conv, norm = f"{prefix}_conv", f"{prefix}_bn"
    if leaf == "kernel":
        return arrays[f"{conv}/kernel"]
    value = arrays[f"{norm}/{leaf}"]
    if leaf == "moving_mean":
        return value - arrays[f"{conv}/bias"]
    if leaf == "moving_variance":
        return value + np.float32(KERAS_EPSILON - EPSILON)
    return value
