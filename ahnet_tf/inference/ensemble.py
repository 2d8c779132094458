"""Several answers for one window, averaged: of several networks, or of one for mirrored windows."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from ahnet_tf.inference.predictor import Predictor
from preprocessing.errors import ModelError, SettingsError

# Tensors are [batch, z, y, x, channel].
_AXES = {"z": 1, "y": 2, "x": 3}


def mean_predictor(predictors: Sequence[Predictor], names: Sequence[object]) -> Predictor:
    """Returns a predictor that answers with the mean of several networks' probabilities.

    Args:
      predictors: one or more, of one task, window and number of channels.
      names: where each comes from, for messages.

    Raises:
      ModelError: they differ in one of these; names the model and what differs.
    """
    first = predictors[0]
    for name, other in zip(names[1:], predictors[1:], strict=True):
        difference = _difference(first, other)
        if difference:
            what, expected, found = difference
            remedy = "Models are averaged window by window, so they must agree in this."
            raise ModelError(name, f"the {what} of {names[0]}, {expected}", found, remedy)
    if len(predictors) == 1:
        return first

    def predict(windows: np.ndarray) -> np.ndarray:
        total = predictors[0].predict(windows).astype(np.float32)
        for each in predictors[1:]:
            total += each.predict(windows)
        return total / np.float32(len(predictors))

    return dataclasses.replace(first, predict=predict)


def flipped_predictor(predictor: Predictor, axes: str) -> Predictor:
    """Returns a predictor that also looks at every window mirrored, and answers with the mean.

    Args:
      predictor: the network.
      axes: which of z, y and x are mirrored, "xy" for example: two axes give four answers, each
        turned back before the mean. Empty: the predictor itself.

    Raises:
      SettingsError: another letter, or one twice.
    """
    flips = flip_axes(axes)
    if len(flips) == 1:
        return predictor

    def predict(windows: np.ndarray) -> np.ndarray:
        total = predictor.predict(windows).astype(np.float32)
        for flip in flips[1:]:
            total += np.flip(predictor.predict(np.ascontiguousarray(np.flip(windows, flip))), flip)
        return total / np.float32(len(flips))

    return dataclasses.replace(predictor, predict=predict)


def flip_axes(axes: str) -> list[tuple[int, ...]]:
    """Returns the tensor axes of each mirroring, none first, of axes named as in "xy".

    Raises:
      SettingsError: another letter than x, y and z, or one twice.
    """
    if not set(axes) <= _AXES.keys() or len(set(axes)) != len(axes):
        raise SettingsError("flips", "axes among x, y and z, each once", repr(axes))
    return [
        tuple(_AXES[axis] for axis in some)
        for count in range(len(axes) + 1)
        for some in itertools.combinations(axes, count)
    ]


def _difference(first: Predictor, other: Predictor) -> tuple[str, object, object] | None:
    """Returns the first thing that two networks don't agree in, and what each has."""
    pairs = {
        f"task's {field.name}": [getattr(each.settings.task, field.name) for each in (first, other)]
        for field in dataclasses.fields(first.settings.task)
    }
    pairs["window"] = [each.settings.window_shape_zyx for each in (first, other)]
    pairs["channels"] = [each.settings.model.channels for each in (first, other)]
    return next(((what, *both) for what, both in pairs.items() if both[0] != both[1]), None)
