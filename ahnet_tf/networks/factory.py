"""Builds networks from their configuration; names of their weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from ahnet_tf.config import ModelConfig
from ahnet_tf.keras_versions import Variable, layer_attributes
from ahnet_tf.networks.ahnet import ahnet_logits
from ahnet_tf.networks.initialization import initialise
from ahnet_tf.networks.inputs import CropInPlane, ForegroundPrior, IntensityWindow, PadInPlane
from ahnet_tf.networks.mcgcn import mcgcn_logits
from ahnet_tf.networks.unet import unet_logits
from preprocessing.settings import check_seed

ARCHITECTURES = {
    "ahnet": ahnet_logits,
    "mcgcn": mcgcn_logits,
    "unet2d": unet_logits,
    "unet3d": unet_logits,
}


# Layers use no Python control flow over tensors; converting them would double the time to build.
@tf.autograph.experimental.do_not_convert
def build_network(
    config: ModelConfig, *, seed: int | None = 0, name: str | None = None
) -> keras.Model:
    """Builds a network from raw intensities to logits.

    The model maps float32 [batch, z, y, x, channel], any z >= 1 and any y, x, to float32 logits
    [batch, z, y, x, class]: window, zeros in the plane up to a multiple of 32, network, crop. The 2D
    networks work slice by slice. Initial weights depend on `seed` and their own names only, so that
    networks with the same seed start from the same encoder; None leaves weights undefined, for a caller
    that assigns them all. `name` is by default the architecture.
    Raises SettingsError for a seed out of range.
    """
    if seed is not None:
        check_seed(seed, "seed")
    image = keras.Input((None, None, None, config.channels), dtype="float32", name="image")
    windowed = IntensityWindow(*config.intensity_window, name="window")(image)
    padded = PadInPlane(name="pad")(windowed)
    logits = ARCHITECTURES[config.architecture](padded, config)
    logits = CropInPlane(dtype="float32", name="crop")(logits, image)
    if config.foreground_prior:
        logits = ForegroundPrior(config.foreground_prior, name="prior")(logits)
    model = keras.Model(image, logits, name=name or config.architecture)
    if seed is not None:
        initialise(named_weights(model), config.architecture, seed)
    model.network_config = config
    return model


@contextlib.contextmanager
def precision(policy: str) -> Iterator[None]:
    """Builds networks under a Keras policy, "mixed_bfloat16" for example, inside the context."""
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def named_weights(model: keras.Model) -> dict[str, Variable]:
    """Returns the model's weights by name, as in "res1_block1/conv1/kernel".

    A name is the path of layer and attribute names, the same for models built, copied or loaded.
    """
    return dict(item for layer in model.layers for item in _weights_inside(layer, layer.name))


def _weights_inside(part: Any, path: str) -> Iterator[tuple[str, Variable]]:
    if isinstance(part, Variable):
        yield f"{path}/{part.name.rsplit('/', 1)[-1].removesuffix(':0')}", part
    elif isinstance(part, (list, tuple)):
        for item in part:
            inside = f"{path}/{item.name}" if isinstance(item, keras.layers.Layer) else path
            yield from _weights_inside(item, inside)
    elif isinstance(part, keras.layers.Layer):
        for name, value in layer_attributes(part).items():
            if not name.startswith("_"):
                yield from _weights_inside([value], path)
