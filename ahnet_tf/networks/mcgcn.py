"""MC-GCN (arXiv 1711.08580, section 3.1): ResNet-50 with a global convolutional decoder, slice by slice."""

from __future__ import annotations

import keras
import tensorflow as tf

from ahnet_tf.config import ModelConfig
from ahnet_tf.networks.dropout import SeededDropout
from ahnet_tf.networks.encoder import channels, residual_stages
from ahnet_tf.networks.inputs import NeighbouringSlices
from ahnet_tf.networks.layers_2d import ConvNorm, GlobalConv, MaxPool, Refine, ResizeInPlane


def mcgcn_logits(image: tf.Tensor, config: ModelConfig) -> tf.Tensor:
    """Returns logits of MC-GCN for windowed images [batch, z, y, x, channel], y and x multiples of 32.

    Each slice is seen with its neighbours as channels: three feed the stem as they are, any other
    number passes a 1x1 convolution, norm and ReLU to the stem's three channels first.
    """
    classes, norm = config.classes, config.norm
    x = NeighbouringSlices(config.slices, name="slices")(image)
    if config.slices != 3:
        x = ConvNorm(3 * config.channels, 1, norm=norm, name="slice_projection")(x)
    stem = ConvNorm(channels(config, 64), 7, 2, norm, name="stem")(x)
    pooled = MaxPool(3, name="stem_pool")(stem)
    _, res2, res3, res4 = residual_stages(pooled, config, slice_pool=False)
    x = None
    for i, level in enumerate((res4, res3, res2, pooled, stem), start=1):
        lateral = GlobalConv(classes, name=f"gcn{i}")(level)
        lateral = Refine(classes, norm, name=f"refine{i}")(lateral)
        if x is not None:
            x = ResizeInPlane(name=f"up{i}")(x, level)
            lateral = Refine(classes, norm, name=f"refine{i + 4}")(
                keras.layers.Add(name=f"sum{i}")([x, lateral])
            )
        x = lateral
    x = SeededDropout(config.dropout, name="dropout")(x)
    x = ResizeInPlane(name="up6")(x, image)
    return Refine(classes, norm, name="refine10")(x)
