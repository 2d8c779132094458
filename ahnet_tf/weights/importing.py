"""Recognises whose weights a file holds and builds the network that takes them over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from ahnet_tf.config import ModelConfig
from ahnet_tf.networks.factory import build_network, named_weights
from ahnet_tf.networks.transfer import STEM_KERNEL, TransferReport, encoder_weights, stem_kernel_3d
from ahnet_tf.weights.files import read_arrays
from ahnet_tf.weights.keras_resnet50 import keras_encoder_weight
from ahnet_tf.weights.torch_names import Source, ahnet_source, encoder_source, mcgcn_source
from preprocessing.errors import ModelError

FAMILIES = {
    "keras": "Keras' ResNet-50",
    "torchvision": "torchvision's ResNet-50",
    "monai": "MONAI's AHNet",
    "authors": "the authors' AH-Net",
    "authors2d": "the authors' MC-GCN",
}
# The keys whose presence tells the families apart, and names in them that no network here needs.
MARKS = (
    ("keras", "conv1_conv/kernel"),
    ("authors2d", "gcn1.conv_l1.weight"),
    ("authors", "psp.proj8.weight"),
    ("monai", "up0.conv.weight"),
    ("torchvision", "layer1.0.conv1.weight"),
)


def recognise(arrays: Mapping[str, np.ndarray], where: object = "weights") -> str:
    """Returns the family, a key of FAMILIES, of weights by name.

    Raises:
      ModelError: the names are of no known family.
    """
    for family, mark in MARKS:
        if mark in arrays:
            return family
    names = ", ".join(sorted(arrays)[:3]) or "nothing"
    raise ModelError(
        where, f"weights of {', '.join(FAMILIES.values())}", f"{len(arrays)} arrays ({names}, ...)"
    )


def import_network(
    path: str | Path, config: ModelConfig, *, seed: int = 0
) -> tuple[tf.keras.Model, ModelConfig, TransferReport]:
    """Builds a network with the weights of a file.

    ImageNet weights fill the encoder of the network that `config` describes. The weights of a whole
    network decide all that their shapes tell; `config` adds the rest, such as the intensity window.

    Raises:
      ModelError: an unreadable or foreign file, or weights that are missing or of another shape,
        every one listed.
    """
    arrays = read_arrays(path)
    family = recognise(arrays, path)
    whole = family in ("monai", "authors", "authors2d")
    if whole:
        config = _whole_config(arrays, family, config, path)
    model = build_network(config, seed=seed)
    wanted = named_weights(model) if whole else encoder_weights(model)
    if not wanted:
        raise ModelError(
            path, "a network with ResNet-50's encoder (ahnet, mcgcn)", config.architecture
        )
    read = _reader(arrays, family, config)
    values, problems = {}, []
    for name, variable in wanted.items():
        try:
            value = read(name)
        except KeyError as error:
            problems.append(f"{error.args[0]} (for {name}) is missing")
            continue
        if name == STEM_KERNEL and not whole:
            value = _slices_for_colours(value, tuple(variable.shape))
        if value.shape != tuple(variable.shape):
            problems.append(f"{name} is {value.shape} instead of {tuple(variable.shape)}")
        values[name] = value
    if problems:
        found = "; ".join(problems[:20]) + (
            f"; {len(problems)} in all" if len(problems) > 20 else ""
        )
        remedy = "Does --config describe a network of the same width and blocks?"
        raise ModelError(path, f"{FAMILIES[family]} that fits {config.architecture}", found, remedy)
    for name, value in values.items():
        wanted[name].assign(value)
    shapes = {name: tuple(variable.shape) for name, variable in named_weights(model).items()}
    report = TransferReport(
        copied=tuple((name, shape) for name, shape in shapes.items() if name in values),
        fresh=tuple((name, shape) for name, shape in shapes.items() if name not in values),
    )
    return model, config, report


def _reader(
    arrays: Mapping[str, np.ndarray], family: str, config: ModelConfig
) -> Callable[[str], np.ndarray]:
    """Returns the function from a weight's name here to its value; it raises KeyError(their name)."""
    if family == "keras":
        return lambda name: keras_encoder_weight(name, arrays)

    def source(name: str) -> Source:
        if family == "torchvision":
            return encoder_source(name, volumetric=False, torchvision=True)
        if family == "authors2d":
            return mcgcn_source(name)
        return ahnet_source(name, config.pvp_levels, authors=family == "authors")

    if family != "authors":
        return lambda name: source(name).read(arrays)

    def authors(name: str) -> np.ndarray:
        value = source(name).read(arrays)
        if name.startswith("final/") and config.pvp_levels:
            # The authors concatenate the largest pool first.
            axis = 2 if name == "final/kernel" else 0
            levels = config.pvp_levels
            pools, rest = np.split(value, [levels], axis=axis)
            value = np.concatenate([np.flip(pools, axis), rest], axis=axis)
        return value

    return authors


def _slices_for_colours(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Gives the three colours of an ImageNet stem [7, 7, 3, out] to three slices.

    Several image channels share each slice's kernel, so that equal channels give what one would.
    """
    channels = shape[-2] if len(shape) == 5 else shape[-2] // 3
    kernel = np.repeat(kernel, channels, axis=2) / np.float32(channels)
    if len(shape) == 5 and kernel.shape[2] == 3 * channels:
        return stem_kernel_3d(kernel, (3, *kernel.shape[:2], channels, kernel.shape[3]))
    return kernel


def _whole_config(
    arrays: Mapping[str, np.ndarray], family: str, config: ModelConfig, where: object
) -> ModelConfig:
    """Returns `config` with all that the shapes of a whole network's weights tell."""
    try:
        stem = arrays["conv1.weight"]
        blocks = tuple(_count(arrays, f"layer{i}.{{}}.conv1.weight") for i in range(1, 5))
        common = {"width": stem.shape[0] / 64, "blocks": blocks, "norm": "batch"}
        if family == "authors2d":
            projection = arrays.get("init_proj.0.weight")
            return dataclasses.replace(
                config,
                architecture="mcgcn",
                classes=arrays["gcn1.conv_l1.weight"].shape[0],
                channels=1,
                slices=3 if projection is None else projection.shape[1],
                **common,
            )
        levels = _count(arrays, "psp.project_modules.{}.weight")
        if family == "authors":
            levels = sum(f"psp.proj{size}.weight" in arrays for size in (8, 16, 32, 64))
        return dataclasses.replace(
            config,
            architecture="ahnet",
            classes=arrays["final.conv.weight"].shape[0],
            channels=stem.shape[1],
            growth=arrays["dense0.denselayer1.conv4.weight"].shape[0],
            dense_layers=_count(arrays, "dense0.denselayer{}.conv1.weight", start=1),
            pvp_levels=levels,
            pvp_border=True,
            upsampling="transpose" if "final.up.weight" in arrays else "trilinear",
            **common,
        )
    except KeyError as error:
        raise ModelError(where, FAMILIES[family], f"no {error.args[0]}") from None


def _count(arrays: Mapping[str, np.ndarray], pattern: str, start: int = 0) -> int:
    count = 0
    while pattern.format(start + count) in arrays:
        count += 1
    return count
