"""Warps of patches: in the plane by a field of positions in mm, alike in all slices; along z by slices."""

from __future__ import annotations

import tensorflow as tf
import tensorflow_addons.image as tfa_image

# Positions this far beyond the last voxel's centre still count as on it, in voxels: float32's
# rounding of a quarter turn must not cost a border.
TOLERANCE_VOXELS = 1e-3


def source_positions(
    shape_yx: tuple[int, int],
    spacing_mm_yx: tf.Tensor,
    rotation: tf.Tensor,
    zoom: tf.Tensor,
    displacement_mm: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns where each voxel of a warped plane comes from: [y, x, 2] float32, in voxels.

    Displaced first, then rotated and zoomed about the plane's centre; all in mm, so that a plane
    with other spacings along y than along x is rotated without being sheared.

    Args:
      shape_yx: voxels of the plane.
      spacing_mm_yx: [2] float32, of y and x.
      rotation: angle in radians by which the content turns, from y towards x (as `np.rot90` does
        by quarters).
      zoom: factor by which the content grows.
      displacement_mm: [y, x, 2] float32, or None for a rotation and zoom only.
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
    turned_mm = tf.reshape(tf.reshape(offset_mm, (-1, 2)) @ tf.transpose(back), tf.shape(grid))
    return turned_mm / spacing_mm_yx + centre


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
    x. The derivatives of its components add up to at most 4 `largest_mm` / `grid_mm`: below 1,
    no two voxels' positions change places.
    """
    along_y, along_x = (
        _spline_weights(size, spacing_mm_yx[axis] / grid_mm) for axis, size in enumerate(shape_yx)
    )
    shape = (tf.shape(along_y)[1], tf.shape(along_x)[1], 2)
    control_mm = tf.random.stateless_uniform(shape, seed, -largest_mm, largest_mm)
    return tf.einsum("yi,xj,ijc->yxc", along_y, along_x, control_mm)


def warped(
    arrays: dict[str, tf.Tensor], source: tf.Tensor, outside_value: float
) -> dict[str, tf.Tensor]:
    """Returns a patch's arrays resampled: image and heat map linearly, label from the nearest voxel.

    A voxel keeps its weight only where all that its intensity is mixed from has weight; elsewhere
    the image holds `outside_value` and label, weight and heat map 0.

    Args:
      arrays: `image` float32, `label` uint8, `weight` float32 (1 in the volume, 0 outside) and,
        if there is one, `heat_map` float32; all [z, y, x].
      source: see `source_positions`.
      outside_value: raw intensity beyond the volume.
    """
    slices, height, width = arrays["label"].shape
    last = tf.constant([height - 1, width - 1], tf.float32)
    grid = tf.stack(tf.meshgrid(tf.range(height), tf.range(width), indexing="ij"), -1)
    inside = tf.reduce_all(
        (source >= -TOLERANCE_VOXELS) & (source <= last + TOLERANCE_VOXELS), axis=-1
    )
    # Slices as channels of one plane: the field is looked up once for all of them.
    linear = [name for name in arrays if name != "label"]
    planes = tf.transpose(tf.concat([arrays[name] for name in linear], 0), (1, 2, 0))
    flow = tf.cast(grid, tf.float32) - source
    planes = tfa_image.dense_image_warp(planes[None], flow[None])[0]
    planes = tf.ensure_shape(planes, (height, width, slices * len(linear)))
    result = dict(zip(linear, tf.split(tf.transpose(planes, (2, 0, 1)), len(linear)), strict=True))

    nearest = tf.cast(tf.clip_by_value(tf.round(source), 0, last), tf.int32)
    rows = tf.reshape(tf.transpose(arrays["label"], (1, 2, 0)), (height * width, slices))
    label = tf.gather(rows, nearest[..., 0] * width + nearest[..., 1])
    result["label"] = tf.transpose(label, (2, 0, 1))
    return _with_padding(result, inside, outside_value)


def warped_along_z(
    arrays: dict[str, tf.Tensor], source_z: tf.Tensor, outside_value: float
) -> dict[str, tf.Tensor]:
    """Returns a patch's arrays with other slices, mixed and filled up as in `warped`.

    Args:
      arrays: as in `warped`.
      source_z: [z] float32, where each slice comes from, in slices.
      outside_value: raw intensity beyond the volume.
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
    return _with_padding(result, inside[:, None, None], outside_value)


def _with_padding(
    arrays: dict[str, tf.Tensor], inside: tf.Tensor, outside_value: float
) -> dict[str, tf.Tensor]:
    """Returns interpolated arrays with padding where they are mixed of any, or not inside."""
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
