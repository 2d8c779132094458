"""Where each weight of MC-GCN and AH-Net stands in PyTorch's state dicts: explicit pairs, no order.

Three families: torchvision's ResNet-50, MONAI's AHNet, and the authors' AH-Net (net3d.py, net2d.py).
PyTorch's kernels are [out, in, y, x(, z)], here [(z,) y, x, in, out].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

STATISTICS = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
AUTHORS_LEVELS = (8, 16, 32, 64)


@dataclass(frozen=True)
class Source:
    """Where a weight comes from.

    Attributes:
      keys: names in the state dict; several are concatenated after `convert`, along the last axis.
      convert: from PyTorch's layout to this project's.
      restore: the way back.
    """

    keys: tuple[str, ...]
    convert: Callable[[np.ndarray], np.ndarray] = np.asarray
    restore: Callable[[np.ndarray], np.ndarray] = np.asarray

    def read(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the weight in this project's layout."""
        parts = [self.convert(state[key]) for key in self.keys]
        return np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]

    def write(self, value: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the state dict's entries for the weight."""
        parts = np.split(value, len(self.keys), axis=-1) if len(self.keys) > 1 else [value]
        return {key: self.restore(part) for key, part in zip(self.keys, parts, strict=True)}


def _in_plane(key: str) -> Source:
    """A 3D kernel [out, in, y, x, 1] as [y, x, in, out]."""
    return Source(
        (key,),
        lambda kernel: kernel[..., 0].transpose(2, 3, 1, 0),
        lambda kernel: kernel.transpose(3, 2, 0, 1)[..., np.newaxis],
    )


def _flat(key: str) -> Source:
    """A 2D kernel [out, in, y, x] as [y, x, in, out]."""
    return Source(
        (key,),
        lambda kernel: kernel.transpose(2, 3, 1, 0),
        lambda kernel: kernel.transpose(3, 2, 0, 1),
    )


def _volume(key: str) -> Source:
    """A 3D kernel [out, in, y, x, z] as [z, y, x, in, out]."""
    return Source(
        (key,),
        lambda kernel: kernel.transpose(4, 2, 3, 1, 0),
        lambda kernel: kernel.transpose(4, 3, 1, 2, 0),
    )


def _across(key: str) -> Source:
    """A 1x1x3 kernel [out, in, 1, 1, z] as [z, 1, in, out]."""
    return Source(
        (key,),
        lambda kernel: kernel[:, :, 0].transpose(3, 2, 1, 0),
        lambda kernel: kernel.transpose(3, 2, 1, 0)[:, :, np.newaxis],
    )


def _transposed(key: str) -> Source:
    """A transposed kernel [in, out, y, x, z] as [z, y, x, in, out]."""
    return Source(
        (key,),
        lambda kernel: kernel.transpose(4, 2, 3, 0, 1),
        lambda kernel: kernel.transpose(3, 4, 1, 2, 0),
    )


def encoder_source(name: str, volumetric: bool, torchvision: bool = False) -> Source | None:
    """Returns where an encoder weight stands in a ResNet-50-like state dict, or None.

    Args:
      name: as in "res1_block1/conv1/norm/gamma".
      volumetric: whether the state dict's kernels are 3D.
      torchvision: whether the stem's norm is "bn1" as there, or "bn0".
    """
    layer, _, rest = name.partition("/")
    leaf = rest.rsplit("/", 1)[-1]
    if layer == "stem":
        if leaf == "kernel":
            return (_volume if volumetric else _flat)("conv1.weight")
        return Source((f"{'bn1' if torchvision else 'bn0'}.{STATISTICS[leaf]}",))
    found = re.fullmatch(r"res(\d)_block(\d+)", layer)
    if not found:
        return None
    prefix = f"layer{found[1]}.{int(found[2]) - 1}."
    part = rest.split("/")[0]
    if leaf == "kernel":
        key = "downsample.0" if part == "shortcut" else part
        return (_in_plane if volumetric else _flat)(f"{prefix}{key}.weight")
    # In the 3D networks a max pool stands between the shortcut's convolution and its norm.
    norm = f"bn{part[-1]}" if part != "shortcut" else f"downsample.{2 if volumetric else 1}"
    return Source((f"{prefix}{norm}.{STATISTICS[leaf]}",))


TRANSITIONS = {"up1": "up0", "up2": "up1", "up3": "up2", "up4": "trans1", "up5": "up3"}
DENSE_NORMS = {"norm1": "bn1", "conv1": "bn2", "norm3": "bn3", "norm4": "bn4"}


def ahnet_source(name: str, levels: int, authors: bool = False) -> Source | None:
    """Returns where a weight of AH-Net stands in MONAI's or the authors' state dict, or None.

    Args:
      name: of the weight here.
      levels: of the pyramid volumetric pooling.
      authors: the authors' names, with one projection a pool size, instead of MONAI's.
    """
    layer, *middle, leaf = name.split("/")
    if layer in TRANSITIONS or layer == "final":
        prefix = TRANSITIONS.get(layer, layer)
        if leaf != "kernel":
            return Source((f"{prefix}.norm.{STATISTICS[leaf]}",))
        return _transposed(f"{prefix}.up.weight") if middle else _in_plane(f"{prefix}.conv.weight")
    if layer.startswith("dense"):
        prefix = f"dense{int(layer[5:]) - 1}.denselayer{middle[0][5:]}"
        if leaf in STATISTICS:
            return Source((f"{prefix}.{DENSE_NORMS[middle[1]]}.{STATISTICS[leaf]}",))
        if leaf == "kernel3":
            return _across(f"{prefix}.conv3.weight")
        return _in_plane(f"{prefix}.conv{leaf[6:] or 1}.weight")
    if layer == "pvp":
        return _pyramid_source(leaf, levels, authors)
    return encoder_source(name, volumetric=True)


def _pyramid_source(leaf: str, levels: int, authors: bool) -> Source:
    def keys(part: str, kind: str) -> tuple[str, ...]:
        if authors:
            return tuple(f"psp.proj{size}.{kind}" for size in AUTHORS_LEVELS[:levels])
        return tuple(f"psp.{part}_modules.{i}.{kind}" for i in range(levels))

    if leaf == "kernel":
        kernel = _in_plane("")
        return Source(keys("project", "weight"), kernel.convert, kernel.restore)
    if leaf == "bias":
        return Source(keys("project", "bias"))
    if leaf == "up_bias":
        return Source(keys("up", "bias"))
    level = int(leaf.removeprefix("up_kernel")).bit_length() - 4
    return _in_plane(f"psp.up_modules.{level}.weight")


def mcgcn_source(name: str) -> Source | None:
    """Returns where a weight of MC-GCN stands in the authors' net2d.py (or MONAI's FCN), or None."""
    layer, *middle, leaf = name.split("/")
    if layer == "slice_projection":
        if leaf == "kernel":
            return _flat("init_proj.0.weight")
        return Source((f"init_proj.1.{STATISTICS[leaf]}",))
    if layer.startswith("gcn"):
        key = f"{layer}.conv_{middle[0][0]}{middle[0][-1]}"
        return _flat(f"{key}.weight") if leaf == "kernel" else Source((f"{key}.bias",))
    if layer.startswith("refine"):
        if middle == ["norm"]:
            return Source((f"{layer}.bn.{STATISTICS[leaf]}",))
        key = f"{layer}.{middle[0]}"
        return _flat(f"{key}.weight") if leaf == "kernel" else Source((f"{key}.bias",))
    return encoder_source(name, volumetric=False)
