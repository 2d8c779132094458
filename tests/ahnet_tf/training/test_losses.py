"""Losses: identities, values by hand, and finite gradients for extreme logits."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ahnet_tf.training import losses

RNG = np.random.default_rng(5)
LABELS = RNG.integers(0, 3, (2, 3, 4, 5))
LOGITS = RNG.normal(0, 3, (2, 3, 4, 5, 3)).astype(np.float32)
BINARY = RNG.integers(0, 2, (2, 3, 4, 5))


def test_softmax_focal_by_hand():
    # p = (0.7, 0.2, 0.1), label 1: 0.8^2 * -log 0.2.
    logits = np.log([[[[[0.7, 0.2, 0.1]]]]]).astype(np.float32)
    found = losses.softmax_focal(np.full((1, 1, 1, 1), 1), logits)
    np.testing.assert_allclose(found, [[[[0.64 * -np.log(0.2)]]]], rtol=1e-6)
    weighted = losses.softmax_focal(np.full((1, 1, 1, 1), 1), logits, class_weights=(1, 5, 1))
    np.testing.assert_allclose(weighted, 5 * found, rtol=1e-6)


def test_softmax_gamma_zero_is_cross_entropy():
    expected = keras.losses.sparse_categorical_crossentropy(LABELS, LOGITS, from_logits=True)
    np.testing.assert_allclose(
        losses.softmax_focal(LABELS, LOGITS, gamma=0.0), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
def test_sigmoid_focal_equals_tensorflow_addons(gamma):
    addons = pytest.importorskip("tensorflow_addons.losses", exc_type=ImportError)
    peer = addons.SigmoidFocalCrossEntropy(
        from_logits=True, alpha=0.25, gamma=gamma, reduction="none"
    )
    logits = LOGITS[..., :1]
    expected = peer(BINARY[..., np.newaxis].astype(np.float32), logits)
    found = losses.sigmoid_focal(BINARY, logits, gamma=gamma, class_weights=(0.75, 0.25))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_sigmoid_of_several_classes_sums_them():
    found = losses.sigmoid_focal(LABELS, LOGITS, class_weights=(1, 2, 3))
    expected = sum(
        weight * losses.sigmoid_focal(np.equal(LABELS, k), LOGITS[..., k : k + 1]).numpy()
        for k, weight in enumerate((1, 2, 3))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [losses.sigmoid_focal, losses.heat_map_l2])
def test_soft_targets_are_met_exactly(loss):
    heat_map = RNG.uniform(0.05, 0.95, (1, 2, 3, 4)).astype(np.float32)
    logit = tf.Variable(np.log(heat_map / (1 - heat_map))[..., np.newaxis])
    with tf.GradientTape() as tape:
        values = loss(heat_map, logit)
    gradient = tape.gradient(values, logit)
    np.testing.assert_allclose(values, 0, atol=1e-10)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_heat_map_l2_by_hand():
    # sigmoid(0) = 0.5 against 0.9 and 0.
    found = losses.heat_map_l2(np.float32([[[[0.9, 0.0]]]]), np.zeros((1, 1, 1, 2, 1), np.float32))
    np.testing.assert_allclose(found, [[[[0.16, 0.25]]]], rtol=1e-6)


def test_heat_map_l2_weighs_lesion_and_background_by_the_heat_map():
    # At 0.9 the weight is 0.9 * 3 + 0.1 * 1 = 2.8.
    found = losses.heat_map_l2(
        np.float32([[[[0.9, 0.0]]]]),
        np.zeros((1, 1, 1, 2, 1), np.float32),
        class_weights=(1.0, 3.0),
    )
    np.testing.assert_allclose(found, [[[[0.448, 0.25]]]], rtol=1e-6)


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16, tf.float16])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("loss", [losses.softmax_focal, losses.sigmoid_focal])
def test_values_and_gradients_are_finite_at_100(loss, gamma, dtype):
    ends = np.array([[100, -100, 0], [-100, 100, 100], [-100, -100, -100]], np.float32)
    logits = tf.cast(ends[np.newaxis, np.newaxis, np.newaxis], dtype)
    for label in range(3):
        labels = np.full((1, 1, 1, 3), label)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = tf.reduce_mean(loss(labels, logits, gamma=gamma))
            value += tf.reduce_mean(losses.soft_dice(labels, logits))
        gradient = tape.gradient(value, logits)
        assert np.isfinite(value.numpy())
        assert gradient.dtype == dtype
        assert np.isfinite(tf.cast(gradient, tf.float32).numpy()).all()


def test_float16_gradients_agree_with_float32():
    gradients = []
    for dtype in (tf.float32, tf.bfloat16):
        logits = tf.cast(tf.round(LOGITS * 8) / 8, dtype)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = tf.reduce_mean(losses.softmax_focal(LABELS, logits))
        gradients.append(tf.cast(tape.gradient(value, logits), tf.float32))
    np.testing.assert_allclose(gradients[0], gradients[1], atol=1e-4)


def test_voxel_weights_leave_padding_out():
    weights = np.ones(LABELS.shape, np.float32)
    weights[:, :, 2:] = 0
    whole = losses.soft_dice(LABELS, LOGITS, voxel_weights=weights)
    cropped = losses.soft_dice(LABELS[:, :, :2], LOGITS[:, :, :2])
    np.testing.assert_allclose(whole, cropped, rtol=1e-5)


def test_soft_dice_by_hand():
    # Foreground p = 1, 1, 0, 0 against 1, 0, 0, 0: (2 * 1 + 1) / (2 + 1 + 1).
    logits = np.zeros((1, 1, 1, 4, 2), np.float32)
    logits[..., 1] = [50, 50, -50, -50]
    found = losses.soft_dice(np.array([[[[1, 0, 0, 0]]]]), logits)
    np.testing.assert_allclose(found, [0.25], rtol=1e-6)
    alone = losses.soft_dice(np.array([[[[1, 0, 0, 0]]]]), logits[..., 1:], exclusive=False)
    np.testing.assert_allclose(alone, [0.25], rtol=1e-6)
    perfect = losses.soft_dice(np.array([[[[1, 1, 0, 0]]]]), logits)
    np.testing.assert_allclose(perfect, [0], atol=1e-6)


def test_soft_dice_of_one_sigmoid_class_takes_label_one():
    logits = tf.constant(LOGITS[..., :1])
    labels = BINARY
    p = tf.sigmoid(logits[..., 0]).numpy()
    overlap, sizes = (p * labels).sum((1, 2, 3)), (p + labels).sum((1, 2, 3))
    expected = 1 - (2 * overlap + 1) / (sizes + 1)
    np.testing.assert_allclose(
        losses.soft_dice(labels, logits, exclusive=False), expected, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Three equal probabilities: (1 - 1/3)^2 log 3, at the largest weight.
        ({}, 4 / 9 * np.log(3)),
        ({"class_weights": (0.5, 1.0, 4.0)}, 4 * 4 / 9 * np.log(3)),
        ({"kind": "dice_focal"}, 1 + 4 / 9 * np.log(3)),
        ({"kind": "cross_entropy"}, np.log(3)),
        # Three sigmoids of 1/2 with a loss each: 1/4 log 2.
        ({"exclusive": False}, 3 / 4 * np.log(2)),
        # A heat map's one output.
        ({"heat_map": True, "class_weights": (1.0, 5.0)}, 5 / 4 * np.log(2)),
        ({"heat_map": True, "classes": 1, "kind": "heat_map_l2"}, 1 / 4),
    ],
    ids=str,
)
def test_uninformed_loss_by_hand(settings, expected):
    heat_map = "heat_map" in settings
    usual = {"kind": "focal", "gamma": 2.0, "class_weights": None, "exclusive": not heat_map}
    usual |= {"classes": 2 if heat_map else 3, "heat_map": heat_map}
    assert losses.uninformed_loss(**usual | settings) == pytest.approx(expected, rel=1e-5)
