"""Averages predictions of several networks (ensemble) and of mirrored windows."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import attrs
import numpy as np

from ahnet_tf.inference.predictor import Predictor
from preprocessing.errors import ModelError, SettingsError

# Tensors are [batch, z, y, x, channel].
_AXES = {"z": 1, "y": 2, "x": 3}


def mean_predictor(predictors: Sequence[Predictor], names: Sequence[object]) -> Predictor:
    """Returns a predictor of the mean of several networks' probabilities; `names` are for messages.

    Raises ModelError if they differ in task or window, or take more than one channel.
    """
    first = predictors[0]
    channels = first.settings.model.channels
    if channels != 1:
        raise ModelError(names[0], "a network of 1 channel, which volumes have", channels)
    expected = _common_settings(first)
    for name, other in zip(names[1:], predictors[1:], strict=True):
        for what, found in _common_settings(other).items():
            if found != expected[what]:
                remedy = "Models are averaged window by window, so they must agree in this."
                raise ModelError(name, f"the {what} of {names[0]}, {expected[what]}", found, remedy)
    if len(predictors) == 1:
        return first

    def predict(windows: np.ndarray) -> np.ndarray:
        total = predictors[0].predict(windows).astype(np.float32)
        for each in predictors[1:]:
            total += each.predict(windows)
        return total / np.float32(len(predictors))

    return dataclasses.replace(first, predict=predict)


def flipped_predictor(predictor: Predictor, axes: str) -> Predictor:
    """Returns a predictor of the mean over a window and its mirror images, mirrored back.

    Two axes, "xy" for example, give four predictions per window. Raises as `flip_axes` does.
    """
    flips = flip_axes(axes)
    if not axes:
        return predictor

    def predict(windows: np.ndarray) -> np.ndarray:
        total = predictor.predict(windows).astype(np.float32)
        for flip in flips[1:]:
            total += np.flip(predictor.predict(np.ascontiguousarray(np.flip(windows, flip))), flip)
        return total / np.float32(len(flips))

    return dataclasses.replace(predictor, predict=predict)


def flip_axes(axes: str) -> list[tuple[int, ...]]:
    """Returns the tensor axes of each mirroring, the empty one first, for axes such as "xy".

    Raises SettingsError for another letter than x, y and z, or one twice.
    """
    if not set(axes) <= _AXES.keys() or len(set(axes)) != len(axes):
        raise SettingsError("flips", "axes among x, y and z, each once", repr(axes))
    return [
        tuple(_AXES[axis] for axis in some)
        for count in range(len(axes) + 1)
        for some in itertools.combinations(axes, count)
    ]


def _common_settings(predictor: Predictor) -> dict[str, object]:
    """Returns what the members of an ensemble must agree in, by name."""
    settings = predictor.settings
    task = {
        f"task's {name}": value
        for name, value in attrs.asdict(settings.task, recurse=False).items()
    }
    return task | {"window": settings.window_shape_zyx, "channels": settings.model.channels}
