"""Reads files of weights into arrays by name. A file is data: nothing in it is executed."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from preprocessing.errors import ModelError

SUFFIXES = (".pth", ".pt", ".safetensors", ".npz", ".h5")


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a weight file by name, as the file names them.

    `.pth` and `.pt` are read by torch with weights_only, if torch is installed; a state dict may lie
    under "state_dict" or "model", and the "module." of data-parallel training is dropped. The names
    in an `.h5` of Keras are "layer/weight".

    Raises:
      ModelError: no such file, an unknown suffix, a damaged file, one that needs torch where there is
        none, or one that holds more than arrays.
    """
    path = Path(path)
    readers = dict(zip(SUFFIXES, (_torch, _torch, _safetensors, _npz, _keras), strict=True))
    if path.suffix not in readers:
        raise ModelError(
            path, f"a file of weights ({', '.join(SUFFIXES)})", path.suffix or "no suffix"
        )
    if not path.is_file():
        raise ModelError(path, "a file of weights", "no such file")
    arrays = readers[path.suffix](path)
    return {name.removeprefix("module."): value for name, value in arrays.items()}


def _damaged(path: Path, kind: str, error: object) -> ModelError:
    return ModelError(path, f"a whole {kind} file of arrays", f"a damaged or foreign one ({error})")


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise _damaged(path, ".npz", error) from None


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from ahnet_tf.networks.checkpoint import read_safetensors

    return read_safetensors(path)


def _keras(path: Path) -> dict[str, np.ndarray]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            arrays = {}
            for layer in root.attrs["layer_names"]:
                layer = _text(layer)
                for weight in root[layer].attrs["weight_names"]:
                    leaf = _text(weight).rsplit("/", 1)[-1].removesuffix(":0")
                    arrays[f"{layer}/{leaf}"] = np.asarray(root[layer][_text(weight)])
            return arrays
    except (OSError, KeyError) as error:
        raise _damaged(path, "Keras .h5", error) from None


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise ModelError(
            path,
            "torch to read a .pth file",
            "no torch here",
            "Where torch is: safetensors.torch.save_file(torch.load(FILE, weights_only=True), OUT).",
        ) from None
    import pickle

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError):
        raise _damaged(path, "PyTorch", "torch's weights_only reading refuses it") from None
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(torch.is_tensor(v) for v in state.values()):
        raise _damaged(path, "PyTorch", "no state dict")
    return {key: value.numpy() for key, value in state.items()}
