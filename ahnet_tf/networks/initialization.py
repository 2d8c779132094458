"""Initial weights of the networks, by the rules of the authors' code; a function of seed and name.

AH-Net (net3d.py, MONAI's AHNet too): every kernel, transposed ones too, is normal with variance
2 / (ky kx out); the slice axis does not count, and each level of the PVP is a kernel with one output.
MC-GCN (net2d.py): ResNet-50's kernels are torchvision's, which is the same rule; all other kernels are
PyTorch's default, uniform within +-1 / sqrt(in) (Kaiming uniform with a = sqrt 5), as all biases are.
`in` counts the inputs of a value, ky kx channels. U-Nets: normal with variance 2 / in (Ronneberger et
al. 2015, section 3), biases 0.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

# MC-GCN's layers outside of ResNet-50.
_DEFAULT_2D = re.compile(r"(gcn|refine)\d+/|slice_projection/")


def initialise(weights: Mapping[str, tf.Variable], architecture: str, seed: int) -> None:
    """Assigns initial values to a network's kernels and biases; norms keep theirs, 1 and 0.

    A value depends on the seed and the weight's name only, so networks of one seed share an encoder.
    `weights` are a whole network's, by name (`named_weights`).
    """
    for path, variable in weights.items():
        layer, _, leaf = path.rpartition("/")
        random = np.random.default_rng([seed, zlib.crc32(path.encode())])
        shape = tuple(variable.shape)
        if "kernel" in leaf:
            if _DEFAULT_2D.match(path):
                value = random.uniform(-1, 1, shape) / np.sqrt(_inputs(shape))
            else:
                value = random.standard_normal(shape) * _normal_deviation(path, shape, architecture)
        elif leaf == "up_bias":
            # One for each level; the kernel of level 0 has 8 x 8 values.
            value = random.uniform(-1, 1, shape) / 2.0 ** np.arange(3, 3 + shape[0])
        elif leaf == "bias" and not architecture.startswith("unet"):
            kernel = tuple(weights[f"{layer}/kernel"].shape)
            value = random.uniform(-1, 1, shape) / np.sqrt(_inputs(kernel))
        else:
            continue
        variable.assign(value.astype(np.float32))


def _normal_deviation(path: str, shape: tuple[int, ...], architecture: str) -> float:
    if architecture.startswith("unet"):
        # Cells of a transposed convolution don't overlap: each value has one pixel's channels as inputs.
        transposed = len(shape) == 5
        return np.sqrt(2 / (shape[-2] if transposed else _inputs(shape)))
    in_plane = shape[-4] * shape[-3]
    if re.fullmatch(r"dense\d/layer\d/kernel3", path):
        in_plane = 1  # [z, 1, in, out]
    outputs = 1 if path.startswith("pvp/") else shape[-1]
    return np.sqrt(2 / (in_plane * outputs))


def _inputs(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[:-1]))
