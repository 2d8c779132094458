"""Settings of networks and trainings: frozen, checked, and dumped as JSON beside every output."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from preprocessing.errors import SettingsError
from preprocessing.files import write_json

Config = TypeVar("Config")


@dataclass(frozen=True)
class ModelConfig:
    """One network, from raw intensities to logits; enough to build it again.

    Attributes:
      architecture: "ahnet" or its rivals "mcgcn", "unet2d", "unet3d".
      classes: number of output classes, background included.
      channels: number of image channels of the input volume.
      intensity_window: raw values (HU in CT) mapped to -1 and +1, clipped outside.
      activation: "softmax" (exclusive classes) or "sigmoid" (lesion heat map).
      width: factor on the channel counts of the published network.
      blocks: bottlenecks in each of the four residual stages (ResNet-50: 3, 4, 6, 3).
      growth: channels that each pseudo-3D layer of a dense block adds.
      dense_layers: pseudo-3D layers in each dense block.
      pvp_levels: levels of the pyramid volumetric pooling; 0 leaves it out.
      upsampling: "trilinear" or "transpose".
      norm: "batch", "sync_batch" (statistics over all replicas) or "group".
      dropout: rate before the last convolution.
    """

    architecture: str = "ahnet"
    classes: int = 3
    channels: int = 1
    intensity_window: tuple[float, float] = (-200.0, 250.0)
    activation: str = "softmax"
    width: float = 1.0
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    growth: int = 20
    dense_layers: int = 3
    pvp_levels: int = 4
    upsampling: str = "trilinear"
    norm: str = "batch"
    dropout: float = 0.0

    def __post_init__(self):
        _choice("architecture", self.architecture, ("ahnet", "mcgcn", "unet2d", "unet3d"))
        _choice("activation", self.activation, ("softmax", "sigmoid"))
        _choice("upsampling", self.upsampling, ("trilinear", "transpose"))
        _choice("norm", self.norm, ("batch", "sync_batch", "group"))
        for name in ("classes", "channels", "growth", "dense_layers"):
            _at_least(name, getattr(self, name), 1)
        _at_least("pvp_levels", self.pvp_levels, 0)
        if not self.width > 0:
            raise SettingsError("width", "a factor above 0", self.width)
        if not 0 <= self.dropout < 1:
            raise SettingsError("dropout", "a rate from 0 to below 1", self.dropout)
        if len(self.blocks) != 4 or min(self.blocks) < 1:
            raise SettingsError("blocks", "four counts of at least 1", self.blocks)
        low, high = self.intensity_window
        if not low < high:
            raise SettingsError("intensity_window", "low < high", self.intensity_window)


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a configuration as plain JSON types."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type[Config], content: dict[str, Any], where: object = "settings") -> Config:
    """Returns the configuration of class `kind` from plain JSON types, checked.

    Raises:
      SettingsError: an unknown setting (the nearest name is suggested) or a value out of range.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    for name in content:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            remedy = f"Did you mean {near[0]!r}?" if near else ""
            raise SettingsError(where, f"settings among {', '.join(names)}", repr(name), remedy)
    return kind(**{name: _tuples(value) for name, value in content.items()})


def save_config(path: str | Path, config: Any) -> None:
    """Writes a configuration as JSON."""
    write_json(path, to_dict(config))


def load_config(path: str | Path, kind: type[Config]) -> Config:
    """Reads a configuration of class `kind` from JSON.

    Raises:
      SettingsError: the file is not JSON, or its settings don't fit.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(path, "a JSON object of settings", error) from None
    if not isinstance(content, dict):
        raise SettingsError(path, "a JSON object of settings", type(content).__name__)
    return from_dict(kind, content, where=path)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        remedy = f"Did you mean {near[0]!r}?" if near else ""
        raise SettingsError(name, f"one of {', '.join(allowed)}", repr(value), remedy)


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise SettingsError(name, f"at least {least}", value)
