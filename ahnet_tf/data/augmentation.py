"""Random changes of training patches that keep labels true; a function of the seed alone.

What a magnitude means, and what it is unless set otherwise: `ahnet_tf.config.AugmentationConfig`.
"""

from __future__ import annotations

import math

import tensorflow as tf

from ahnet_tf.config import AugmentationConfig
from ahnet_tf.data.spatial_transforms import (
    elastic_displacement,
    source_positions,
    warped,
    warped_along_z,
)
from preprocessing.tasks import Task

Arrays = dict[str, tf.Tensor]

# Straight pieces of the random curve of intensities: 75 HU each in the window of ct_liver.
CURVE_SEGMENTS = 6

# Settings of what a warp does: with all of them 0 there is none.
WARPS_IN_PLANE = ("rotation_degrees", "zoom", "elastic_mm", "translation_mm")
WARPS_ALONG_Z = ("zoom_z", "translation_slices")


def augmented(
    arrays: Arrays,
    spacing_mm_yx: tf.Tensor,
    seed: tf.Tensor,
    config: AugmentationConfig,
    task: Task,
) -> Arrays:
    """Returns a patch flipped, warped, with other intensities and cut short, the same for a seed.

    Whatever moves voxels moves all arrays alike. Padding keeps its intensity.

    Args:
      arrays: `image` [z, y, x, 1] float32 raw intensities, `label` [z, y, x] uint8, `weight`
        [z, y, x] float32 (1 in the volume, 0 in the padding) and, if there is one, `heat_map`
        [z, y, x] float32.
      spacing_mm_yx: [2] float32, voxel spacing of y and x.
      seed: two integers.
      config: how much may change; what has magnitude 0 is left out.
      task: gives the intensity window and the value of padding.
    """
    arrays = arrays | {"image": arrays["image"][..., 0]}
    draw = tf.unstack(tf.random.stateless_uniform((7,), seed))
    flip_y, flip_x, *intensities, cut, length = draw
    warp, flip_z = tf.unstack(tf.random.stateless_uniform((2,), _other(seed, 2)))
    flips = (
        (1, flip_y < config.flip_probability),
        (2, flip_x < config.flip_probability),
        (0, flip_z < config.flip_z_probability),
    )
    if config.flip_probability or config.flip_z_probability:
        arrays = _flipped(arrays, flips)
    if config.warp_probability and any(
        getattr(config, name) for name in WARPS_IN_PLANE + WARPS_ALONG_Z
    ):
        arrays = tf.cond(
            warp < config.warp_probability,
            lambda: _warped(arrays, spacing_mm_yx, _other(seed, 3), config, task),
            lambda: arrays,
        )
    image = _other_intensities(arrays["image"], intensities, seed, config, task)
    arrays = arrays | {"image": tf.where(arrays["weight"] > 0, image, arrays["image"])}
    if config.padding_probability:
        arrays = _cut_short(arrays, cut < config.padding_probability, length, task)
    return arrays | {"image": arrays["image"][..., None]}


def _other(seed: tf.Tensor, number: int) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(seed, number)


def _flipped(arrays: Arrays, flips: tuple[tuple[int, tf.Tensor], ...]) -> Arrays:
    for axis, flip in flips:
        arrays = tf.cond(
            flip,
            lambda arrays=arrays, axis=axis: {
                name: tf.reverse(values, [axis]) for name, values in arrays.items()
            },
            lambda arrays=arrays: arrays,
        )
    return arrays


def _warped(
    arrays: Arrays,
    spacing_mm_yx: tf.Tensor,
    seed: tf.Tensor,
    config: AugmentationConfig,
    task: Task,
) -> Arrays:
    if any(getattr(config, name) for name in WARPS_IN_PLANE):
        source = _source_in_plane(tuple(arrays["label"].shape[1:]), spacing_mm_yx, seed, config)
        arrays = warped(arrays, source, float(task.outside_value))
    if any(getattr(config, name) for name in WARPS_ALONG_Z):
        slices = arrays["label"].shape[0]
        growth, shift = tf.unstack(tf.random.stateless_uniform((2,), _other(seed, 3), -1, 1))
        centre = (slices - 1) / 2
        offset = tf.range(slices, dtype=tf.float32) - centre - config.translation_slices * shift
        source_z = offset / tf.exp(math.log1p(config.zoom_z) * growth) + centre
        arrays = warped_along_z(arrays, source_z, float(task.outside_value))
    return arrays


def _source_in_plane(
    shape_yx: tuple[int, int],
    spacing_mm_yx: tf.Tensor,
    seed: tf.Tensor,
    config: AugmentationConfig,
) -> tf.Tensor:
    angle, growth = tf.unstack(tf.random.stateless_uniform((2,), seed, -1, 1))
    displacement_mm = None
    if config.elastic_mm:
        displacement_mm = elastic_displacement(
            shape_yx, spacing_mm_yx, config.elastic_mm, config.elastic_grid_mm, _other(seed, 1)
        )
    if config.translation_mm:
        largest = config.translation_mm
        shift_mm = tf.random.stateless_uniform((1, 1, 2), _other(seed, 2), -largest, largest)
        displacement_mm = shift_mm if displacement_mm is None else displacement_mm + shift_mm
    return source_positions(
        shape_yx,
        spacing_mm_yx,
        math.radians(config.rotation_degrees) * angle,
        tf.exp(math.log1p(config.zoom) * growth),
        displacement_mm,
    )


def _other_intensities(
    image: tf.Tensor,
    draw: list[tf.Tensor],
    seed: tf.Tensor,
    config: AugmentationConfig,
    task: Task,
) -> tf.Tensor:
    low, high = task.intensity_window
    centre, width = (low + high) / 2, high - low
    if config.intensity_gamma:
        bend = tf.random.stateless_uniform((), _other(seed, 4), -1, 1)
        exponent = tf.exp(math.log1p(config.intensity_gamma) * bend)
        # Zero and one stay: the intensities outside the window join on.
        inside = tf.clip_by_value((image - low) / width, 1e-12, 1.0)
        image += width * (tf.exp(exponent * tf.math.log(inside)) - inside)
    if config.intensity_curve:
        largest, between = config.intensity_curve, CURVE_SEGMENTS - 1
        heights = tf.random.stateless_uniform((between,), _other(seed, 5), -largest, largest)
        position = CURVE_SEGMENTS * tf.clip_by_value((image - low) / width, 0.0, 1.0)
        hats = (tf.nn.relu(1 - tf.abs(position - knot)) for knot in range(1, CURVE_SEGMENTS))
        image += width * tf.add_n(
            [h * hat for h, hat in zip(tf.unstack(heights), hats, strict=True)]
        )
    if config.intensity_scale or config.intensity_shift:
        scale = 1 + config.intensity_scale * (2 * draw[0] - 1)
        shift = config.intensity_shift * width * (2 * draw[1] - 1)
        image = (image - centre) * scale + centre + shift
    if config.intensity_noise:
        deviation = config.intensity_noise * width * draw[2]
        image += deviation * tf.random.stateless_normal(tf.shape(image), _other(seed, 1))
    return image


def _cut_short(arrays: Arrays, cut: tf.Tensor, length: tf.Tensor, task: Task) -> Arrays:
    slices = arrays["label"].shape[0]
    shorter = 1 + tf.cast(length * (slices - 1), tf.int32)
    kept = (tf.range(slices) < tf.where(cut, shorter, slices))[:, None, None]
    return {
        name: tf.where(
            kept, values, tf.cast(task.outside_value if name == "image" else 0, values.dtype)
        )
        for name, values in arrays.items()
    }
