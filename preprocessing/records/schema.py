"""The tf.Example contract: the only place that knows the features' names.

A record is one patch. Voxels are stored raw (see `Task.image_dtype`), little-endian, in z, y, x
order; everything else is a scalar, which is what data validation looks at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from preprocessing.errors import InputError
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import count_labels

IMAGE = "image"
LABEL = "label"
HEAT_MAP = "heat_map"
CASE_ID = "case_id"
SOURCE = "source"
SPACING_CLASS = "spacing_class"
PATCH_INDEX = "patch_index"
INTENSITY_QUANTILES = {"intensity_p01": 0.01, "intensity_p50": 0.5, "intensity_p99": 0.99}

# Slice spacing in mm below which a case counts as "thin" or "medium"; "thick" above.
SPACING_CLASSES_MM = (("thin", 2.0), ("medium", 4.0))


@dataclass(frozen=True)
class Patch:
    """A box of voxels cut from one case.

    Attributes:
      image_zyx: raw intensities [z, y, x].
      label_zyx: label values [z, y, x], uint8.
      case_id: the case it was cut from; no patient identifier.
      source: the data set the case came from (for slices of the evaluation).
      index: number of the patch within its case.
      origin_zyx: the patch's first voxel in the case's grid.
      valid_zyx: extent [z, y, x] of the patch that lies in the volume, from its first voxel on;
        the rest is padding and has weight 0.
      volume_shape_zyx: size of the case's grid.
      spacing_mm: voxel spacing of the case's grid (x, y, z).
      intensity_quantiles: raw intensities of the whole case at `INTENSITY_QUANTILES`.
      case_label_voxels: voxels of the whole case a label value.
      heat_map_zyx: where the task's target is one, lesions as uint8 [z, y, x], 255 being 1; None
        otherwise.
    """

    image_zyx: np.ndarray
    label_zyx: np.ndarray
    case_id: str
    source: str
    index: int
    origin_zyx: tuple[int, int, int]
    valid_zyx: tuple[int, int, int]
    volume_shape_zyx: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    intensity_quantiles: tuple[float, ...]
    case_label_voxels: tuple[int, ...]
    heat_map_zyx: np.ndarray | None = None


def spacing_class(slice_spacing_mm: float) -> str:
    """Returns "thin", "medium" or "thick" for a slice spacing in mm."""
    for name, limit_mm in SPACING_CLASSES_MM:
        if slice_spacing_mm < limit_mm:
            return name
    return "thick"


def encode_patch(patch: Patch, task: Task) -> bytes:
    """Returns a patch as a serialized tf.train.Example, the same bytes for the same patch.

    Raises:
      InputError: dtypes, shapes or label values that are not the task's.
    """
    if patch.image_zyx.dtype != np.dtype(task.image_dtype) or patch.label_zyx.dtype != np.uint8:
        raise InputError(
            f"case {patch.case_id}",
            f"a {task.image_dtype} image and uint8 labels",
            f"{patch.image_zyx.dtype} and {patch.label_zyx.dtype}",
        )
    if (
        patch.image_zyx.shape != task.patch_shape_zyx
        or patch.label_zyx.shape != task.patch_shape_zyx
    ):
        raise InputError(
            f"case {patch.case_id}",
            f"patches of shape (z, y, x) {task.patch_shape_zyx}",
            f"image {patch.image_zyx.shape} and label {patch.label_zyx.shape}",
        )
    label = np.ascontiguousarray(patch.label_zyx)
    valid = label[tuple(slice(size) for size in patch.valid_zyx)]
    counts = count_labels(valid, len(task.class_names))
    if sum(counts) != valid.size:
        raise InputError(
            f"case {patch.case_id}",
            f"label values below {len(task.class_names)}",
            int(valid.max()),
        )
    heat_map = patch.heat_map_zyx
    if (heat_map is not None) != (task.target == "heat_map"):
        found = "none" if heat_map is None else "one"
        raise InputError(
            f"case {patch.case_id}",
            f"a heat map only where the target is one ({task.target})",
            found,
        )
    if heat_map is not None and (
        heat_map.dtype != np.uint8 or heat_map.shape != task.patch_shape_zyx
    ):
        raise InputError(
            f"case {patch.case_id}",
            f"a uint8 heat map of shape (z, y, x) {task.patch_shape_zyx}",
            f"{heat_map.dtype} of shape {heat_map.shape}",
        )
    little_endian = np.dtype(task.image_dtype).newbyteorder("<")
    features = {
        IMAGE: _bytes(np.ascontiguousarray(patch.image_zyx, little_endian).tobytes()),
        LABEL: _bytes(label.tobytes()),
        CASE_ID: _bytes(patch.case_id.encode()),
        SOURCE: _bytes(patch.source.encode()),
        SPACING_CLASS: _bytes(spacing_class(patch.spacing_mm[2]).encode()),
        PATCH_INDEX: _int(patch.index),
    }
    if heat_map is not None:
        features[HEAT_MAP] = _bytes(np.ascontiguousarray(heat_map).tobytes())
    for name, values in _triples(patch).items():
        for axis, value in zip("zyx", values, strict=True):
            features[f"{name}_{axis}"] = _int(value)
    for axis, value in zip("xyz", patch.spacing_mm, strict=True):
        features[f"spacing_{axis}_mm"] = _float(value)
    for name, value in zip(INTENSITY_QUANTILES, patch.intensity_quantiles, strict=True):
        features[name] = _float(value)
    for value, _ in enumerate(task.class_names):
        features[f"voxels_label_{value}"] = _int(counts[value])
        features[f"case_voxels_label_{value}"] = _int(patch.case_label_voxels[value])
    example = tf.train.Example(features=tf.train.Features(feature=dict(sorted(features.items()))))
    return example.SerializeToString(deterministic=True)


def scalar_features(task: Task) -> list[str]:
    """Returns the names of all features but the voxel bytes."""
    return [name for name in _specification(task) if name not in voxel_features(task)]


def voxel_features(task: Task) -> dict[str, int]:
    """Returns the names of the features that hold voxels, and their bytes a voxel."""
    features = {IMAGE: np.dtype(task.image_dtype).itemsize, LABEL: 1}
    return features | ({HEAT_MAP: 1} if task.target == "heat_map" else {})


def parse_example(serialized: tf.Tensor, task: Task) -> dict[str, tf.Tensor]:
    """Returns one record's tensors; runs inside a tf.data graph.

    Returns:
      `image` [z, y, x, 1] in the task's stored dtype, `label` [z, y, x] uint8, `weight`
      [z, y, x] float32 (1 in the volume, 0 in the padding), `heat_map` [z, y, x] float32 in [0, 1]
      where that is the task's target, and every scalar feature by name.
    """
    features = tf.io.parse_single_example(serialized, _specification(task))
    z, y, x = task.patch_shape_zyx
    image = tf.io.decode_raw(features.pop(IMAGE), tf.as_dtype(task.image_dtype))
    label = tf.io.decode_raw(features.pop(LABEL), tf.uint8)
    if task.target == "heat_map":
        stored = tf.reshape(tf.io.decode_raw(features.pop(HEAT_MAP), tf.uint8), (z, y, x))
        features[HEAT_MAP] = tf.cast(stored, tf.float32) / 255
    inside = [
        tf.cast(tf.range(size) < tf.cast(features[f"valid_{axis}"], tf.int32), tf.float32)
        for size, axis in zip((z, y, x), "zyx", strict=True)
    ]
    return features | {
        "image": tf.reshape(image, (z, y, x, 1)),
        "label": tf.reshape(label, (z, y, x)),
        "weight": tf.einsum("i,j,k->ijk", *inside),
    }


def _specification(task: Task) -> dict[str, tf.io.FixedLenFeature]:
    text = [*voxel_features(task), CASE_ID, SOURCE, SPACING_CLASS]
    whole = [PATCH_INDEX]
    whole += [f"{n}_{axis}" for n in ("origin", "valid", "shape", "volume") for axis in "zyx"]
    for value, _ in enumerate(task.class_names):
        whole += [f"voxels_label_{value}", f"case_voxels_label_{value}"]
    real = [f"spacing_{axis}_mm" for axis in "xyz"] + list(INTENSITY_QUANTILES)
    kinds = [(text, tf.string), (whole, tf.int64), (real, tf.float32)]
    return {name: tf.io.FixedLenFeature((), kind) for names, kind in kinds for name in names}


def _triples(patch: Patch) -> dict[str, tuple[int, ...]]:
    return {
        "origin": patch.origin_zyx,
        "valid": patch.valid_zyx,
        "shape": patch.image_zyx.shape,
        "volume": patch.volume_shape_zyx,
    }


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _int(value: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


def _float(value: float) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
