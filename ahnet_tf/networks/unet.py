"""The paper's baselines: U-Net (Ronneberger 2015) slice by slice and 3D U-Net (Çiçek 2016)."""

from __future__ import annotations

import keras
import tensorflow as tf

from ahnet_tf.config import ModelConfig
from ahnet_tf.networks.dropout import SeededDropout
from ahnet_tf.networks.encoder import channels
from ahnet_tf.networks.inputs import NeighbouringSlices
from ahnet_tf.networks.layers_2d import ConvNorm, MaxPool
from ahnet_tf.networks.layers_3d import TransposedConv


def unet_logits(x: tf.Tensor, config: ModelConfig) -> tf.Tensor:
    """Returns logits of the 2D or 3D U-Net for windowed [batch, z, y, x, channel].

    With n levels y and x are multiples of 2^(n - 1). In 2D each slice and its neighbours are the
    channels, in 3D poolings keep a last slice without a partner. Convolutions are padded and normalized.
    """
    volumetric = config.architecture == "unet3d"
    if not volumetric:
        x = NeighbouringSlices(config.slices, name="slices")(x)
    # As published: 64 channels at full resolution, doubled at each of 4 or 5 levels.
    widths = [64 * 2**level for level in range(config.unet_levels or (4 if volumetric else 5))]
    levels = [(width // 2 if volumetric else width, width) for width in widths]

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
        x = keras.layers.Concatenate(name=f"up{i}_concat")([skips[i - 1], x])
        x = convolve(x, width, f"up{i}_conv1")
        x = convolve(x, width, f"up{i}_conv2")
    x = SeededDropout(config.dropout, name="dropout")(x)
    return keras.layers.Dense(config.classes, name="logits")(x)
