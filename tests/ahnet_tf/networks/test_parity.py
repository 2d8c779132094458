"""AH-Net against MONAI's logits, stored by benchmarks.parity; weights and images come from seeds."""

import numpy as np
import pytest

from ahnet_tf.networks import named_weights
from benchmarks.parity import DATA, EXPECTATIONS, SAMPLE, parity_network, random_image

CASES = {name: (settings, shape) for name, settings, shape in EXPECTATIONS}


def relative_error(found, expected, spread):
    return np.abs(np.asarray(found) - expected).max() / spread


@pytest.mark.parametrize("name", ["small_trilinear", "small_transpose"])
def test_small_network_equals_monai_in_both_modes(name):
    settings, shape = CASES[name]
    expected = np.load(DATA / f"monai_{name}.npz")
    model, image = parity_network(settings), random_image(shape)
    for mode, limit in (("inference", 1e-5), ("training", 5e-4)):
        logits = model(image, training=mode == "training").numpy()
        spread = expected[f"{mode}_range"]
        assert relative_error(logits[SAMPLE], expected[mode], spread) < limit
        assert relative_error(logits.mean((1, 2, 3)), expected[f"{mode}_mean"], spread) < limit
    weights = named_weights(model)
    np.testing.assert_allclose(
        weights["stem/norm/moving_variance"], expected["stem_moving_variance"], rtol=1e-4
    )
    np.testing.assert_allclose(
        weights["final/norm/moving_mean"], expected["final_moving_mean"], rtol=1e-3, atol=1e-4
    )


@pytest.mark.slow
def test_published_network_equals_monai():
    settings, shape = CASES["whole"]
    expected = np.load(DATA / "monai_whole.npz")
    model = parity_network(settings)
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == 27_087_804
    logits = model(random_image(shape)).numpy()
    spread = expected["inference_range"]
    assert relative_error(logits[SAMPLE], expected["inference"], spread) < 1e-5
