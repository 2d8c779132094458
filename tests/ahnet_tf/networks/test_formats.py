"""Networks survive their configuration, SavedModel, checkpoint, XLA and bfloat16."""

import attrs
import keras
import numpy as np
import pytest
import tensorflow as tf

from ahnet_tf.config import ModelConfig
from ahnet_tf.networks import build_network, named_weights
from ahnet_tf.networks.inputs import (
    IntensityWindow,
    class_probabilities,
    network_probabilities,
)
from ahnet_tf.networks.layers_2d import ConvNorm, GlobalConv
from ahnet_tf.networks.layers_3d import DenseBlock, DenseLayer, PyramidPool, TransposedConv
from ahnet_tf.networks.normalization import make_norm
from ahnet_tf.training.losses import softmax_focal
from ahnet_tf.weights.checkpoint import load_network, save_network
from preprocessing.errors import ModelError, SettingsError

UNET = {"architecture": "unet2d", "unet_levels": 2}
TINY = {"width": 0.0625, "blocks": (1, 1, 1, 1), "growth": 4, "dense_layers": 1, "pvp_levels": 1}
RNG = np.random.default_rng(6)
IMAGE = RNG.normal(0, 100, (1, 3, 32, 48, 1)).astype(np.float32)
LABELS = RNG.integers(0, 3, IMAGE.shape[:-1])


@pytest.fixture(scope="module", params=["ahnet", "mcgcn", "unet2d", "unet3d"])
def network(request):
    config = ModelConfig(architecture=request.param, **TINY)
    model = build_network(config, seed=3)
    # Moving statistics of their own, so that losing them shows.
    model(IMAGE, training=True)
    return model, config


def test_config_round_trip(network):
    model, _ = network
    again = type(model).from_config(model.get_config())
    assert list(named_weights(again)) == list(named_weights(model))
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(again(IMAGE), model(IMAGE))


@pytest.mark.slow
def test_saved_model_takes_any_size(network, tmp_path):
    model, _ = network
    model.export(str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for image in (IMAGE, IMAGE[:, :1, :17, :20]):
        np.testing.assert_allclose(loaded.serve(image), model(image), rtol=1e-4, atol=1e-5)


def test_maps_between_layers_have_gradients(network):
    """As Grad-CAM takes them; beyond training, too."""
    model, _ = network
    inner = next(layer for layer in model.layers if layer.trainable_weights)
    probe = keras.Model(model.inputs, [inner.output, model.output])
    with tf.GradientTape() as tape:
        values, logits = probe(IMAGE, training=False)
        score = tf.reduce_sum(logits[..., 1])
    assert np.abs(tape.gradient(score, values)).max() > 0


def test_joined_layers_give_the_same_probabilities_by_fewer_operations(network):
    model, config = network
    spec = tf.TensorSpec([None, None, None, None, 1], tf.float32)

    def apart(image):
        return class_probabilities(model(image, training=False), config.activation)

    def joined(image):
        return network_probabilities(model, image, config.activation)

    apart, joined = (tf.function(each, [spec], autograph=False) for each in (apart, joined))
    np.testing.assert_allclose(joined(IMAGE), apart(IMAGE), atol=1e-6)
    np.testing.assert_allclose(joined(IMAGE[:, :1]), apart(IMAGE[:, :1]), atol=1e-6)
    counts = [len(each.get_concrete_function().graph.get_operations()) for each in (joined, apart)]
    assert counts[0] < counts[1]
    if config.architecture == "ahnet":
        assert counts[0] < 0.9 * counts[1]


def test_checkpoint_round_trip(network, tmp_path):
    model, config = network
    save_network(tmp_path / "run", model, config)
    loaded, found = load_network(tmp_path / "run")
    assert found == config
    for name, value in named_weights(model).items():
        np.testing.assert_array_equal(named_weights(loaded)[name], value)


@pytest.mark.parametrize(
    "layer",
    [
        make_norm("group", "norm"),
        ConvNorm(8, 3, 2, "group", relu=False),
        DenseBlock(2, 4),
        DenseLayer(4),
        GlobalConv(3),
        IntensityWindow(-100.0, 240.0),
        PyramidPool(2, "transpose", border=True),
        TransposedConv(4, slices=False),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_keep_their_settings(layer):
    config = keras.layers.serialize(layer)
    again = keras.layers.deserialize(config)
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()
    assert settings_of(again) == settings_of(layer)


def settings_of(layer):
    public = {name: value for name, value in vars(layer).items() if not name.startswith("_")}
    return {n: v for n, v in public.items() if isinstance(v, (str, int, float, bool))}


@pytest.fixture
def bfloat16():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["ahnet", "mcgcn"])
def test_bfloat16_stays_near_float32(architecture, bfloat16):
    config = ModelConfig(architecture=architecture, **TINY)
    rough = build_network(config, seed=3)
    keras.mixed_precision.set_global_policy("float32")
    exact = build_network(config, seed=3)
    assert all(weight.dtype == tf.float32 for weight in rough.weights)
    for training in (False, True):
        found, expected = (model(IMAGE, training=training) for model in (rough, exact))
        assert found.dtype == tf.float32
        difference = np.abs(found - expected)
        assert difference.mean() < 0.05 * np.ptp(expected)
    # The window is applied before rounding: 1000 HU lies beyond it, whatever bfloat16 makes of it.
    variances = [named_weights(m)["stem/norm/moving_variance"].numpy() for m in (rough, exact)]
    np.testing.assert_allclose(*variances, rtol=0.02)


@pytest.mark.slow
def test_xla_compiles_forward_and_training_step():
    config = ModelConfig(**TINY | {"pvp_levels": 0})
    model = build_network(config, seed=3)
    image, labels = IMAGE[:, :2, :32, :32], LABELS[:, :2, :32, :32]
    expected = model(image)

    @tf.function(jit_compile=True)
    def forward(image):
        return model(image)

    @tf.function(jit_compile=True)
    def train(image, labels):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(softmax_focal(labels, model(image, training=True)))
        gradients = tape.gradient(loss, model.trainable_weights)
        for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
            weight.assign_sub(0.01 * gradient)
        return loss

    np.testing.assert_allclose(forward(image), expected, rtol=1e-3, atol=1e-3)
    losses = [float(train(image, labels)) for _ in range(4)]
    assert losses[-1] < losses[0]


TWO_REPLICAS = """
import numpy as np, tensorflow as tf
from ahnet_tf.networks.normalization import make_norm
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
x = np.random.default_rng(0).normal(2, 3, (4, 5, 6, 20)).astype(np.float32)
alone = make_norm("sync_batch", "norm")
expected = alone(tf.constant(x), training=True)
with strategy.scope():
    layer = make_norm("sync_batch", "norm")
    layer.build(tf.TensorShape(x.shape))
halves = strategy.experimental_distribute_values_from_function(
    lambda context: tf.constant(x[2 * context.replica_id_in_sync_group :][:2])
)
found = strategy.run(tf.function(lambda half: layer(half, training=True)), (halves,))
found = tf.concat(strategy.experimental_local_results(found), 0)
np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
np.testing.assert_allclose(layer.moving_mean.numpy(), alone.moving_mean, rtol=1e-5)
np.testing.assert_allclose(layer.moving_variance.numpy(), alone.moving_variance, rtol=1e-4)
"""


@pytest.mark.slow
def test_synchronised_norm_equals_the_whole_batch(forks, tmp_path):
    """Two replicas with half the batch each against one layer with all of it.

    In a process of its own: TensorFlow makes logical devices only before it starts.
    """
    process = forks.start(TWO_REPLICAS, tmp_path / "log")
    assert forks.wait(process) == 0, (tmp_path / "log").read_text()


def test_synchronised_norm_alone_equals_batch_norm():
    x = tf.constant(RNG.normal(2, 3, (4, 5, 6, 20)).astype(np.float32))
    one, other = make_norm("batch", "norm"), make_norm("sync_batch", "norm")
    np.testing.assert_allclose(one(x, training=True), other(x, training=True), rtol=1e-4, atol=1e-5)
    # Keras' fused layer keeps the unbiased variance, as PyTorch does, its synchronized one the biased.
    for layer, ddof in ((one, 1), (other, 0)):
        mean, variance = x.numpy().mean((0, 1, 2)), x.numpy().var((0, 1, 2), ddof=ddof)
        np.testing.assert_allclose(layer.moving_mean, 0.1 * mean, rtol=1e-4)
        np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * variance, rtol=1e-4)


@pytest.mark.parametrize("deviation", [0.0, 0.01])
def test_synchronised_norm_of_a_mean_far_above_the_deviation(deviation):
    """Constant maps are those of patches of air; their variance must not be negative by rounding."""
    for mean in (0.3, 1.7, 30.0):
        noise = RNG.normal(0, 1, (8, 32, 32, 4))
        x = (mean + deviation * noise).astype(np.float32)
        layer = make_norm("sync_batch", "norm")
        found = layer(tf.constant(x), training=True).numpy()
        exact = x.astype(np.float64)
        variance = exact.var((0, 1, 2))
        expected = (exact - exact.mean((0, 1, 2))) / np.sqrt(variance + 1e-5)
        np.testing.assert_allclose(found, expected, atol=0.05)
        np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * variance, rtol=1e-5)


def test_frozen_norm_keeps_its_statistics():
    layer = make_norm("batch", "norm")
    x = tf.constant(RNG.normal(2, 3, (4, 5, 6, 20)).astype(np.float32))
    layer(x, training=True)
    layer.trainable = False
    before = layer.moving_mean.numpy()
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    np.testing.assert_array_equal(layer.moving_mean, before)


def test_group_norm_sees_one_slice():
    layer = make_norm("group", "norm")
    x = RNG.normal(2, 3, (3, 5, 6, 20)).astype(np.float32)
    grouped = x[1].reshape(30, 4, 5)
    mean, variance = grouped.mean((0, 2), keepdims=True), grouped.var((0, 2), keepdims=True)
    expected = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(5, 6, 20)
    np.testing.assert_allclose(layer(tf.constant(x))[1], expected, rtol=1e-4, atol=1e-5)


def test_bad_checkpoints_are_refused(tmp_path):
    config = ModelConfig(**UNET, **TINY)
    with pytest.raises(ModelError, match=r"no model\.json"):
        load_network(tmp_path)
    model = build_network(config)
    save_network(tmp_path, model, config)
    weights = tmp_path / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="damaged"):
        load_network(tmp_path)
    weights.write_bytes(whole)
    save_network(tmp_path / "other", model, attrs.evolve(config, width=0.125))
    with pytest.raises(ModelError) as caught:
        load_network(tmp_path / "other")
    text = str(caught.value)
    assert "down1_conv1/kernel is (3, 3, 3, 4) instead of (3, 3, 3, 8)" in text
    (tmp_path / "model.json").write_text('{"widht": 1}')
    with pytest.raises(SettingsError, match="Did you mean 'width'"):
        load_network(tmp_path)


def test_wrong_channels_are_refused():
    model = build_network(ModelConfig(**UNET, **TINY))
    with pytest.raises(ValueError, match="incompatible"):
        model(np.zeros((1, 2, 32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="incompatible"):
        model(np.zeros((1, 2, 2, 32, 32, 1), np.float32))
