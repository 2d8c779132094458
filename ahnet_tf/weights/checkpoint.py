"""Checkpoint of a network: a folder with `model.json` (settings) and `weights.safetensors`.

The weights are arrays by name; reading them executes no code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import safetensors
import safetensors.numpy

from ahnet_tf.config import ModelConfig
from ahnet_tf.networks.factory import build_network, named_weights
from preprocessing.errors import ModelError
from preprocessing.files import atomic_write, write_json
from preprocessing.settings import load_settings, to_dict

SETTINGS = "model.json"
WEIGHTS = "weights.safetensors"
_SHARED_NORM = re.compile(r"(refine\d+/norm)/(.+)")


def save_network(folder: str | Path, model: keras.Model, config: ModelConfig) -> None:
    """Writes a network's settings and weights into `folder`, which may hold other files.

    Each of the two files is written atomically.
    """
    write_json(Path(folder) / SETTINGS, to_dict(config))
    with atomic_write(Path(folder) / WEIGHTS) as temporary:
        temporary.write_bytes(weights_content(model))


def weights_content(model: keras.Model) -> bytes:
    """Returns the content of a network's file of weights."""
    arrays = {name: variable.numpy() for name, variable in named_weights(model).items()}
    return safetensors.numpy.save(arrays)


def load_network(folder: str | Path, *, name: str | None = None) -> tuple[keras.Model, ModelConfig]:
    """Builds the network of a checkpoint and loads its weights; returns it with its settings.

    Raises ModelError for a missing or damaged file, or weights that don't fit the settings, and
    SettingsError for unknown settings or values out of range in `model.json`.
    """
    for file in (SETTINGS, WEIGHTS):
        if not (Path(folder) / file).is_file():
            expected = f"a checkpoint folder with {SETTINGS} and {WEIGHTS}"
            remedy = "Training writes one; python -m ahnet_tf.weights import converts other files."
            raise ModelError(folder, expected, f"no {file}", remedy)
    config = load_settings(Path(folder) / SETTINGS, ModelConfig)
    arrays = _with_both_norms(read_safetensors(Path(folder) / WEIGHTS))
    model = build_network(config, seed=None, name=name)
    assign_weights(model, arrays, where=Path(folder) / WEIGHTS)
    return model, config


def _with_both_norms(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the weights of an MC-GCN, whose refinements shared one norm up to version 0.1, as now."""
    names = {name: _SHARED_NORM.fullmatch(name) for name in arrays}
    kept = {name: arrays[name] for name, shared in names.items() if not shared}
    return kept | {
        f"{shared[1]}{number}/{shared[2]}": arrays[name]
        for name, shared in names.items()
        if shared
        for number in (1, 2)
    }


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Returns a .safetensors file's arrays by name; ModelError if it is damaged or another kind."""
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ModelError(path, "a whole .safetensors file", f"a damaged one ({error})") from None


def assign_weights(
    model: keras.Model, arrays: Mapping[str, np.ndarray], where: object = "weights"
) -> None:
    """Assigns every weight of `model` from arrays by name; nothing is written unless all fit.

    Raises ModelError that lists all missing and unknown names and all shapes that differ.
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
