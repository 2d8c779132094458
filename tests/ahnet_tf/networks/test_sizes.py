"""Every network takes every size, in inference and in training, and every setting builds a network."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from ahnet_tf.config import ModelConfig
from ahnet_tf.networks import build_network, named_weights, normalization
from ahnet_tf.networks.encoder import channels
from ahnet_tf.networks.factory import ARCHITECTURES
from ahnet_tf.networks.layers_2d import MaxPool
from ahnet_tf.networks.layers_3d import PyramidPool

TINY = {"width": 0.0625, "blocks": (1, 1, 1, 1), "growth": 4, "dense_layers": 1}
SIZES = ((1, 16, 16), (2, 17, 33), (3, 40, 23), (5, 31, 64), (1, 65, 32), (7, 16, 50))


def count(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def network(request):
    return build_network(ModelConfig(architecture=request.param, channels=2, classes=4, **TINY))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_any_size_in_both_modes(network, shape):
    image = np.random.default_rng(0).normal(0, 100, (1, *shape, 2)).astype(np.float32)
    for training in (False, True):
        logits = network(image, training=training)
        assert logits.shape == (1, *shape, 4)
        assert logits.dtype == tf.float32
        assert np.isfinite(logits).all()


def test_batches_are_independent_in_inference(network):
    image = np.random.default_rng(1).normal(0, 100, (2, 3, 32, 40, 2)).astype(np.float32)
    both = network(image)
    alone = tf.concat([network(image[:1]), network(image[1:])], 0)
    np.testing.assert_allclose(both, alone, rtol=1e-4, atol=1e-4)


def test_window_is_in_the_model(network):
    """Beyond the window nothing changes: -200 and 250 are the preset's ends."""
    image = np.random.default_rng(2).choice([-200.0, 250.0], (1, 2, 32, 32, 2)).astype(np.float32)
    beyond = np.where(image > 0, 3071, -1024).astype(np.float32)
    np.testing.assert_allclose(network(image), network(beyond), rtol=1e-5, atol=1e-5)
    assert np.abs(network(image) - network(image / 2)).max() > 1e-3


@pytest.mark.parametrize("architecture", ["mcgcn", "unet2d"])
def test_2d_networks_see_three_slices(architecture):
    model = build_network(ModelConfig(architecture=architecture, **TINY))
    image = np.random.default_rng(3).normal(0, 100, (1, 5, 32, 32, 1)).astype(np.float32)
    changed = image.copy()
    changed[:, 4] += 50
    difference = np.abs(model(image) - model(changed)).max(axis=(0, 2, 3, 4))
    assert (difference[:3] == 0).all()
    assert (difference[3:] > 1e-4).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"norm": "group", "pvp_levels": 0},
        {"norm": "sync_batch", "upsampling": "transpose", "pvp_levels": 5},
        {
            **{"dropout": 0.5, "pvp_levels": 1, "pvp_border": True},
            **{"classes": 1, "activation": "sigmoid"},
        },
    ],
    ids=str,
)
def test_settings_of_ahnet(settings):
    model = build_network(ModelConfig(**TINY | settings))
    image = np.random.default_rng(4).normal(0, 100, (1, 5, 48, 32, 1)).astype(np.float32)
    shape = (*image.shape[:-1], settings.get("classes", 3))
    first, second = (model(image, training=True) for _ in range(2))
    assert first.shape == second.shape == shape
    assert np.isfinite(first).all()
    # Only dropout makes two training passes differ.
    assert np.allclose(first, second, rtol=1e-4, atol=1e-4) == ("dropout" not in settings)
    assert model(image).shape == shape


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "published"), [("unet2d", 5), ("unet3d", 4)])
def test_levels_of_the_unets(architecture, published):
    def shapes(levels):
        config = ModelConfig(architecture=architecture, width=0.0625, unet_levels=levels)
        model = build_network(config, seed=0)
        assert model(np.zeros((1, 2, 40, 64, 1), np.float32)).shape == (1, 2, 40, 64, 3)
        return {name: tuple(weight.shape) for name, weight in named_weights(model).items()}

    assert shapes(0) == shapes(published)
    found = shapes(2)
    parts = ("down1_conv1", "down1_conv2", "down2_conv1", "down2_conv2", "up1", "up1_conv1")
    assert {name.split("/")[0] for name in found} == {*parts, "up1_conv2", "logits"}
    # 64 and 128 channels / 16: the 3D one keeps them as it goes up.
    kernel = (1, 2, 2, 8, 4) if architecture == "unet2d" else (2, 2, 2, 8, 8)
    assert found["up1/kernel"] == kernel
    deepest = {name.split("/")[0] for name in shapes(6)}
    assert {"down6_conv2", "up5"} <= deepest
    assert "down7_conv1" not in deepest


def test_other_numbers_of_slices_pass_a_projection():
    model = build_network(ModelConfig(architecture="mcgcn", slices=5, **TINY))
    weights = named_weights(model)
    assert weights["slice_projection/kernel"].shape == (1, 1, 5, 3)
    assert weights["stem/kernel"].shape == (7, 7, 3, 4)
    assert model(np.zeros((1, 2, 32, 32, 1), np.float32)).shape == (1, 2, 32, 32, 3)


def test_published_channels_and_their_rounding():
    assert channels(ModelConfig(), 1024) == 1024
    assert channels(ModelConfig(width=0.3), 64) == 20
    assert channels(ModelConfig(width=0.01), 64) == 4


def test_pvp_pools_are_those_of_the_whole_cells():
    """Against a loop in NumPy, on a map that the pools of 16 and 32 don't divide."""
    layer = PyramidPool(levels=3)
    x = np.random.default_rng(5).normal(size=(1, 1, 40, 24, 2)).astype(np.float32)
    found, same = (piece.numpy()[0, 0] for piece in layer(tf.constant(x)))
    np.testing.assert_array_equal(same, x[0, 0])
    kernel = layer.kernel.numpy()[0, 0]
    for level, size in enumerate((8, 16, 32)):
        cells = [max(n // size, 1) for n in (40, 24)]
        pooled = np.empty((*cells, 2))
        for i, j in itertools.product(*map(range, cells)):
            rows = slice(i * size, (i + 1) * size)
            # A pool of 32 does not fit in 24 columns and takes them all.
            pooled[i, j] = x[0, 0, rows, j * size : (j + 1) * size].max((0, 1))
        projected = pooled @ kernel[:, level]
        rows = [
            np.interp(np.linspace(0, cells[0] - 1, 40), range(cells[0]), c) for c in projected.T
        ]
        rows = np.stack(rows, 1)
        expected = [np.interp(np.linspace(0, cells[1] - 1, 24), range(cells[1]), r) for r in rows]
        np.testing.assert_allclose(found[..., level], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_seeds_and_names_decide_the_weights():
    first, again, other = (
        build_network(ModelConfig(architecture=name, **TINY), seed=seed)
        for name, seed in (("mcgcn", 1), ("mcgcn", 1), ("mcgcn", 2))
    )
    for name, value in named_weights(first).items():
        np.testing.assert_array_equal(value, named_weights(again)[name])
    kernel = "res3_block1/conv2/kernel"
    assert np.abs(named_weights(first)[kernel] - named_weights(other)[kernel]).max() > 0
    # 3x3 to 16 channels: variance 2 / (9 * 16).
    assert np.std(named_weights(first)[kernel]) == pytest.approx(np.sqrt(2 / 144), rel=0.05)


@pytest.mark.slow
def test_pvp_and_upsampling_count_as_published():
    counts = {
        pvp: count(build_network(ModelConfig(**TINY | {"pvp_levels": pvp}))) for pvp in (0, 4)
    }
    # Four projections of 4 + 4 channels with a bias; four more channels before the last convolution.
    assert counts[4] - counts[0] == 4 * (8 + 1) + 4 * (2 + 9 * 3)


@pytest.mark.parametrize("size", [2, 3])
def test_pools_give_their_gradient_to_one_of_equal_maxima(size):
    """Air and padding are constant; the 3D pool of TensorFlow would count them several times."""
    x = tf.ones((1, 4, 8, 8, 2))
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(MaxPool(size, slice_pool=True)(x))
    assert tf.reduce_sum(tape.gradient(total, x)) == total == 2 * 4 * 4 * 2


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["ahnet", "mcgcn", "unet2d", "unet3d"])
def test_inference_is_training_once_the_statistics_have_settled(architecture, monkeypatch):
    """Moving statistics belong to the maps that they normalise, also where a block has two of them."""
    # Without momentum they have settled after one step.
    monkeypatch.setattr(normalization, "MOMENTUM", 0.0)
    network = build_network(ModelConfig(architecture=architecture, **TINY))
    image = np.random.default_rng(6).uniform(-200, 250, (2, 8, 128, 128, 1)).astype(np.float32)
    trained = network(image, training=True)
    # Moving variances are unbiased, larger by 1 / 31 where AH-Net has 32 values in a channel.
    difference = np.abs(network(image) - trained).mean()
    assert difference < 0.15 * np.std(trained)
