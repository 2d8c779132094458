"""Places of AH-Net's layers: their strides, the shapes of their weights, how often they occur."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

# Stride, bottleneck channels and number of the residual stages' blocks.
STAGES = ((4, 64, 3), (8, 128, 4), (16, 256, 6), (32, 512, 3))
# Stride and number of the decoder's pseudo-3D layers.
DENSE = ((16, 3), (8, 3), (4, 6), (2, 3))


@dataclass(frozen=True)
class Site:
    """A place in the network: its stride, the shapes of its weights, how often it occurs."""

    stride: int
    channels: int | tuple[int, ...]
    weights: tuple[tuple[int, ...], ...]
    count: int = 1


def bottleneck_sites(stages):
    return tuple(
        Site(
            stride,
            4 * width,
            (
                (1, 1, 4 * width, width),
                (3, 3, width, width),
                (1, 1, width, 4 * width),
                (4, width),
                (4, width),
                (4, 4 * width),
            ),
            count,
        )
        for stride, width, count in stages
    )


DENSE_TAILS = tuple(
    Site(stride, 80, ((3, 3, 80, 20), (3, 1, 20, 20), (1, 1, 20, 20), (4, 20), (4, 20)), count)
    for stride, count in DENSE
)
PIECES = tuple(
    Site(stride, (width, 20, 20), ((1, 1, width + 40, 80), (4, width + 40)), count)
    for (stride, count), width in zip(DENSE, (1024, 512, 160, 64), strict=True)
)
LARGE_1X1 = tuple(
    Site(stride, channels, ((1, 1, channels, filters),), count)
    for stride, channels, filters, count in (
        (16, 1024, 256, 5),
        (16, 256, 1024, 6),
        (32, 2048, 512, 2),
        (32, 512, 2048, 3),
        (32, 2048, 1024, 1),
        (16, 1084, 512, 1),
    )
)
NORMS = tuple(
    Site(stride, channels, ((4, channels),), count)
    for stride, channels, count in ((4, 84, 4), (2, 64, 1), (2, 84, 1), (2, 104, 1), (2, 128, 1))
)


def inputs_of(site: Site, image: tuple[int, int], dtype: str) -> list[tf.Tensor]:
    """Returns noise for a site's maps and weights."""
    slices, size = image
    generator = np.random.default_rng(0)
    plane = [size // site.stride] * 2
    channels = (site.channels,) if isinstance(site.channels, int) else site.channels
    shapes = [[max(1, slices // site.stride), *plane, width] for width in channels]
    arrays = [generator.standard_normal(shape, np.float32) for shape in shapes]
    for shape in site.weights:
        scale = 1 if len(shape) == 2 else math.prod(shape[:-1]) ** -0.5
        arrays.append(scale * generator.standard_normal(shape, np.float32))
    return [tf.constant(array, dtype) for array in arrays]
