"""Transfer from MC-GCN to AH-Net: what is copied computes the same, and what doesn't fit is named."""

import attrs
import keras
import numpy as np
import pytest
import tensorflow as tf

from ahnet_tf.config import ModelConfig
from ahnet_tf.networks import build_network, named_weights
from ahnet_tf.networks.encoder import Stem, residual_stages
from ahnet_tf.networks.layers_2d import MaxPool
from ahnet_tf.weights.transfer import transfer_encoder, transfer_weights
from preprocessing.errors import ModelError

AHNET = ModelConfig(
    width=0.125,
    blocks=(2, 1, 1, 1),
    growth=4,
    dense_layers=1,
    pvp_levels=1,
    channels=2,
    intensity_window=(-1.0, 1.0),
)
MCGCN = attrs.evolve(AHNET, architecture="mcgcn")
IMAGE = np.random.default_rng(0).uniform(-1, 1, (1, 4, 32, 64, 2)).astype(np.float32)


def shake(model, seed):
    """Gives every weight, moving statistics included, a value of its own."""
    generator = np.random.default_rng(seed)
    for name, variable in named_weights(model).items():
        noise = generator.uniform(0.5, 1.5, variable.shape)
        sign = -1 if "gamma" in name and seed % 2 else 1
        variable.assign(variable + sign * 0.3 * noise)


@pytest.fixture(scope="module")
def source():
    model = build_network(MCGCN, seed=1)
    shake(model, 1)
    return model


@pytest.fixture(scope="module")
def pair(source):
    target = build_network(AHNET, seed=2)
    return target, transfer_encoder(source, target)


def output_of(model, *layers):
    return keras.Model(model.input, [model.get_layer(layer).output for layer in layers])


def test_report_names_every_weight_once(source, pair):
    target, report = pair
    copied, fresh = ([name for name, _ in part] for part in (report.copied, report.fresh))
    assert sorted(copied + fresh) == sorted(named_weights(target))
    assert all(name.startswith(("stem/", "res")) for name in copied)
    assert all(name.startswith(("up", "dense", "pvp", "final")) for name in fresh)
    assert "res4_block1/shortcut/norm/moving_variance" in copied
    text = str(report)
    assert text.splitlines()[0].startswith(f"copied: {len(copied)} weights")
    assert "  stem/kernel  3x7x7x2x8" in text


def test_all_but_the_stem_kernel_is_copied_unchanged(source, pair):
    target, report = pair
    given, taken = named_weights(source), named_weights(target)
    for name, _ in report.copied:
        if name != "stem/kernel":
            np.testing.assert_array_equal(given[name], taken[name])


def test_kernel_slices_are_the_channels(source, pair):
    kernel2d = named_weights(source)["stem/kernel"].numpy()
    kernel3d = named_weights(pair[0])["stem/kernel"].numpy()
    for z in range(3):
        for channel in range(2):
            np.testing.assert_array_equal(
                kernel3d[z, :, :, channel], kernel2d[:, :, 2 * z + channel]
            )


def test_3d_stem_equals_2d_stem_on_three_slices(source, pair):
    """Against TensorFlow's own 3D convolution: the sums before pooling, at every z."""
    kernel3d = tf.constant(named_weights(pair[0])["stem/kernel"])
    padded = tf.pad(IMAGE, [[0, 0], [1, 1], [3, 3], [3, 3], [0, 0]])
    sums3d = tf.nn.conv3d(padded, kernel3d, [1, 1, 2, 2, 1], "VALID")
    weights = named_weights(source)
    scale = weights["stem/norm/gamma"] / tf.sqrt(weights["stem/norm/moving_variance"] + 1e-5)
    shift = weights["stem/norm/beta"] - weights["stem/norm/moving_mean"] * scale
    expected = output_of(source, "stem")(IMAGE)
    np.testing.assert_allclose(tf.nn.relu(sums3d * scale + shift), expected, rtol=1e-4, atol=1e-4)
    pooled = tf.nn.max_pool3d(sums3d, [1, 2, 1, 1, 1], [1, 2, 1, 1, 1], "VALID")
    found = output_of(pair[0], "stem")(IMAGE)
    np.testing.assert_allclose(tf.nn.relu(pooled * scale + shift), found, rtol=1e-4, atol=1e-4)


def test_encoder_without_slice_pooling_is_the_2d_encoder(source, pair):
    image = keras.Input((None, None, None, 2))
    x = Stem(8, slice_pool=False, name="stem")(image)
    x = MaxPool(3, name="stem_pool")(x)
    levels = residual_stages(x, AHNET, slice_pool=False)
    flat = keras.Model(image, levels)
    transfer_encoder(pair[0], flat)
    names = ("res1_block2", "res2_block1", "res3_block1", "res4_block1")
    for found, expected in zip(flat(IMAGE), output_of(source, *names)(IMAGE), strict=True):
        assert np.ptp(expected) > 0.1
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_misfits_are_all_listed_and_nothing_is_written(source):
    target = build_network(attrs.evolve(AHNET, width=0.0625, blocks=(3, 1, 1, 1)))
    before = {name: value.numpy() for name, value in named_weights(target).items()}
    with pytest.raises(ModelError) as caught:
        transfer_encoder(source, target)
    assert "res1_block3/conv2/kernel is missing in the source" in str(caught.value)
    assert "stem/norm/beta is (8,) in the source and (4,) in the target" in str(caught.value)
    assert "Give both the same width" in str(caught.value)
    for name, value in named_weights(target).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.slow
def test_another_number_of_classes_keeps_all_other_weights(pair, source):
    mcgcn, (source, _) = source, pair
    target = build_network(attrs.evolve(AHNET, classes=5), seed=3)
    report = transfer_weights(source, target)
    fresh = [name for name, _ in report.fresh]
    assert fresh
    assert all(name.startswith("final/") for name in fresh)
    assert report.summary() == f"{len(report.copied)} copied, {len(fresh)} fresh (final)"
    given, taken = named_weights(source), named_weights(target)
    for name, _ in report.copied:
        np.testing.assert_array_equal(given[name], taken[name])
    same = build_network(attrs.evolve(AHNET, classes=5), seed=4)
    assert transfer_weights(target, same).summary() == f"{len(taken)} copied, none fresh"
    before = {name: value.numpy() for name, value in named_weights(same).items()}
    assert transfer_weights(build_network(attrs.evolve(AHNET, growth=8)), same) is None
    assert transfer_weights(mcgcn, same) is None
    for name, value in named_weights(same).items():
        np.testing.assert_array_equal(value, before[name])


def test_networks_without_the_encoder_are_refused(source):
    unet = build_network(ModelConfig(architecture="unet3d", width=0.0625, unet_levels=2))
    with pytest.raises(ModelError, match="missing in the source"):
        transfer_encoder(unet, source)
    with pytest.raises(ModelError, match="neither network has the encoder"):
        transfer_encoder(unet, unet)
