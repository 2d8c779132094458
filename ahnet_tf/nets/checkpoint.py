"""The project's checkpoint: one .safetensors file with every weight by name and the network's settings.

The file holds plain arrays and text; reading it executes nothing, and any safetensors reader opens it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import tensorflow as tf

from ahnet_tf.config import ModelConfig, from_dict, save_config, to_dict
from ahnet_tf.nets.build import build_network, named_weights
from preprocessing.errors import ModelError
from preprocessing.files import replacing

CONFIG_KEY = "ahnet_tf.model_config"


def save_network(path: str | Path, model: tf.keras.Model, config: ModelConfig) -> None:
    """Writes a network's weights and settings to `path`, whole or not at all.

    A path ending in .safetensors is one file with both; any other is a folder, which gets that file as
    weights.safetensors, and the settings once more as model.json for readers.
    """
    arrays = {name: variable.numpy() for name, variable in named_weights(model).items()}
    with replacing(_weights_file(path)) as temporary:
        metadata = {CONFIG_KEY: json.dumps(to_dict(config))}
        safetensors.numpy.save_file(arrays, temporary, metadata=metadata)
    if Path(path).suffix != ".safetensors":
        save_config(Path(path) / "model.json", config)


def load_network(
    path: str | Path, *, name: str | None = None
) -> tuple[tf.keras.Model, ModelConfig]:
    """Builds the network of a checkpoint and loads its weights; returns it with its settings.

    Raises:
      ModelError: the file is missing, damaged, foreign, or its weights don't fit its settings.
    """
    config, arrays = read_checkpoint(path)
    model = build_network(config, name=name)
    assign_weights(model, arrays, where=path)
    return model, config


def read_checkpoint(path: str | Path) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Returns the settings and the weights by name of a checkpoint, without building the network.

    Raises:
      ModelError: the file is missing, damaged or foreign.
    """
    path = _weights_file(path)
    expected = "a checkpoint (.safetensors) of this project"
    if not Path(path).is_file():
        raise ModelError(path, expected, "no such file")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(CONFIG_KEY)
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ModelError(path, expected, f"an unreadable file ({error})") from None
    if text is None:
        raise ModelError(
            path,
            expected,
            "a foreign safetensors file",
            f"Turn it into one with: python -m ahnet_tf.weights import {path} --to OUT",
        )
    return from_dict(ModelConfig, json.loads(text), where=path), arrays


def _weights_file(path: str | Path) -> Path:
    return Path(path) if Path(path).suffix == ".safetensors" else Path(path) / "weights.safetensors"


def assign_weights(
    model: tf.keras.Model, arrays: Mapping[str, np.ndarray], where: object = "weights"
) -> None:
    """Assigns every weight of `model` from arrays by name; nothing is written unless all fit.

    Raises:
      ModelError: names missing or unknown, or shapes that differ, all of them listed.
    """
    variables = named_weights(model)
    problems = [f"{name} is missing" for name in variables if name not in arrays]
    problems += [f"{name} is unknown" for name in arrays if name not in variables]
    problems += [
        f"{name} is {tuple(arrays[name].shape)} instead of {tuple(variable.shape)}"
        for name, variable in variables.items()
        if name in arrays and tuple(arrays[name].shape) != tuple(variable.shape)
    ]
    if problems:
        found = "; ".join(problems[:20])
        if len(problems) > 20:
            found += f"; and {len(problems) - 20} more"
        raise ModelError(where, f"the {len(variables)} weights of {model.name}", found)
    for name, variable in variables.items():
        variable.assign(arrays[name])
