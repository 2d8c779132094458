"""Settings of networks and trainings: frozen, checked, and dumped as JSON beside every output."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from preprocessing.errors import SettingsError
from preprocessing.files import write_json

Config = TypeVar("Config")

# The coarsest level of six holds one voxel of 32 x 32: to that inputs are padded.
UNET_LEVELS = range(2, 7)


@dataclass(frozen=True)
class ModelConfig:
    """One network, from raw intensities to logits; enough to build it again.

    Attributes:
      architecture: "ahnet" or its rivals "mcgcn", "unet2d", "unet3d".
      classes: number of output classes, background included.
      channels: number of image channels of the input volume.
      slices: neighbouring slices that the 2D networks see as channels, an odd number.
      intensity_window: raw values (HU in CT) mapped to -1 and +1, clipped outside.
      activation: "softmax" (exclusive classes) or "sigmoid" (lesion heat map).
      width: factor on the channel counts of the published network.
      blocks: bottlenecks in each of the four residual stages (ResNet-50: 3, 4, 6, 3).
      growth: channels that each pseudo-3D layer of a dense block adds.
      dense_layers: pseudo-3D layers in each dense block.
      pvp_levels: levels of the pyramid volumetric pooling; 0 leaves it out.
      pvp_border: pads each pooled projection as the public PyTorch code does; for weights from there.
      unet_levels: resolutions of the U-Nets, 2 to 6; 0 for the published ones, 5 in 2D and 4 in 3D.
      upsampling: "trilinear" or "transpose".
      norm: "batch", "sync_batch" (statistics over all replicas) or "group".
      dropout: rate before the last convolution.
      foreground_prior: probability that a fresh sigmoid network gives foreground everywhere (the focal
        loss's prior, Lin et al. 2017, section 4.1), 0.01 for example; 0 leaves it at a half.
    """

    architecture: str = "ahnet"
    classes: int = 3
    channels: int = 1
    slices: int = 3
    intensity_window: tuple[float, float] = (-200.0, 250.0)
    activation: str = "softmax"
    width: float = 1.0
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    growth: int = 20
    dense_layers: int = 3
    pvp_levels: int = 4
    pvp_border: bool = False
    unet_levels: int = 0
    upsampling: str = "trilinear"
    norm: str = "batch"
    dropout: float = 0.0
    foreground_prior: float = 0.0

    def __post_init__(self):
        _choice("architecture", self.architecture, ("ahnet", "mcgcn", "unet2d", "unet3d"))
        _choice("activation", self.activation, ("softmax", "sigmoid"))
        _choice("upsampling", self.upsampling, ("trilinear", "transpose"))
        _choice("norm", self.norm, ("batch", "sync_batch", "group"))
        for name in ("classes", "channels", "growth", "dense_layers"):
            _at_least(name, getattr(self, name), 1)
        _at_least("pvp_levels", self.pvp_levels, 0)
        if self.unet_levels not in (0, *UNET_LEVELS):
            expected = f"0, or {UNET_LEVELS[0]} to {UNET_LEVELS[-1]}"
            raise SettingsError("unet_levels", expected, self.unet_levels)
        if self.slices < 1 or self.slices % 2 == 0:
            raise SettingsError("slices", "an odd number of at least 1", self.slices)
        if not self.width > 0:
            raise SettingsError("width", "a factor above 0", self.width)
        if not 0 <= self.dropout < 1:
            raise SettingsError("dropout", "a rate from 0 to below 1", self.dropout)
        if not 0 <= self.foreground_prior < 1:
            raise SettingsError(
                "foreground_prior", "a probability from 0 to below 1", self.foreground_prior
            )
        if self.foreground_prior and self.activation != "sigmoid":
            expected = "0 with a softmax, whose classes share their probability"
            raise SettingsError("foreground_prior", expected, self.foreground_prior)
        if len(self.blocks) != 4 or min(self.blocks) < 1:
            raise SettingsError("blocks", "four counts of at least 1", self.blocks)
        low, high = self.intensity_window
        if not low < high:
            raise SettingsError("intensity_window", "low < high", self.intensity_window)


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of training patches; every patch draws its own, evaluation sees none.

    Attributes:
      flip_probability: chance that a patch is mirrored, for each in-plane axis (y, x) by itself.
      flip_z_probability: chance that the order of a patch's slices is reversed.
      warp_probability: chance that a patch is rotated, zoomed, shifted and warped, all its slices alike.
      rotation_degrees: largest rotation in the plane, either way.
      zoom: largest in-plane magnification, as a fraction; 0.25 means factors 1 / 1.25 to 1.25.
      elastic_mm: largest displacement of a control point of the elastic warp, along y and x.
      elastic_grid_mm: distance between control points; above 4 `elastic_mm`, or planes could fold.
      translation_mm: largest shift of a warped patch along y and along x.
      zoom_z: largest magnification of a warped patch along z, as a fraction, as `zoom` is.
      translation_slices: largest shift of a warped patch along z, in slices.
      intensity_shift: largest offset, as a fraction of the task's intensity window.
      intensity_scale: largest change of contrast about the window's centre, as a fraction.
      intensity_gamma: largest change of the gamma within the window; 0.25 means 1 / 1.25 to 1.25.
      intensity_curve: largest displacement of a random curve of intensities within the window, as a
        fraction of it; from a twelfth of it on, tissues may swap which one is brighter.
      intensity_noise: largest standard deviation of Gaussian noise, as a fraction of the window.
      padding_probability: chance that a patch ends early along z, as tiles at a volume's end do.
    """

    flip_probability: float = 0.5
    flip_z_probability: float = 0.0
    warp_probability: float = 0.3
    rotation_degrees: float = 15.0
    zoom: float = 0.15
    elastic_mm: float = 4.0
    elastic_grid_mm: float = 32.0
    translation_mm: float = 0.0
    zoom_z: float = 0.0
    translation_slices: float = 0.0
    intensity_shift: float = 0.05
    intensity_scale: float = 0.1
    intensity_gamma: float = 0.1
    intensity_curve: float = 0.0
    intensity_noise: float = 0.03
    padding_probability: float = 0.1

    def __post_init__(self):
        for field in dataclasses.fields(AugmentationConfig):
            _number(field.name, getattr(self, field.name))
            _at_least(field.name, getattr(self, field.name), 0)
        chances = ("flip", "flip_z", "warp", "padding")
        for name in (*(f"{chance}_probability" for chance in chances), "intensity_scale"):
            _fraction(name, getattr(self, name))
        if not 4 * self.elastic_mm < self.elastic_grid_mm:
            raise SettingsError(
                "elastic_mm",
                f"less than a quarter of elastic_grid_mm ({self.elastic_grid_mm:g})",
                self.elastic_mm,
            )


@dataclass(frozen=True)
class TrainingConfig(AugmentationConfig):
    """How one network is trained; with the records and the seed, enough to repeat it.

    Attributes (and those of `AugmentationConfig`):
      steps: optimizer steps.
      batch_size: patches a step, over all replicas together.
      learning_rate: Adam's rate after the warm-up.
      warmup_steps: steps over which the rate rises linearly from zero.
      decay: "cosine", "polynomial" (power 0.9) or "constant" after the warm-up.
      final_learning_rate: rate at the last step, as a fraction of `learning_rate`.
      clip_norm: gradients are scaled down to this global norm; 0 leaves them.
      loss: "focal", "cross_entropy", "dice_focal" (focal + soft Dice) or "heat_map_l2".
      gamma: focusing exponent of the focal loss.
      class_weights: factor a class on its voxels' loss; None weighs all alike.
      weight_decay: decoupled (AdamW): each step takes this times the learning rate off every kernel;
        norms and biases are left alone.
      ema_momentum: evaluates and keeps a moving average of the weights, of which each step keeps this
        fraction, 0.999 for example; 0 keeps the weights themselves.
      precision: "float32", "mixed_bfloat16" or "mixed_float16" (float32 variables, 16 bit arithmetic;
        float16 with a loss scale that adapts itself).
      seed: start weights, order of patches and augmentation.
      deterministic: the same settings on the same machine give the same weights, bit for bit.
      replicas: devices that share a step; 0 means all GPUs, or one CPU where there is none.
      evaluate_every: steps between evaluations; the last step is always evaluated. 0: there are none,
        no split for them is needed, and the last network is the one that counts.
      checkpoint_every: steps between checkpoints, from which a killed run goes on.
      log_every: steps between rows of history.csv.
      jit_compile: compile the step with XLA; faster on GPUs, many times slower on CPUs.
    """

    steps: int = 20000
    batch_size: int = 2
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    decay: str = "cosine"
    final_learning_rate: float = 0.01
    clip_norm: float = 5.0
    loss: str = "focal"
    gamma: float = 2.0
    class_weights: tuple[float, ...] | None = None
    weight_decay: float = 0.0
    ema_momentum: float = 0.0
    precision: str = "float32"
    seed: int = 0
    deterministic: bool = False
    replicas: int = 0
    evaluate_every: int = 1000
    checkpoint_every: int = 500
    log_every: int = 10
    jit_compile: bool = False

    def __post_init__(self):
        super().__post_init__()
        _choice("decay", self.decay, ("cosine", "polynomial", "constant"))
        _choice("loss", self.loss, ("focal", "cross_entropy", "dice_focal", "heat_map_l2"))
        _choice("precision", self.precision, ("float32", "mixed_bfloat16", "mixed_float16"))
        for name in ("steps", "batch_size", "checkpoint_every", "log_every"):
            _whole(name, getattr(self, name), 1)
        for name in ("evaluate_every", "warmup_steps", "seed", "replicas"):
            _whole(name, getattr(self, name), 0)
        for name in ("clip_norm", "gamma", "weight_decay", "ema_momentum"):
            _number(name, getattr(self, name))
            _at_least(name, getattr(self, name), 0)
        _fraction("final_learning_rate", self.final_learning_rate)
        _number("learning_rate", self.learning_rate)
        if not self.learning_rate > 0:
            raise SettingsError("learning_rate", "a rate above 0", self.learning_rate)
        if self.warmup_steps >= self.steps:
            raise SettingsError(
                "warmup_steps", f"fewer than the {self.steps} steps", self.warmup_steps
            )
        if self.replicas and self.batch_size % self.replicas:
            raise SettingsError(
                "batch_size", f"a multiple of the {self.replicas} replicas", self.batch_size
            )
        if not self.weight_decay * self.learning_rate < 1:
            raise SettingsError(
                "weight_decay",
                f"less than 1 / learning_rate ({1 / self.learning_rate:g})",
                self.weight_decay,
            )
        if not self.ema_momentum < 1:
            raise SettingsError("ema_momentum", "a fraction from 0 to below 1", self.ema_momentum)
        for name in ("deterministic", "jit_compile"):
            if not isinstance(getattr(self, name), bool):
                raise SettingsError(name, "true or false", repr(getattr(self, name)))
        if self.class_weights is not None:
            if not isinstance(self.class_weights, tuple) or not self.class_weights:
                raise SettingsError("class_weights", "a number a class", repr(self.class_weights))
            for weight in self.class_weights:
                _number("class_weights", weight)
                _at_least("class_weights", weight, 0)
            if not any(self.class_weights):
                raise SettingsError("class_weights", "a weight above 0", self.class_weights)


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


def _fraction(name: str, value: Any) -> None:
    _number(name, value)
    if not 0 <= value <= 1:
        raise SettingsError(name, "a fraction from 0 to 1", value)


def _whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise SettingsError(name, f"a whole number of at least {least}", repr(value))
    _at_least(name, value, least)


def _number(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise SettingsError(name, "a finite number", repr(value))
