"""AH-Net (Liu, Xu, Zhou et al., arXiv 1711.08580): in-plane ResNet-50 encoder, pseudo-3D decoder."""

from __future__ import annotations

import tensorflow as tf

from ahnet_tf.config import ModelConfig
from ahnet_tf.networks.encoder import channels, residual_stages
from ahnet_tf.networks.layers_2d import MaxPool
from ahnet_tf.networks.layers_3d import DenseBlock, Final, PyramidPool, Transition, VolumeStem


def ahnet_logits(x: tf.Tensor, config: ModelConfig) -> tf.Tensor:
    """Returns logits of AH-Net for windowed images [batch, z, y, x, channel], y and x multiples of 32.

    In the plane this is the published network. Along z its poolings keep a last slice without a
    partner and its upsamplings return to the encoder's z, so that any number of slices will do; for
    multiples of 32 it is the published network there too.
    """
    norm, up = config.norm, config.upsampling
    stem = VolumeStem(channels(config, 64), norm=norm, name="stem")(x)
    # The public code pools 2x2x2 where it upsamples by transposed convolutions.
    size = 3 if up == "trilinear" else 2
    pooled = MaxPool(size, slice_pool=True, name="stem_pool")(stem)
    res1, res2, res3, res4 = residual_stages(pooled, config, slice_pool=True)
    maps, sizes = res4, None
    steps = (
        (res3, 1024, up),
        (res2, 512, up),
        (res1, 256, up),
        (pooled, 64, "none"),
        (stem, 64, up),
    )
    for i, (skip, published, mode) in enumerate(steps, start=1):
        filters = channels(config, published)
        x_sum = Transition(filters, mode, norm, sizes, name=f"up{i}")(maps, skip)
        dense = DenseBlock(config.dense_layers, filters, config.growth, norm, name=f"dense{i}")
        maps, sizes = dense(x_sum), (filters, *[config.growth] * config.dense_layers)
    if config.pvp_levels:
        pool = PyramidPool(config.pvp_levels, up, config.pvp_border, sizes, name="pvp")
        maps, sizes = [pool(maps), *maps], (config.pvp_levels, *sizes)
    return Final(config.classes, config.dropout, up, norm, sizes, name="final")(maps, x)
