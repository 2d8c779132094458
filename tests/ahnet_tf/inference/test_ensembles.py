"""Means of networks and of mirrored windows, computed by hand; models that do not match."""

import attrs
import numpy as np
import pytest

from ahnet_tf.config import ModelConfig
from ahnet_tf.inference.ensemble import flip_axes, flipped_predictor, mean_predictor
from ahnet_tf.inference.predictor import ExportSettings, Predictor
from preprocessing.errors import ModelError, SettingsError
from preprocessing.tasks import PRESETS

SETTINGS = ExportSettings(PRESETS["ct_liver"], ModelConfig(), (2, 3, 4))


def answering(function, settings=SETTINGS):
    return Predictor(settings, function)


def test_the_mean_of_three():
    values = (0.2, 0.5, 0.2)
    models = [answering(lambda w, v=v: np.full((*w.shape[:-1], 3), v, np.float32)) for v in values]
    answer = mean_predictor(models, "abc").predict(np.zeros((2, 2, 3, 4, 1), np.int16))
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, 0.3, rtol=1e-6)
    # The output of a network is not modified.
    assert models[0].predict(np.zeros((1, 1, 1, 1, 1)))[0, 0, 0, 0, 0] == np.float32(0.2)
    assert mean_predictor(models[:1], "a") is models[0]


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (attrs.evolve(SETTINGS, task=PRESETS["ct_liver_small"]), "task's name"),
        (
            attrs.evolve(SETTINGS, task=attrs.evolve(SETTINGS.task, outside_value=-1000)),
            "task's outside_value",
        ),
        (attrs.evolve(SETTINGS, window_shape_zyx=(2, 3, 5)), "window"),
        (attrs.evolve(SETTINGS, model=ModelConfig(channels=2)), "channels"),
    ],
)
def test_models_that_differ_are_refused(other, what):
    with pytest.raises(ModelError, match=f"second: expected the {what} of first"):
        mean_predictor([answering(None), answering(None, other)], ["first", "second"])


def test_mirrored_predictions_are_mirrored_back():
    """The identity stays the identity; a ramp along an axis averages to a constant."""
    windows = np.random.default_rng(0).random((2, 2, 3, 4, 1)).astype(np.float32)
    same = flipped_predictor(answering(lambda w: np.repeat(w, 2, -1)), "xyz")
    np.testing.assert_allclose(same.predict(windows), np.repeat(windows, 2, -1), rtol=1e-6)

    ramp = np.arange(4, dtype=np.float32).reshape(1, 1, 1, 4, 1)
    slanted = answering(lambda w: np.broadcast_to(ramp, (*w.shape[:-1], 1)))
    np.testing.assert_allclose(flipped_predictor(slanted, "x").predict(windows), 1.5)
    for axes in ("", "yz"):
        answer = flipped_predictor(slanted, axes).predict(windows)
        np.testing.assert_allclose(answer, np.broadcast_to(ramp, answer.shape))


def test_each_axis_doubles_the_views():
    seen = []

    def predict(windows):
        seen.append(windows.ravel().tolist())
        return windows

    windows = np.array([0, 1, 2, 3]).reshape(1, 1, 2, 2, 1)
    flipped_predictor(answering(predict), "xy").predict(windows)
    assert sorted(seen) == [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]
    assert len(flip_axes("zyx")) == 8
    for wrong in ("xx", "a", "XY"):
        with pytest.raises(SettingsError, match="flips"):
            flip_axes(wrong)
