"""Files of weights in the .h5 layout of Keras 2, in which Keras' applications are distributed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import h5py
import keras
import numpy as np

Layers = Mapping[str, Mapping[str, np.ndarray]]


def write_keras_h5(path: str | Path, layers: Layers, groups: str = "layer_names") -> None:
    """Writes the arrays of each layer, by name, as Keras 2's save_weights did."""
    with h5py.File(path, "w") as file:
        file.attrs[groups] = [name.encode() for name in layers]
        for layer, values in layers.items():
            group = file.create_group(layer)
            names = [f"{layer}/{leaf}:0".encode() for leaf in values]
            group.attrs["weight_names"] = names
            for name, value in zip(names, values.values(), strict=True):
                group.create_dataset(name.decode(), data=value)


def layer_weights(model: keras.Model) -> dict[str, dict[str, np.ndarray]]:
    """Returns a model's weights by layer and name, such as "kernel", the same in Keras 2 and 3."""
    return {
        layer.name: {
            weight.name.rsplit("/", 1)[-1].removesuffix(":0"): weight.numpy()
            for weight in layer.weights
        }
        for layer in model.layers
    }
