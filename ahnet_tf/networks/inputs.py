"""The way into and out of every network: intensity window, padding, neighbouring slices, cropping."""

from __future__ import annotations

import math

import tensorflow as tf

from ahnet_tf.networks.normalization import SettingsLayer, register
from ahnet_tf.networks.ops import axis_sizes, neighbouring_slices


def class_probabilities(logits: tf.Tensor, activation: str) -> tf.Tensor:
    """Returns probabilities [batch, z, y, x, class] float32 of logits, background being class 0.

    With "softmax" the classes share one. With "sigmoid" each foreground class has its own, the heat map of
    a lesion for example, and the background is what the likeliest of them leaves, 1 - max: so the most
    probable class is foreground exactly where a foreground class is more likely than not, before and
    after probabilities are averaged over windows.
    """
    logits = tf.cast(logits, tf.float32)
    if activation == "softmax":
        return tf.nn.softmax(logits)
    foreground = tf.sigmoid(logits[..., 1:])
    return tf.concat([1 - tf.reduce_max(foreground, -1, keepdims=True), foreground], -1)


@register
class IntensityWindow(SettingsLayer):
    """Maps raw intensities low..high to -1..+1 and clips outside, in float32 whatever the policy."""

    settings = ("low", "high")

    def __init__(self, low: float, high: float, **kwargs):
        super().__init__(**{"dtype": "float32"} | kwargs)
        self.low = low
        self.high = high

    def build(self, input_shape):
        # The first layer of every network: Keras names expected and received shape from here.
        self.input_spec = tf.keras.layers.InputSpec(ndim=5, axes={-1: input_shape[-1]})
        super().build(input_shape)

    def call(self, inputs):
        return tf.clip_by_value((inputs - self.low) * (2 / (self.high - self.low)) - 1, -1, 1)


@register
class PadInPlane(SettingsLayer):
    """Pads zeros at the end of y and x up to a multiple of `multiple`."""

    settings = ("multiple",)

    def __init__(self, multiple: int = 32, **kwargs):
        super().__init__(**kwargs)
        self.multiple = multiple

    def call(self, inputs):
        # The remainder of -shape is the same, but converters to other formats get its sign wrong.
        rows, columns = (
            (self.multiple - size % self.multiple) % self.multiple
            for size in axis_sizes(inputs)[2:4]
        )
        return tf.pad(inputs, [[0, 0], [0, 0], [0, rows], [0, columns], [0, 0]])


@register
class CropInPlane(SettingsLayer):
    """Crops to the y, x of a second map; float32 whatever the policy."""

    def __init__(self, **kwargs):
        super().__init__(**{"dtype": "float32"} | kwargs)

    def call(self, inputs, like):
        rows, columns = axis_sizes(like)[2:4]
        return inputs[:, :, :rows, :columns]


@register
class ForegroundPrior(SettingsLayer):
    """Adds log(p / (1 - p)) to the logits of all classes but the background; float32.

    So lesions, which are rare, don't have to be unlearned first everywhere (Lin et al. 2017, section 4.1).
    """

    settings = ("probability",)

    def __init__(self, probability: float, **kwargs):
        super().__init__(**{"dtype": "float32"} | kwargs)
        self.probability = probability

    def call(self, inputs):
        offset = math.log(self.probability / (1 - self.probability))
        return inputs + tf.constant([0.0] + [offset] * (inputs.shape[-1] - 1))


@register
class NeighbouringSlices(SettingsLayer):
    """Stacks each slice's neighbours as channels: [batch, z, y, x, count * channel], slice-major."""

    settings = ("count",)

    def __init__(self, count: int = 3, **kwargs):
        super().__init__(**kwargs)
        self.count = count

    def call(self, inputs):
        return neighbouring_slices(inputs, self.count)
