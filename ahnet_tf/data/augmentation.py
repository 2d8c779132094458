"""Random augmentation of training patches, with labels moved alike; a function of the seed alone.

`ahnet_tf.config.AugmentationConfig` describes the magnitudes and their defaults. Warps are computed in
the plane in mm, the same for all slices, and along z in whole slices.
"""

from __future__ import annotations

import math

import tensorflow as tf

from ahnet_tf.config import AugmentationConfig
from ahnet_tf.data.image_warp import dense_image_warp
from preprocessing.tasks import Task

Arrays = dict[str, tf.Tensor]

# Segments of the random intensity curve: 75 HU each in the window of ct_liver.
CURVE_SEGMENTS = 6

# Positions this far beyond the last voxel's centre, in voxels, count as on it: the rounding of float32
# in a quarter turn must not cost a border.
TOLERANCE_VOXELS = 1e-3

# Magnitudes of a warp; it is left out if all of them are 0.
WARPS_IN_PLANE = ("rotation_degrees", "zoom", "elastic_mm", "translation_mm")
WARPS_ALONG_Z = ("zoom_z", "translation_slices")


def augment_patch(
    arrays: Arrays,
    spacing_mm_yx: tf.Tensor,
    seed: tf.Tensor,
    config: AugmentationConfig,
    task: Task,
) -> Arrays:
    """Returns a patch flipped, warped, with changed intensities and padded, the same for a seed.

    All arrays move alike: `image` [z, y, x, 1] float32 raw intensities, `label` [z, y, x] uint8,
    `weight` [z, y, x] float32 (1 in the volume, 0 in the padding) and, for lesions, `heat_map`
    [z, y, x] float32. Padding keeps its intensity. The spacing of y and x is float32 [2], the seed
    two integers; changes of magnitude 0 are left out.
    """
    arrays = arrays | {"image": arrays["image"][..., 0]}
    draw = tf.unstack(tf.random.stateless_uniform((7,), seed))
    flip_y, flip_x, *intensities, cut, length = draw
    warp, flip_z = tf.unstack(tf.random.stateless_uniform((2,), _derived(seed, 2)))
    flips = (
        (1, flip_y < config.flip_probability),
        (2, flip_x < config.flip_probability),
        (0, flip_z < config.flip_z_probability),
    )
    if config.flip_probability or config.flip_z_probability:
        arrays = _flip(arrays, flips)
    if config.warp_probability and any(
        getattr(config, name) for name in WARPS_IN_PLANE + WARPS_ALONG_Z
    ):
        arrays = tf.cond(
            warp < config.warp_probability,
            lambda: _warp(arrays, spacing_mm_yx, _derived(seed, 3), config, task),
            lambda: arrays,
        )
    image = _change_intensities(arrays["image"], intensities, seed, config, task)
    arrays = arrays | {"image": tf.where(arrays["weight"] > 0, image, arrays["image"])}
    if config.padding_probability:
        arrays = _pad_end(arrays, cut < config.padding_probability, length, task)
    return arrays | {"image": arrays["image"][..., None]}


def source_positions(
    shape_yx: tuple[int, int],
    spacing_mm_yx: tf.Tensor,
    rotation: tf.Tensor,
    zoom: tf.Tensor,
    displacement_mm: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the source position of each voxel of a warped plane: [y, x, 2] float32, in voxels.

    Positions are displaced, then rotated and zoomed about the plane's centre, all in mm, so that
    rotation does not shear a plane with different spacings along y and x. The content rotates by an
    angle in radians from y towards x (as `np.rot90` does by quarter turns) and grows by the factor
    `zoom`; the spacing is float32 [2], the displacement float32 [y, x, 2].
    """
    centre = (tf.constant(shape_yx, tf.float32) - 1) / 2
    grid = tf.stack(
        tf.meshgrid(*(tf.range(size, dtype=tf.float32) for size in shape_yx), indexing="ij"), -1
    )
    offset_mm = (grid - centre) * spacing_mm_yx
    if displacement_mm is not None:
        offset_mm += displacement_mm
    cos, sin = tf.cos(rotation), tf.sin(rotation)
    back = tf.stack([tf.stack([cos, sin]), tf.stack([-sin, cos])]) / zoom
    rotated_mm = tf.reshape(tf.reshape(offset_mm, (-1, 2)) @ tf.transpose(back), tf.shape(grid))
    return rotated_mm / spacing_mm_yx + centre


def elastic_displacement(
    shape_yx: tuple[int, int],
    spacing_mm_yx: tf.Tensor,
    largest_mm: float,
    grid_mm: float,
    seed: tf.Tensor,
) -> tf.Tensor:
    """Returns a smooth random displacement [y, x, 2] in mm, float32, the same for a seed.

    A cubic B-spline over a grid of control points (free-form deformation, Rueckert et al. 1999,
    https://doi.org/10.1109/42.796284), each displaced uniformly within +-`largest_mm` along y and
    x. The derivatives of its components add up to at most 4 `largest_mm` / `grid_mm`; below 1 the
    plane does not fold.
    """
    along_y, along_x = (
        _spline_weights(size, spacing_mm_yx[axis] / grid_mm) for axis, size in enumerate(shape_yx)
    )
    shape = (tf.shape(along_y)[1], tf.shape(along_x)[1], 2)
    control_mm = tf.random.stateless_uniform(shape, seed, -largest_mm, largest_mm)
    return tf.einsum("yi,xj,ijc->yxc", along_y, along_x, control_mm)


def warp_in_plane(arrays: Arrays, source: tf.Tensor, outside_value: float) -> Arrays:
    """Returns a patch's arrays resampled in the plane: linearly, labels from the nearest voxel.

    A voxel keeps its weight if every voxel that is interpolated into it has weight; elsewhere the image
    becomes `outside_value` and label, weight and heat map become 0.

    The arrays are those of `augment_patch`, all [z, y, x]; `source` comes from `source_positions`.
    """
    slices, height, width = arrays["label"].shape
    last = tf.constant([height - 1, width - 1], tf.float32)
    grid = tf.stack(tf.meshgrid(tf.range(height), tf.range(width), indexing="ij"), -1)
    inside = tf.reduce_all(
        (source >= -TOLERANCE_VOXELS) & (source <= last + TOLERANCE_VOXELS), axis=-1
    )
    # With slices as channels of one plane, all of them are resampled in one lookup.
    linear = [name for name in arrays if name != "label"]
    planes = tf.transpose(tf.concat([arrays[name] for name in linear], 0), (1, 2, 0))
    flow = tf.cast(grid, tf.float32) - source
    planes = dense_image_warp(planes[None], flow[None])[0]
    planes = tf.ensure_shape(planes, (height, width, slices * len(linear)))
    result = dict(zip(linear, tf.split(tf.transpose(planes, (2, 0, 1)), len(linear)), strict=True))

    nearest = tf.cast(tf.clip_by_value(tf.round(source), 0, last), tf.int32)
    rows = tf.reshape(tf.transpose(arrays["label"], (1, 2, 0)), (height * width, slices))
    label = tf.gather(rows, nearest[..., 0] * width + nearest[..., 1])
    result["label"] = tf.transpose(label, (2, 0, 1))
    return _fill_outside(result, inside, outside_value)


def warp_along_z(arrays: Arrays, source_z: tf.Tensor, outside_value: float) -> Arrays:
    """Returns a patch's arrays resampled along z, with arrays and padding as in `warp_in_plane`.

    `source_z` is the source position of each slice in slices, float32 [z].
    """
    last = arrays["label"].shape[0] - 1
    inside = (source_z >= -TOLERANCE_VOXELS) & (source_z <= last + TOLERANCE_VOXELS)
    position = tf.clip_by_value(source_z, 0.0, float(last))
    below = tf.cast(position, tf.int32)
    above = tf.minimum(below + 1, last)
    share = (position - tf.floor(position))[:, None, None]
    result = {
        name: (1 - share) * tf.gather(values, below) + share * tf.gather(values, above)
        for name, values in arrays.items()
        if name != "label"
    }
    result["label"] = tf.gather(arrays["label"], tf.cast(tf.round(position), tf.int32))
    return _fill_outside(result, inside[:, None, None], outside_value)


def _derived(seed: tf.Tensor, number: int) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(seed, number)


def _flip(arrays: Arrays, flips: tuple[tuple[int, tf.Tensor], ...]) -> Arrays:
    for axis, flip in flips:
        arrays = tf.cond(
            flip,
            lambda arrays=arrays, axis=axis: {
                name: tf.reverse(values, [axis]) for name, values in arrays.items()
            },
            lambda arrays=arrays: arrays,
        )
    return arrays


def _warp(
    arrays: Arrays,
    spacing_mm_yx: tf.Tensor,
    seed: tf.Tensor,
    config: AugmentationConfig,
    task: Task,
) -> Arrays:
    if any(getattr(config, name) for name in WARPS_IN_PLANE):
        source = _source_in_plane(tuple(arrays["label"].shape[1:]), spacing_mm_yx, seed, config)
        arrays = warp_in_plane(arrays, source, float(task.outside_value))
    if any(getattr(config, name) for name in WARPS_ALONG_Z):
        slices = arrays["label"].shape[0]
        growth, shift = tf.unstack(tf.random.stateless_uniform((2,), _derived(seed, 3), -1, 1))
        centre = (slices - 1) / 2
        offset = tf.range(slices, dtype=tf.float32) - centre - config.translation_slices * shift
        source_z = offset / tf.exp(math.log1p(config.zoom_z) * growth) + centre
        arrays = warp_along_z(arrays, source_z, float(task.outside_value))
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
            shape_yx, spacing_mm_yx, config.elastic_mm, config.elastic_grid_mm, _derived(seed, 1)
        )
    if config.translation_mm:
        largest = config.translation_mm
        shift_mm = tf.random.stateless_uniform((1, 1, 2), _derived(seed, 2), -largest, largest)
        displacement_mm = shift_mm if displacement_mm is None else displacement_mm + shift_mm
    return source_positions(
        shape_yx,
        spacing_mm_yx,
        math.radians(config.rotation_degrees) * angle,
        tf.exp(math.log1p(config.zoom) * growth),
        displacement_mm,
    )


def _change_intensities(
    image: tf.Tensor,
    draw: list[tf.Tensor],
    seed: tf.Tensor,
    config: AugmentationConfig,
    task: Task,
) -> tf.Tensor:
    low, high = task.intensity_window
    centre, width = (low + high) / 2, high - low
    if config.intensity_gamma:
        bend = tf.random.stateless_uniform((), _derived(seed, 4), -1, 1)
        exponent = tf.exp(math.log1p(config.intensity_gamma) * bend)
        # 0 and 1 are fixed points, so the curve is continuous at the window's ends.
        inside = tf.clip_by_value((image - low) / width, 1e-12, 1.0)
        image += width * (tf.exp(exponent * tf.math.log(inside)) - inside)
    if config.intensity_curve:
        largest, between = config.intensity_curve, CURVE_SEGMENTS - 1
        heights = tf.random.stateless_uniform((between,), _derived(seed, 5), -largest, largest)
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
        image += deviation * tf.random.stateless_normal(tf.shape(image), _derived(seed, 1))
    return image


def _pad_end(arrays: Arrays, cut: tf.Tensor, length: tf.Tensor, task: Task) -> Arrays:
    slices = arrays["label"].shape[0]
    shorter = 1 + tf.cast(length * (slices - 1), tf.int32)
    kept = (tf.range(slices) < tf.where(cut, shorter, slices))[:, None, None]
    return {
        name: tf.where(
            kept, values, tf.cast(task.outside_value if name == "image" else 0, values.dtype)
        )
        for name, values in arrays.items()
    }


def _fill_outside(arrays: Arrays, inside: tf.Tensor, outside_value: float) -> Arrays:
    """Returns interpolated arrays with padding wherever padding or the outside was mixed in."""
    kept = (arrays["weight"] >= 1 - TOLERANCE_VOXELS) & inside
    result = {name: values * tf.cast(kept, values.dtype) for name, values in arrays.items()}
    result["image"] = tf.where(kept, arrays["image"], outside_value)
    result["weight"] = tf.cast(kept, tf.float32)
    return result


def _spline_weights(size: int, voxel: tf.Tensor) -> tf.Tensor:
    """Returns the cubic B-spline weights [size, control point]; `voxel` in control distances."""
    position = tf.range(size, dtype=tf.float32)[:, None] * voxel
    points = tf.range(-1.0, tf.floor(position[-1, 0]) + 3)
    distance = tf.abs(position - points)
    near = 2 / 3 - distance**2 * (1 - distance / 2)
    far = tf.maximum(2 - distance, 0) ** 3 / 6
    return tf.where(distance < 1, near, far)
