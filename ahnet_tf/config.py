"""Settings of networks and of their training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from preprocessing.errors import SettingsError
from preprocessing.settings import (
    SEED,
    SWITCH,
    WINDOW,
    Requirement,
    fraction,
    is_number,
    is_whole,
    number,
    one_of,
    whole,
)

# Start weights of a training other than a network's: those of Keras' ResNet-50.
IMAGENET = "imagenet"

_BELOW_ONE = Requirement("a fraction from 0 to below 1", lambda v: is_number(v) and 0 <= v < 1)

_LEVELS = (0, *range(2, 7))
_ODD = Requirement("an odd number of at least 1", lambda v: is_whole(v) and v >= 1 and v % 2 == 1)


def _setting(default: Any, requirement: Requirement) -> Any:
    return attrs.field(default=default, validator=requirement)


def _are_weights(values: Sequence[Any]) -> bool:
    return any(values) and all(is_number(value) and value >= 0 for value in values)


@attrs.frozen
class ModelConfig:
    """Settings of one network, from raw intensities to logits.

    Attributes:
      architecture: "ahnet", "mcgcn" (its 2D network), or the baselines "unet2d" and "unet3d".
      classes: number of outputs, one for each class with the background; or 1, a sigmoid's foreground.
      channels: number of image channels of the input volume.
      slices: odd number of neighbouring slices that the 2D networks see as channels.
      intensity_window: raw values (HU in CT) mapped to -1 and +1, clipped outside.
      activation: "softmax" (exclusive classes) or "sigmoid" (lesion heat map).
      width: factor on the channel counts of the published network.
      blocks: bottlenecks in each of the four residual stages (ResNet-50: 3, 4, 6, 3).
      growth: channels that each pseudo-3D layer of a dense block adds.
      dense_layers: pseudo-3D layers in each dense block.
      pvp_levels: levels of the pyramid volumetric pooling; 0 for none.
      pvp_border: pads each pooled projection as the public PyTorch code does; for imported weights.
      unet_levels: resolutions of the U-Nets, 2 to 6; 0 for the published ones, 5 in 2D and 4 in 3D.
      upsampling: "trilinear" or "transpose".
      norm: "batch", "sync_batch" (statistics over all replicas) or "group".
      dropout: rate before the last convolution.
      foreground_prior: foreground probability that a new sigmoid network predicts, 0.01 for example
        (the focal loss's prior, Lin et al. 2017, section 4.1); 0 for none, which predicts 1/2.
    """

    architecture: str = _setting("ahnet", one_of("ahnet", "mcgcn", "unet2d", "unet3d"))
    classes: int = _setting(3, whole(1))
    channels: int = _setting(1, whole(1))
    slices: int = _setting(3, _ODD)
    intensity_window: tuple[float, float] = _setting((-200.0, 250.0), WINDOW)
    activation: str = _setting("softmax", one_of("softmax", "sigmoid"))
    width: float = _setting(
        1.0, Requirement("a finite factor above 0", lambda v: is_number(v) and v > 0)
    )
    blocks: tuple[int, int, int, int] = _setting(
        (3, 4, 6, 3),
        Requirement(
            "four whole numbers of at least 1",
            lambda blocks: len(blocks) == 4 and all(is_whole(n) and n >= 1 for n in blocks),
        ),
    )
    growth: int = _setting(20, whole(1))
    dense_layers: int = _setting(3, whole(1))
    pvp_levels: int = _setting(4, whole(0))
    pvp_border: bool = _setting(False, SWITCH)
    # At most six levels: inputs are padded to multiples of 32, one voxel of the sixth.
    unet_levels: int = _setting(
        0, Requirement("0, or a whole number from 2 to 6", lambda v: is_whole(v) and v in _LEVELS)
    )
    upsampling: str = _setting("trilinear", one_of("trilinear", "transpose"))
    norm: str = _setting("batch", one_of("batch", "sync_batch", "group"))
    dropout: float = _setting(0.0, _BELOW_ONE)
    foreground_prior: float = _setting(0.0, _BELOW_ONE)

    @property
    def class_count(self) -> int:
        """Number of classes, background included, that the probabilities are of: 2 for one output."""
        return max(2, self.classes)

    def __attrs_post_init__(self) -> None:
        if self.classes == 1 and self.activation != "sigmoid":
            expected = "at least 2 with a softmax; one output needs a sigmoid (activation)"
            raise SettingsError("classes", expected, self.classes)
        if self.foreground_prior and self.activation != "sigmoid":
            expected = "0 with a softmax, whose classes share their probability"
            raise SettingsError("foreground_prior", expected, self.foreground_prior)


@attrs.frozen
class AugmentationConfig:
    """Magnitudes of the random augmentation of training patches; evaluation has none.

    Attributes:
      flip_probability: chance that a patch is mirrored, for y and for x separately.
      flip_z_probability: chance that the order of a patch's slices is reversed.
      warp_probability: chance that a patch is rotated, zoomed, shifted and warped, all slices alike.
      rotation_degrees: largest rotation in the plane, either way.
      zoom: largest in-plane magnification, as a fraction; 0.25 means factors 1 / 1.25 to 1.25.
      elastic_mm: largest displacement of a control point of the elastic warp, along y and x.
      elastic_grid_mm: distance between control points; above 4 `elastic_mm`, so planes do not fold.
      translation_mm: largest shift of a warped patch along y and along x.
      zoom_z: largest magnification of a warped patch along z, as a fraction, as `zoom` is.
      translation_slices: largest shift of a warped patch along z, in slices.
      intensity_shift: largest offset, as a fraction of the task's intensity window.
      intensity_scale: largest change of contrast about the window's centre, as a fraction.
      intensity_gamma: largest change of the gamma within the window; 0.25 means 1 / 1.25 to 1.25.
      intensity_curve: largest displacement of a random intensity curve within the window, as a
        fraction of it; from a twelfth on, tissues may swap their order of brightness.
      intensity_noise: largest standard deviation of Gaussian noise, as a fraction of the window.
      padding_probability: chance that a patch ends early along z, as a volume with fewer slices does.
    """

    flip_probability: float = _setting(0.5, fraction())
    flip_z_probability: float = _setting(0.0, fraction())
    warp_probability: float = _setting(0.3, fraction())
    rotation_degrees: float = _setting(15.0, number(0))
    zoom: float = _setting(0.15, number(0))
    elastic_mm: float = _setting(4.0, number(0))
    elastic_grid_mm: float = _setting(32.0, number(0))
    translation_mm: float = _setting(0.0, number(0))
    zoom_z: float = _setting(0.0, number(0))
    translation_slices: float = _setting(0.0, number(0))
    intensity_shift: float = _setting(0.05, number(0))
    intensity_scale: float = _setting(0.1, fraction())
    intensity_gamma: float = _setting(0.1, number(0))
    intensity_curve: float = _setting(0.0, number(0))
    intensity_noise: float = _setting(0.03, number(0))
    padding_probability: float = _setting(0.1, fraction())

    def __attrs_post_init__(self) -> None:
        if not 4 * self.elastic_mm < self.elastic_grid_mm:
            expected = f"less than a quarter of elastic_grid_mm ({self.elastic_grid_mm:g})"
            raise SettingsError("elastic_mm", expected, self.elastic_mm)


@attrs.frozen
class TrainingConfig(AugmentationConfig):
    """How one network is trained.

    Attributes (and those of `AugmentationConfig`):
      steps: optimizer steps.
      batch_size: patches per step, over all replicas together.
      slab_slices: consecutive slices, at a random place, that a step takes of each patch, so that a
        batch of the 2D network has slices of more places; 0 for all.
      learning_rate: Adam's rate after the warm-up.
      warmup_steps: steps over which the rate rises linearly from zero.
      decay: "cosine" or "constant" after the warm-up.
      final_learning_rate: rate at the last step, as a fraction of `learning_rate`.
      clip_norm: gradients are scaled down to this global norm; 0 for no clipping.
      loss: "focal", "cross_entropy", "dice_focal" (focal + soft Dice) or "heat_map_l2".
      gamma: focusing exponent of the focal loss.
      class_weights: a factor for each class on the loss of its voxels; None for no weights.
      weight_decay: decoupled (AdamW): each step takes this times the learning rate off every kernel,
        not off norms and biases.
      ema_momentum: fraction that each step keeps of a moving average of the weights, 0.999 for
        example; the average is evaluated and kept. 0: no average.
      precision: "float32", "mixed_bfloat16" or "mixed_float16" (float32 variables, 16-bit arithmetic;
        float16 with a dynamic loss scale).
      seed: seed of start weights, order of patches and augmentation.
      deterministic: the same settings on the same machine give bit-identical weights.
      replicas: devices that share a step; 0 means all GPUs, or one CPU if there are none.
      evaluate_every: steps between evaluations; the last step is always evaluated. 0: no evaluations
        and no split for them; the last network is the result.
      checkpoint_every: steps between checkpoints, from which a killed run resumes.
      log_every: steps between rows of history.csv.
      jit_compile: compile the step with XLA; faster on GPUs, many times slower on CPUs.
      recompute: compute the blocks of "ahnet" and "mcgcn" again in the backward pass instead of keeping
        their maps: less memory, more time.
    """

    steps: int = _setting(20000, whole(1))
    batch_size: int = _setting(2, whole(1))
    slab_slices: int = _setting(0, whole(0))
    learning_rate: float = _setting(
        1e-3, Requirement("a finite rate above 0", lambda v: is_number(v) and v > 0)
    )
    warmup_steps: int = _setting(200, whole(0))
    decay: str = _setting("cosine", one_of("cosine", "constant"))
    final_learning_rate: float = _setting(0.01, fraction())
    clip_norm: float = _setting(5.0, number(0))
    loss: str = _setting("focal", one_of("focal", "cross_entropy", "dice_focal", "heat_map_l2"))
    gamma: float = _setting(2.0, number(0))
    class_weights: tuple[float, ...] | None = _setting(
        None,
        Requirement(
            "null, or a number of at least 0 for each class with one above 0",
            lambda weights: weights is None or _are_weights(weights),
        ),
    )
    weight_decay: float = _setting(0.0, number(0))
    ema_momentum: float = _setting(0.0, _BELOW_ONE)
    precision: str = _setting("float32", one_of("float32", "mixed_bfloat16", "mixed_float16"))
    seed: int = _setting(0, SEED)
    deterministic: bool = _setting(False, SWITCH)
    replicas: int = _setting(0, whole(0))
    evaluate_every: int = _setting(1000, whole(0))
    checkpoint_every: int = _setting(500, whole(1))
    log_every: int = _setting(10, whole(1))
    jit_compile: bool = _setting(False, SWITCH)
    recompute: bool = _setting(False, SWITCH)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.warmup_steps >= self.steps:
            expected = f"fewer than the {self.steps} steps"
            remedy = "Give a smaller number, --set warmup_steps=N."
            raise SettingsError("warmup_steps", expected, self.warmup_steps, remedy)
        if self.replicas and self.batch_size % self.replicas:
            expected = f"a multiple of the {self.replicas} replicas"
            raise SettingsError("batch_size", expected, self.batch_size)
        if not self.weight_decay * self.learning_rate < 1:
            expected = f"less than 1 / learning_rate ({1 / self.learning_rate:g})"
            raise SettingsError("weight_decay", expected, self.weight_decay)
