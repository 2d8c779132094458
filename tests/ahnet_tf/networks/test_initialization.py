"""Initial weights against the authors' rules, worked out by hand for each kernel of the full width."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
import tensorflow as tf

from ahnet_tf.config import ModelConfig
from ahnet_tf.networks import build_network, named_weights
from ahnet_tf.networks.initialization import initialise
from ahnet_tf.training.losses import softmax_focal

ONE_BLOCK = (1, 1, 1, 1)

# Variances of the kernels by name. All of them: what a network has beyond these fails the test.
# ResNet-50: 2 / (ky kx out).
ENCODER = {
    "stem/kernel": 2 / (7 * 7 * 64),
    "res1_block1/conv1/kernel": 2 / 64,
    "res1_block1/conv2/kernel": 2 / (9 * 64),
    "res1_block1/(conv3|shortcut)/kernel": 2 / 256,
    "res2_block1/conv1/kernel": 2 / 128,
    "res2_block1/conv2/kernel": 2 / (9 * 128),
    "res2_block1/(conv3|shortcut)/kernel": 2 / 512,
    "res3_block1/conv1/kernel": 2 / 256,
    "res3_block1/conv2/kernel": 2 / (9 * 256),
    "res3_block1/(conv3|shortcut)/kernel": 2 / 1024,
    "res4_block1/conv1/kernel": 2 / 512,
    "res4_block1/conv2/kernel": 2 / (9 * 512),
    "res4_block1/(conv3|shortcut)/kernel": 2 / 2048,
}
# The decoder of net3d.py: the same rule, in which a 1x1x3 kernel and a projection to one channel count
# as 1x1.
AHNET = ENCODER | {
    "up1/kernel": 2 / 1024,
    "up2/kernel": 2 / 512,
    "up3/kernel": 2 / 256,
    "up[45]/kernel": 2 / 64,
    r"dense\d/layer\d/conv1/kernel": 2 / 80,
    r"dense\d/layer\d/kernel2": 2 / (9 * 20),
    r"dense\d/layer\d/kernel[34]": 2 / 20,
    "pvp/kernel": 2 / 1,
    "final/kernel": 2 / (9 * 3),
}
TRANSPOSED = {
    "up1/up/kernel": 2 / (4 * 1024),
    "up2/up/kernel": 2 / (4 * 512),
    "up3/up/kernel": 2 / (4 * 256),
    "up5/up/kernel": 2 / (4 * 64),
    "final/up/kernel": 2 / (4 * 3),
    "pvp/up_kernel8": 2 / 64,
    "pvp/up_kernel16": 2 / 256,
    "pvp/up_kernel32": 2 / 1024,
    "pvp/up_kernel64": 2 / 4096,
}
# PyTorch's default: uniform within 1 / sqrt(in), so a variance of 1 / (3 in).
MCGCN = ENCODER | {
    "gcn1/(left1|right1)/kernel": 1 / (3 * 7 * 2048),
    "gcn2/(left1|right1)/kernel": 1 / (3 * 7 * 1024),
    "gcn3/(left1|right1)/kernel": 1 / (3 * 7 * 512),
    "gcn[45]/(left1|right1)/kernel": 1 / (3 * 7 * 64),
    r"gcn\d/(left2|right2)/kernel": 1 / (3 * 7 * 3),
    r"refine\d+/conv[12]/kernel": 1 / (3 * 9 * 3),
    "slice_projection/kernel": 1 / (3 * 5),
}
# 2 / in, for a transposed convolution the channels of one pixel.
UNET3D = {
    "down1_conv1/kernel": 2 / 27,
    "down1_conv2/kernel": 2 / (27 * 32),
    "(down2_conv1|up1_conv2)/kernel": 2 / (27 * 64),
    "down2_conv2/kernel": 2 / (27 * 64),
    "down3_conv1/kernel": 2 / (27 * 128),
    "down3_conv2/kernel": 2 / (27 * 128),
    "up2/kernel": 2 / 256,
    "up1/kernel": 2 / 128,
    "up2_conv1/kernel": 2 / (27 * 384),
    "up2_conv2/kernel": 2 / (27 * 128),
    "up1_conv1/kernel": 2 / (27 * 192),
    "logits/kernel": 2 / 64,
}


@functools.cache
def mcgcn():
    """The weights of MC-GCN in its full width, which takes seconds to build."""
    config = ModelConfig(architecture="mcgcn", slices=5, blocks=ONE_BLOCK)
    return named_weights(build_network(config, seed=1))


def seeded(settings, seeds):
    """Yields a network with the initial weights of each seed; it is built once."""
    config = ModelConfig(**settings)
    network = build_network(config, seed=seeds[0])
    for seed in seeds:
        initialise(named_weights(network), config.architecture, seed)
        yield network


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"architecture": "ahnet"}, AHNET),
        ({"architecture": "ahnet", "upsampling": "transpose"}, AHNET | TRANSPOSED),
        (None, MCGCN),
        ({"architecture": "unet3d", "unet_levels": 3}, UNET3D),
    ],
    ids=["ahnet", "ahnet_transposed", "mcgcn", "unet3d"],
)
def test_variance_of_every_kernel(settings, expected):
    if settings is None:
        weights = mcgcn()
    else:
        weights = named_weights(build_network(ModelConfig(blocks=ONE_BLOCK, **settings), seed=1))
    kernels = {name: w.numpy() for name, w in weights.items() if "kernel" in name.split("/")[-1]}
    used = set()
    for name, kernel in kernels.items():
        (row,) = (row for row in expected if re.fullmatch(row, name))
        used.add(row)
        variance = np.mean(np.square(kernel, dtype=np.float64))
        # Five standard errors of the variance of that many normal values.
        assert variance == pytest.approx(expected[row], rel=5 * np.sqrt(2 / kernel.size)), name
    assert used == expected.keys()


def test_kernels_of_pytorch_are_uniform_and_those_of_the_authors_normal():
    uniform, normal = (mcgcn()[f"{layer}/kernel"] for layer in ("gcn1/left1", "res1_block1/conv2"))
    assert 0.99 < np.abs(uniform).max() * np.sqrt(7 * 2048) <= 1
    assert np.abs(normal).max() > 3 * np.sqrt(2 / (9 * 64))


@pytest.mark.slow
def test_biases_are_uniform_within_the_inputs_of_their_kernel():
    settings = {"blocks": ONE_BLOCK, "upsampling": "transpose", "width": 0.25}
    found = [
        [named_weights(network)[f"pvp/{name}"].numpy() for name in ("bias", "up_bias")]
        for network in seeded(settings, range(4))
    ]
    biases, up = (np.stack(values) for values in zip(*found, strict=True))
    # The projections see 16 + 3 * 20 channels.
    assert 0.6 < np.abs(biases).max() * np.sqrt(76) <= 1
    assert 0.6 < np.abs(up * [8, 16, 32, 64]).max() <= 1
    assert 0 < np.abs(mcgcn()["gcn2/left1/bias"]).max() <= 1 / np.sqrt(7 * 1024)
    assert 0 < np.abs(mcgcn()["refine3/conv1/bias"]).max() <= 1 / np.sqrt(27)
    weights = named_weights(build_network(ModelConfig(architecture="unet2d", unet_levels=2)))
    np.testing.assert_array_equal(weights["logits/bias"], 0)


def starts(settings, seeds):
    """The logits' deviation in each class, and the focal loss, of fresh networks on noise."""
    random = np.random.default_rng(2)
    deviations, losses = [], []
    for network in seeded(settings, seeds):
        image = random.uniform(-200, 250, (1, 4, 96, 96, 1)).astype(np.float32)
        logits = network(image, training=True)
        deviations.append(np.std(logits, axis=(0, 1, 2, 3)).mean())
        labels = tf.constant(random.integers(0, 3, image.shape[:-1]))
        losses.append(float(tf.reduce_mean(softmax_focal(labels, logits))))
    return deviations, losses


# The loss of three equal probabilities: (2/3)^2 log 3.
CHANCE = (2 / 3) ** 2 * np.log(3)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["mcgcn", "unet2d", "unet3d"])
@pytest.mark.parametrize("width", [0.125, 0.25, 1.0])
def test_networks_start_near_chance(architecture, width):
    if architecture != "mcgcn" and width == 1.0:
        width = 0.5  # the same rule, in seconds
    settings = {"architecture": architecture, "width": width, "blocks": ONE_BLOCK}
    deviations, losses = starts(settings, seeds=range(6))
    assert max(deviations) < 1.5
    assert np.mean(losses) < 3 * CHANCE


@pytest.mark.slow
def test_ahnet_starts_as_the_authors_rule_makes_it():
    """Its last kernel has 9 x 44 inputs, half of whose squares pass the ReLU, at a variance of 2 / 27.

    Doubling the resolution by interpolation leaves at least (2/3)^3 of the variance.
    """
    settings = {"width": 0.25, "blocks": ONE_BLOCK, "growth": 8}
    deviations, _ = starts(settings, seeds=range(2))
    variance = 9 * 44 / 2 * 2 / 27
    assert np.sqrt(variance * 8 / 27) < np.mean(deviations) < np.sqrt(variance)
