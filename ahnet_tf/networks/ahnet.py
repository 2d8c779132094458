"""AH-Net (Liu, Xu, Zhou et al., arXiv 1711.08580): in-plane ResNet-50 encoder, pseudo-3D decoder."""

from __future__ import annotations

import tensorflow as tf

from ahnet_tf.config import ModelConfig
from ahnet_tf.networks.encoder import Stem, channels, residual_stages
from ahnet_tf.networks.layers_2d import MaxPool
from ahnet_tf.networks.layers_3d import DenseBlock, PyramidPool, Transition


def ahnet_logits(image: tf.Tensor, config: ModelConfig) -> tf.Tensor:
    """Returns logits of AH-Net for windowed images [batch, z, y, x, channel], y and x multiples of 32.

    In the plane this is the published network. Along z its poolings keep a last slice without a
    partner and its upsamplings return to the encoder's z, so that any number of slices will do; for
    multiples of 32 it is the published network there too.
    """
    norm, up = config.norm, config.upsampling
    stem = Stem(channels(config, 64), norm=norm, name="stem")(image)
    # The public code pools 2x2x2 where it upsamples by transposed convolutions.
    size = 3 if up == "trilinear" else 2
    pooled = MaxPool(size, slice_pool=True, name="stem_pool")(stem)
    res1, res2, res3, res4 = residual_stages(pooled, config, slice_pool=True)
    steps = ((res3, 1024), (res2, 512), (res1, 256), (pooled, 64), (stem, 64))
    # The decoder's maps are lists of pieces, the counts of their channels go with them.
    x, pieces = res4, [res4.shape[-1]]
    for i, (skip, filters) in enumerate(steps, start=1):
        width, mode = channels(config, filters), "none" if skip is pooled else up
        x = Transition(width, mode, norm, pieces, name=f"up{i}")(x, skip)
        x = DenseBlock(config.dense_layers, config.growth, norm, name=f"dense{i}")(x)
        pieces = [width, *[config.growth] * config.dense_layers]
    if config.pvp_levels:
        x = PyramidPool(config.pvp_levels, up, config.pvp_border, pieces, name="pvp")(x)
        pieces = [config.pvp_levels, *pieces]
    final = Transition(config.classes, up, norm, pieces, True, config.dropout, name="final")
    return final(x, image)
