"""Names and layouts of weights in the PyTorch state dicts of torchvision's ResNet-50 and MONAI's AHNet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# Axes in PyTorch and here: i and o are input and output channels, c the channels of a norm or bias.
VECTOR = ("c", "c")
FLAT = ("oiyx", "yxio")
IN_PLANE = ("oiyxz", "yxio")
ACROSS_SLICES = ("oiyxz", "zxio")
VOLUME = ("oiyxz", "zyxio")
TRANSPOSED = ("ioyxz", "zyxio")

NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
DENSE_NORMS = {"norm1": "bn1", "conv1": "bn2", "norm3": "bn3", "norm4": "bn4"}
TRANSITIONS = {"up1": "up0", "up2": "up1", "up3": "up2", "up4": "trans1", "up5": "up3"}


@dataclass(frozen=True)
class Source:
    """Where a weight is stored in a PyTorch state dict."""

    # Names in the state dict; several are concatenated along this project's last axis.
    keys: tuple[str, ...]
    # Axes in PyTorch and in this project; one that only one of them has is of length one.
    layout: tuple[str, str] = VECTOR

    def read(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the weight in this project's layout.

        Raises KeyError if a key is missing, ValueError if an array has other axes.
        """
        theirs, ours = self.layout
        return np.concatenate([_reordered(state[key], theirs, ours) for key in self.keys], axis=-1)

    def write(self, value: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the entries of the state dict for a weight in this project's layout."""
        theirs, ours = self.layout
        parts = np.split(value, len(self.keys), axis=-1)
        return {
            key: _reordered(part, ours, theirs) for key, part in zip(self.keys, parts, strict=True)
        }


def encoder_source(name: str, *, volumetric: bool) -> Source | None:
    """Returns the source of an encoder weight ("res1_block1/conv1/norm/gamma"); None for others.

    `volumetric` selects MONAI's 3D kernels instead of torchvision's 2D ones.
    """
    layer, _, rest = name.partition("/")
    leaf = rest.rsplit("/", 1)[-1]
    if layer == "stem":
        if leaf == "kernel":
            return Source(("conv1.weight",), VOLUME if volumetric else FLAT)
        return Source((f"{'bn0' if volumetric else 'bn1'}.{NORM[leaf]}",))
    found = re.fullmatch(r"res(\d)_block(\d+)", layer)
    if not found:
        return None
    prefix = f"layer{found[1]}.{int(found[2]) - 1}."
    part = rest.split("/")[0]
    if leaf == "kernel":
        key = "downsample.0" if part == "shortcut" else part
        return Source((f"{prefix}{key}.weight",), IN_PLANE if volumetric else FLAT)
    # In the 3D networks there is a max pool between the shortcut's convolution and its norm.
    norm = f"bn{part[-1]}" if part != "shortcut" else f"downsample.{2 if volumetric else 1}"
    return Source((f"{prefix}{norm}.{NORM[leaf]}",))


def ahnet_source(name: str, levels: int) -> Source | None:
    """Returns the source of an AH-Net weight in MONAI's state dict; None if unknown.

    `levels` is the number of levels of the pyramid volumetric pooling.
    """
    layer, *middle, leaf = name.split("/")
    if layer in TRANSITIONS or layer == "final":
        prefix = TRANSITIONS.get(layer, layer)
        if leaf != "kernel":
            return Source((f"{prefix}.norm.{NORM[leaf]}",))
        if middle:
            return Source((f"{prefix}.up.weight",), TRANSPOSED)
        return Source((f"{prefix}.conv.weight",), IN_PLANE)
    if layer.startswith("dense"):
        prefix = f"dense{int(layer[5:]) - 1}.denselayer{middle[0][5:]}"
        if leaf in NORM:
            return Source((f"{prefix}.{DENSE_NORMS[middle[1]]}.{NORM[leaf]}",))
        if leaf == "kernel3":
            return Source((f"{prefix}.conv3.weight",), ACROSS_SLICES)
        return Source((f"{prefix}.conv{leaf[6:] or 1}.weight",), IN_PLANE)
    if layer == "pvp":
        return _pyramid_source(leaf, levels)
    return encoder_source(name, volumetric=True)


def _pyramid_source(leaf: str, levels: int) -> Source:
    if leaf.startswith("up_kernel"):
        level = int(leaf.removeprefix("up_kernel")).bit_length() - 4
        return Source((f"psp.up_modules.{level}.weight",), IN_PLANE)
    modules = "up_modules" if leaf == "up_bias" else "project_modules"
    kind = "weight" if leaf == "kernel" else "bias"
    keys = tuple(f"psp.{modules}.{level}.{kind}" for level in range(levels))
    return Source(keys, IN_PLANE if leaf == "kernel" else VECTOR)


def _reordered(array: np.ndarray, axes: str, wanted: str) -> np.ndarray:
    """Returns an array with axes `axes` in the order `wanted`; drops or adds axes of length one."""
    dropped = tuple(at for at, axis in enumerate(axes) if axis not in wanted)
    kept = [axis for axis in axes if axis in wanted]
    order = [kept.index(axis) for axis in wanted if axis in axes]
    added = tuple(at for at, axis in enumerate(wanted) if axis not in axes)
    return np.expand_dims(array.squeeze(dropped).transpose(order), added)
