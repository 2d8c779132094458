"""The encoder of MC-GCN and AH-Net, layer names included: stem and ResNet-50's residual stages."""

from __future__ import annotations

import keras
import tensorflow as tf

from ahnet_tf.config import ModelConfig
from ahnet_tf.networks.layers_2d import ConvNorm
from ahnet_tf.networks.normalization import make_norm, norm_relu
from ahnet_tf.networks.ops import (
    conv,
    conv_across,
    fold,
    identity,
    register,
    slice_max_pool,
    unfold,
)
from ahnet_tf.networks.recompute import recomputed


def channels(config: ModelConfig, published: int) -> int:
    """Returns the published channel count times the width, a multiple of 4 and at least 4."""
    return max(4, 4 * round(published * config.width / 4))


def residual_stages(x: tf.Tensor, config: ModelConfig, slice_pool: bool) -> list[tf.Tensor]:
    """Returns the maps of ResNet-50's stages on the pooled stem; with `slice_pool` they halve z too."""
    levels = []
    for stage, count in enumerate(config.blocks, start=1):
        for block in range(1, count + 1):
            halves = block == 1 and stage > 1
            x = Bottleneck(
                channels(config, 64 * 2 ** (stage - 1)),
                strides=2 if halves else 1,
                shortcut=block == 1,
                slice_pool=slice_pool and halves,
                norm=config.norm,
                name=f"res{stage}_block{block}",
            )(x)
        levels.append(x)
    return levels


@register
class Stem(keras.layers.Layer):
    """The 3D stem: 7x7x3 convolution of in-plane stride 2, max pool of two slices, norm, ReLU.

    Its kernel is [3, 7, 7, channel, filters] in z, y, x order; it is computed as the 2D stem, on three
    neighbouring slices as channels. y and x are even.
    """

    def __init__(self, filters: int, slice_pool: bool = True, norm: str = "batch", **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.slice_pool = slice_pool
        self.normalise = make_norm(norm, name="norm")

    def build(self, input_shape):
        shape = [3, 7, 7, input_shape[-1], self.filters]
        self.kernel = self.add_weight(name="kernel", shape=shape)

    def call(self, inputs, training=None):
        return recomputed(lambda x: self._compute(x, training), inputs)

    def _compute(self, inputs, training):
        # A convolution stacks few channels faster than a concatenation does.
        count = 3 * inputs.shape[-1]
        x = conv_across(inputs, tf.reshape(identity(count), [3, 1, -1, count]))
        kernel = tf.transpose(self.kernel, [1, 2, 0, 3, 4])
        x = unfold(conv(fold(x), tf.reshape(kernel, [7, 7, count, -1]), strides=2), x)
        if self.slice_pool:
            x = slice_max_pool(x)
        return norm_relu(self.normalise, x, training)


@register
class Bottleneck(keras.layers.Layer):
    """ResNet-50's bottleneck with the stride in its 3x3 convolution, on [batch, z, y, x, channel].

    `filters` channels inside, 4 * filters out. With `slice_pool` (AH-downsampling) a max pool of two
    slices halves z of the main branch after its last norm and of the shortcut before its norm, as the
    authors' and MONAI's code do it.
    """

    def __init__(
        self,
        filters: int,
        strides: int = 1,
        shortcut: bool = False,
        slice_pool: bool = False,
        norm: str = "batch",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.shortcut = shortcut
        self.slice_pool = slice_pool
        self.conv1 = ConvNorm(filters, 1, norm=norm, name="conv1")
        self.conv2 = ConvNorm(filters, 3, strides, norm, name="conv2")
        self.conv3 = ConvNorm(4 * filters, 1, norm=norm, relu=not slice_pool, name="conv3")
        if shortcut:
            self.project = ConvNorm(
                4 * filters, 1, strides, norm, relu=False, slice_pool=slice_pool, name="shortcut"
            )

    def call(self, inputs, training=None):
        return recomputed(lambda x: self._compute(x, training), inputs)

    def _compute(self, inputs, training):
        residual = self.project(inputs, training=training) if self.shortcut else inputs
        x = self.conv1(inputs, training=training)
        x = self.conv2(x, training=training)
        if not self.slice_pool:
            return self.conv3(x, residual=residual, training=training)
        return tf.nn.relu(slice_max_pool(self.conv3(x, training=training)) + residual)
