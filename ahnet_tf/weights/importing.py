"""Imports weight files of other programs: reads them, recognises the network, builds it here.

A file is data: nothing in it is executed.
"""

from __future__ import annotations

import itertools
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import attrs
import keras
import numpy as np

from ahnet_tf.config import ModelConfig
from ahnet_tf.networks.factory import build_network, named_weights
from ahnet_tf.weights.checkpoint import read_safetensors
from ahnet_tf.weights.keras_resnet50 import keras_encoder_weight
from ahnet_tf.weights.torch_names import ahnet_source, encoder_source
from ahnet_tf.weights.transfer import STEM_KERNEL, TransferReport, encoder_weights, stem_kernel_3d
from preprocessing.errors import ModelError

# Each family's name in messages, and a key that only its files have.
FAMILIES = {
    "keras": ("Keras' ResNet-50", "conv1_conv/kernel"),
    "monai": ("MONAI's AHNet", "up0.conv.weight"),
    "torchvision": ("torchvision's ResNet-50", "layer1.0.conv1.weight"),
}


def import_network(
    path: str | Path, config: ModelConfig, *, seed: int = 0
) -> tuple[keras.Model, ModelConfig, TransferReport]:
    """Builds a network with the weights of a file.

    ImageNet weights fill the encoder of the network that `config` describes. For a whole AH-Net,
    `config` gives only the settings that don't follow from its weights, such as the intensity window.

    Raises ModelError for an unreadable or unknown file, and lists all missing or other-shaped
    weights.
    """
    arrays = read_arrays(path)
    family = _family(arrays, path)
    whole = family == "monai"
    if whole:
        config = _monai_config(arrays, config, path)
    elif config.norm == "group":
        raise ModelError(path, "a network with ResNet-50's batch norm", "norm=group")
    model = build_network(config, seed=seed)
    wanted = named_weights(model) if whole else encoder_weights(model)
    if not wanted:
        expected = "a network with ResNet-50's encoder (ahnet, mcgcn)"
        raise ModelError(path, expected, config.architecture)
    values, problems = {}, []
    for name, variable in wanted.items():
        shape = tuple(variable.shape)
        try:
            value = _weight(name, arrays, family, config)
        except KeyError as error:
            problems.append(f"{error.args[0]} (for {name}) is missing")
            continue
        except ValueError:
            problems.append(f"{name} has other axes")
            continue
        if name == STEM_KERNEL and not whole:
            value = _colours_to_slices(value, shape)
        if value.shape != shape:
            problems.append(f"{name} is {value.shape} instead of {shape}")
        values[name] = value
    if problems:
        found = "; ".join(problems[:20])
        if len(problems) > 20:
            found += f"; {len(problems)} in all"
        remedy = "Does --config describe a network of the same width and blocks?"
        expected = f"{FAMILIES[family][0]} that fits {config.architecture}"
        raise ModelError(path, expected, found, remedy)
    for name, value in values.items():
        wanted[name].assign(value)
    return model, config, TransferReport.of(model, values)


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a weight file by their names in the file.

    `.pth` and `.pt` are read by torch (weights_only), if it is installed; the state dict may be
    nested under "state_dict" or "model". The prefix "module." of data-parallel training is removed.
    The names in a Keras `.h5` are "layer/weight". Raises ModelError for a missing or damaged file,
    an unknown suffix, other contents than arrays, or if torch is needed but not installed.
    """
    path = Path(path)
    readers = {".pth": _torch, ".pt": _torch, ".npz": _npz, ".h5": _keras}
    readers[".safetensors"] = read_safetensors
    if path.suffix not in readers:
        expected = f"a file of weights ({', '.join(readers)})"
        raise ModelError(path, expected, path.suffix or "no suffix")
    if not path.is_file():
        raise ModelError(path, "a file of weights", "no such file")
    arrays = readers[path.suffix](path)
    return {name.removeprefix("module."): value for name, value in arrays.items()}


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise _damaged(path, ".npz", error) from None


def _keras(path: Path) -> dict[str, np.ndarray]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            arrays = {}
            for layer in np.asarray(root.attrs["layer_names"], str).tolist():
                for weight in np.asarray(root[layer].attrs["weight_names"], str).tolist():
                    leaf = weight.rsplit("/", 1)[-1].removesuffix(":0")
                    arrays[f"{layer}/{leaf}"] = np.asarray(root[layer][weight])
            return arrays
    except (OSError, KeyError) as error:
        raise _damaged(path, "Keras .h5", error) from None


def _torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        convert = "safetensors.torch.save_file(torch.load(FILE, weights_only=True), OUT)"
        remedy = f"Where torch is installed, run {convert}."
        raise ModelError(path, "torch to read a .pth file", "no torch here", remedy) from None
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


def _damaged(path: Path, kind: str, error: object) -> ModelError:
    return ModelError(path, f"an intact {kind} file of arrays", f"a damaged or other one ({error})")


def _family(arrays: Mapping[str, np.ndarray], where: object) -> str:
    """Returns the family of the weights, a key of FAMILIES."""
    for family, (_, key) in FAMILIES.items():
        if key in arrays:
            return family
    titles = ", ".join(title for title, _ in FAMILIES.values())
    names = ", ".join(sorted(arrays)[:3]) or "nothing"
    raise ModelError(where, f"weights of {titles}", f"{len(arrays)} arrays ({names}, ...)")


def _weight(
    name: str, arrays: Mapping[str, np.ndarray], family: str, config: ModelConfig
) -> np.ndarray:
    """Returns a weight of this project; KeyError if it is missing, ValueError for other axes."""
    if family == "keras":
        return keras_encoder_weight(name, arrays)
    if family == "torchvision":
        source = encoder_source(name, volumetric=False)
    else:
        source = ahnet_source(name, config.pvp_levels)
    if source is None:
        raise KeyError("a counterpart")
    return source.read(arrays)


def _colours_to_slices(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Turns an ImageNet stem kernel [7, 7, 3 colours, out] into one of 3 slices, of shape `shape`.

    Several image channels share the kernel of a slice equally.
    """
    channels = shape[-2] if len(shape) == 5 else shape[-2] // 3
    kernel = np.repeat(kernel, channels, axis=2) / np.float32(channels)
    if len(shape) == 5 and kernel.shape[2] == 3 * channels:
        return stem_kernel_3d(kernel, (3, *kernel.shape[:2], channels, kernel.shape[3]))
    return kernel


def _monai_config(
    arrays: Mapping[str, np.ndarray], config: ModelConfig, where: object
) -> ModelConfig:
    """Returns `config` with all settings that follow from the weights of MONAI's AHNet."""
    try:
        stem, classes = arrays["conv1.weight"], arrays["final.conv.weight"].shape[0]
        first, second, third, fourth = (
            _count(arrays, f"layer{stage}.{{}}.conv1.weight") for stage in range(1, 5)
        )
        return attrs.evolve(
            config,
            architecture="ahnet",
            width=stem.shape[0] / 64,
            blocks=(first, second, third, fourth),
            norm="batch",
            classes=classes,
            activation="sigmoid" if classes == 1 else config.activation,
            channels=stem.shape[1],
            growth=arrays["dense0.denselayer1.conv4.weight"].shape[0],
            dense_layers=_count(arrays, "dense0.denselayer{}.conv1.weight", start=1),
            pvp_levels=_count(arrays, "psp.project_modules.{}.weight"),
            pvp_border=True,
            upsampling="transpose" if "final.up.weight" in arrays else "trilinear",
        )
    except KeyError as error:
        raise ModelError(where, FAMILIES["monai"][0], f"no {error.args[0]}") from None


def _count(arrays: Mapping[str, np.ndarray], pattern: str, start: int = 0) -> int:
    return next(n for n in itertools.count() if pattern.format(start + n) not in arrays)
