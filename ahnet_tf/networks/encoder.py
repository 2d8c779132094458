"""The residual encoder that all of MC-GCN and AH-Net share, layer names included."""

from __future__ import annotations

import tensorflow as tf

from ahnet_tf.config import ModelConfig
from ahnet_tf.networks.layers_2d import Bottleneck


def channels(config: ModelConfig, published: int) -> int:
    """Returns the published channel count times the width, a multiple of 4 and at least 4."""
    return max(4, 4 * round(published * config.width / 4))


def residual_stages(x: tf.Tensor, config: ModelConfig, slice_pool: bool) -> list[tf.Tensor]:
    """Returns the maps of res1..res4, ResNet-50's stages, on the pooled stem `x`.

    Layers are named res1_block1 and so on. Stages 2 to 4 halve y and x, and z too with `slice_pool`.
    """
    levels = []
    for stage, count in enumerate(config.blocks, start=1):
        for block in range(1, count + 1):
            first = block == 1
            x = Bottleneck(
                channels(config, 64 * 2 ** (stage - 1)),
                strides=2 if first and stage > 1 else 1,
                shortcut=first,
                slice_pool=slice_pool and first and stage > 1,
                norm=config.norm,
                name=f"res{stage}_block{block}",
            )(x)
        levels.append(x)
    return levels
