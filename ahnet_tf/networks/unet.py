"""The paper's baselines: U-Net (Ronneberger 2015) slice by slice and 3D U-Net (Çiçek 2016)."""

from __future__ import annotations

import tensorflow as tf

from ahnet_tf.config import ModelConfig
from ahnet_tf.networks.dropout import SeededDropout
from ahnet_tf.networks.encoder import channels
from ahnet_tf.networks.inputs import NeighbouringSlices
from ahnet_tf.networks.layers_2d import ConvNorm, MaxPool
from ahnet_tf.networks.layers_3d import TransposedConv

# Channels at full resolution, doubled at each level, and the published numbers of levels.
FIRST_CHANNELS = 64
LEVELS_2D, LEVELS_3D = 5, 4


def unet2d_logits(x: tf.Tensor, config: ModelConfig) -> tf.Tensor:
    """Returns logits of the 2D U-Net for windowed [batch, z, y, x, channel].

    With n levels y and x are multiples of 2^(n - 1). Each slice and its neighbours are the channels.
    Convolutions are padded and normalized.
    """
    x = NeighbouringSlices(config.slices, name="slices")(x)
    widths = [FIRST_CHANNELS * 2**level for level in range(config.unet_levels or LEVELS_2D)]
    levels = [(width, width) for width in widths]
    return _unet(x, config, levels, volumetric=False)


def unet3d_logits(x: tf.Tensor, config: ModelConfig) -> tf.Tensor:
    """Returns logits of the 3D U-Net for windowed [batch, z, y, x, channel].

    As the 2D one; poolings keep a last slice without a partner.
    """
    widths = [FIRST_CHANNELS * 2**level for level in range(config.unet_levels or LEVELS_3D)]
    levels = [(width // 2, width) for width in widths]
    return _unet(x, config, levels, volumetric=True)


def _unet(x, config, levels, volumetric):
    def convolve(x, width, name):
        if volumetric:
            # A 3x3x3 convolution is a 3x3 one over each slice and its neighbours.
            x = NeighbouringSlices(3, name=f"{name}_slices")(x)
        return ConvNorm(channels(config, width), 3, norm=config.norm, name=name)(x)

    skips = []
    for i, (first, second) in enumerate(levels, start=1):
        if i > 1:
            x = MaxPool(2, slice_pool=volumetric, name=f"pool{i}")(x)
        x = convolve(x, first, f"down{i}_conv1")
        x = convolve(x, second, f"down{i}_conv2")
        skips.append(x)
    for i in range(len(levels) - 1, 0, -1):
        width = levels[i - 1][1]
        up = channels(config, levels[i][1] if volumetric else width)
        x = TransposedConv(up, slices=volumetric, name=f"up{i}")(x, skips[i - 1])
        x = tf.keras.layers.Concatenate(name=f"up{i}_concat")([skips[i - 1], x])
        x = convolve(x, width, f"up{i}_conv1")
        x = convolve(x, width, f"up{i}_conv2")
    x = SeededDropout(config.dropout, name="dropout")(x)
    return tf.keras.layers.Dense(config.classes, name="logits")(x)
