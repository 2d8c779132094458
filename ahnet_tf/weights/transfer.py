"""Transfer of weights between networks, all or the encoder's: paired by name, shapes checked."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from ahnet_tf.networks.factory import named_weights
from preprocessing.errors import ModelError

ENCODER = re.compile(r"(stem|res[1-4]_block\d+)/")
STEM_KERNEL = "stem/kernel"

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class TransferReport:
    """Result of a transfer, as (name, shape) of the target's weights."""

    copied: Shapes  # weights and moving statistics taken from the source
    fresh: Shapes  # weights that keep their own initial values

    @staticmethod
    def of(model: keras.Model, copied: Collection[str]) -> TransferReport:
        """Returns the report for a network of which the named weights were copied."""
        shapes = [(name, tuple(w.shape)) for name, w in named_weights(model).items()]
        return TransferReport(
            copied=tuple(pair for pair in shapes if pair[0] in copied),
            fresh=tuple(pair for pair in shapes if pair[0] not in copied),
        )

    def summary(self) -> str:
        """Returns the numbers of weights in one line, with the layers of the fresh ones."""
        layers = dict.fromkeys(name.partition("/")[0] for name, _ in self.fresh)
        fresh = f"{len(self.fresh)} fresh ({', '.join(layers)})" if layers else "none fresh"
        return f"{len(self.copied)} copied, {fresh}"

    def __str__(self) -> str:
        lines = []
        for title, weights in (("copied", self.copied), ("fresh", self.fresh)):
            values = sum(int(np.prod(shape)) for _, shape in weights)
            lines.append(f"{title}: {len(weights)} weights, {values:,} values")
            lines += [f"  {name}  {'x'.join(map(str, shape))}" for name, shape in weights]
        return "\n".join(lines)


def encoder_weights(model: keras.Model) -> dict[str, tf.Variable]:
    """Returns the weights of the stem and residual stages by name; none for a U-Net."""
    return {name: value for name, value in named_weights(model).items() if ENCODER.match(name)}


def stem_kernel_3d(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Turns a 2D stem kernel [7, 7, 3 * channel, out] into the 3D one [3, 7, 7, channel, out].

    The channel axis of three slices becomes the slice axis (paper, section 3.2).
    """
    depth, ky, kx, channels, filters = shape
    return kernel.reshape(ky, kx, depth, channels, filters).transpose(2, 0, 1, 3, 4)


def transfer_encoder(source: keras.Model, target: keras.Model) -> TransferReport:
    """Copies the whole encoder, moving statistics included, from `source` into `target`.

    The source is an MC-GCN or another AH-Net, the target an AH-Net (or MC-GCN for a 2D source) of the
    same width, blocks, channels and kind of norm. Nothing is written unless every pair fits; else
    raises ModelError that lists all weights without a partner or of another shape.
    """
    wanted, given = encoder_weights(target), encoder_weights(source)
    problems = [f"{name} is missing in the source" for name in wanted if name not in given]
    problems += [f"{name} is missing in the target" for name in given if name not in wanted]
    if not wanted:
        problems.append("neither network has the encoder of MC-GCN and AH-Net")
    values = {}
    for name in wanted.keys() & given.keys():
        shape, value = tuple(wanted[name].shape), given[name].numpy()
        if name == STEM_KERNEL and value.ndim == 4 and len(shape) == 5:
            flat = (shape[1], shape[2], shape[0] * shape[3], shape[4])
            if value.shape == flat:
                value = stem_kernel_3d(value, shape)
        if value.shape != shape:
            problems.append(f"{name} is {value.shape} in the source and {shape} in the target")
        values[name] = value
    if problems:
        where, found = f"transfer from {source.name} to {target.name}", "; ".join(sorted(problems))
        remedy = "Give both the same width, blocks, channels and norm."
        raise ModelError(where, "the same encoder in both networks", found, remedy)
    for name, variable in wanted.items():
        variable.assign(values[name])
    return TransferReport.of(target, values)


def transfer_weights(source: keras.Model, target: keras.Model) -> TransferReport | None:
    """Copies every weight between networks that differ in nothing but the number of classes, if at all.

    Weights whose shapes depend on that number stay fresh. Returns None, and writes nothing, for
    networks with other weights.
    """
    given, wanted = named_weights(source), named_weights(target)
    classes = (source.output_shape[-1], target.output_shape[-1])
    if given.keys() != wanted.keys():
        return None
    shapes = {name: (given[name].shape, wanted[name].shape) for name in wanted}
    sizes = (pair for both in shapes.values() for pair in itertools.zip_longest(*both))
    if any(pair[0] != pair[1] and pair != classes for pair in sizes):
        return None
    fitting = [name for name, both in shapes.items() if both[0] == both[1]]
    for name in fitting:
        wanted[name].assign(given[name])
    return TransferReport.of(target, fitting)
