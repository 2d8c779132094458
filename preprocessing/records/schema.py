"""Schema of a record: a patch as a tf.train.Example, encoded and parsed.

Voxels are stored raw (see `Task.image_dtype`), little-endian, in z, y, x order. All other features
are scalars, so that data validation can compute statistics of them.
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
_TRIPLES_ZYX = ("origin", "valid", "shape", "volume")

# Upper limits in mm of the slice spacing of "thin" and "medium" cases; others are "thick".
SPACING_CLASSES_MM = (("thin", 2.0), ("medium", 4.0))


@dataclass(frozen=True)
class Patch:
    """A box of voxels cut from one case."""

    image_zyx: np.ndarray  # raw intensities [z, y, x]
    label_zyx: np.ndarray  # label values [z, y, x], uint8
    case_id: str
    source: str
    index: int  # number of the patch in its case
    origin_zyx: tuple[int, ...]  # the patch's first voxel in the case's grid
    valid_zyx: tuple[int, ...]  # size of the part that counts, from the patch's first voxel on
    volume_shape_zyx: tuple[int, ...]  # size of the case's grid
    spacing_mm: tuple[float, float, float]  # voxel spacing of the case's grid (x, y, z)
    intensity_quantiles: tuple[float, ...]  # `INTENSITY_QUANTILES` of the whole case
    case_label_voxels: tuple[int, ...]  # voxels per label value in the whole case
    heat_map_zyx: np.ndarray | None = None  # uint8 [z, y, x], 255 for 1; None if not the target


def spacing_class(slice_spacing_mm: float) -> str:
    """Returns "thin", "medium" or "thick" for a slice spacing in mm."""
    for name, limit_mm in SPACING_CLASSES_MM:
        if slice_spacing_mm < limit_mm:
            return name
    return "thick"


def encode_patch(patch: Patch, task: Task) -> bytes:
    """Returns a patch as a serialized tf.train.Example, the same bytes for the same patch.

    Raises InputError if dtypes, shapes or label values do not match the task.
    """
    where = f"case {patch.case_id}"
    voxels = {IMAGE: patch.image_zyx, LABEL: patch.label_zyx}
    if patch.heat_map_zyx is not None:
        voxels[HEAT_MAP] = patch.heat_map_zyx
    if voxels.keys() != voxel_features(task).keys():
        found = ", ".join(voxels)
        raise InputError(where, f"voxels of {', '.join(voxel_features(task))}", found)
    features: dict[str, bytes | int | float] = {}
    for name, array in voxels.items():
        dtype = np.dtype(task.image_dtype if name == IMAGE else np.uint8)
        if (array.dtype, array.shape) != (dtype, task.patch_shape_zyx):
            expected = f"{name} patches of {dtype}, shape (z, y, x) {task.patch_shape_zyx}"
            raise InputError(where, expected, f"{array.dtype}, shape {array.shape}")
        features[name] = np.ascontiguousarray(array, dtype.newbyteorder("<")).tobytes()
    valid = patch.label_zyx[tuple(slice(size) for size in patch.valid_zyx)]
    counts = count_labels(valid, len(task.class_names))
    if sum(counts) != valid.size:
        raise InputError(where, f"label values below {len(task.class_names)}", int(valid.max()))
    features |= {
        CASE_ID: patch.case_id.encode(),
        SOURCE: patch.source.encode(),
        SPACING_CLASS: spacing_class(patch.spacing_mm[2]).encode(),
        PATCH_INDEX: patch.index,
    }
    shapes = (patch.origin_zyx, patch.valid_zyx, patch.image_zyx.shape, patch.volume_shape_zyx)
    for name, triple in zip(_TRIPLES_ZYX, shapes, strict=True):
        features |= {f"{name}_{axis}": int(n) for axis, n in zip("zyx", triple, strict=True)}
    for axis, spacing_mm in zip("xyz", patch.spacing_mm, strict=True):
        features[f"spacing_{axis}_mm"] = float(spacing_mm)
    features |= zip(INTENSITY_QUANTILES, map(float, patch.intensity_quantiles), strict=True)
    for value in range(len(task.class_names)):
        features[f"voxels_label_{value}"] = counts[value]
        features[f"case_voxels_label_{value}"] = int(patch.case_label_voxels[value])
    stored = {name: _feature(features[name]) for name in sorted(features)}
    example = tf.train.Example(features=tf.train.Features(feature=stored))
    return example.SerializeToString(deterministic=True)


def scalar_features(task: Task) -> list[str]:
    """Returns the names of all features except voxels."""
    return [name for name in specification(task) if name not in voxel_features(task)]


def voxel_features(task: Task) -> dict[str, int]:
    """Returns the features that hold voxels, with their bytes per voxel."""
    features = {IMAGE: np.dtype(task.image_dtype).itemsize, LABEL: 1}
    return features | ({HEAT_MAP: 1} if task.target == "heat_map" else {})


def parse_example(serialized: tf.Tensor, task: Task) -> dict[str, tf.Tensor]:
    """Parses one record; runs in a tf.data graph.

    Returns `image` [z, y, x, 1] in the task's stored dtype, `label` [z, y, x] uint8, `weight`
    [z, y, x] float32 (1 in the part that counts), `heat_map` [z, y, x] float32 in [0, 1]
    if it is the task's target, and every scalar feature by name.
    """
    features = tf.io.parse_single_example(serialized, specification(task))
    z, y, x = task.patch_shape_zyx
    image = tf.io.decode_raw(features.pop(IMAGE), tf.as_dtype(task.image_dtype))
    label = tf.io.decode_raw(features.pop(LABEL), tf.uint8)
    if task.target == "heat_map":
        stored = tf.reshape(tf.io.decode_raw(features.pop(HEAT_MAP), tf.uint8), (z, y, x))
        features[HEAT_MAP] = tf.cast(stored, tf.float32) / 255
    inside = [
        tf.sequence_mask(features[f"valid_{axis}"], size, tf.float32)
        for axis, size in zip("zyx", (z, y, x), strict=True)
    ]
    return features | {
        "image": tf.reshape(image, (z, y, x, 1)),
        "label": tf.reshape(label, (z, y, x)),
        "weight": tf.einsum("i,j,k->ijk", *inside),
    }


def specification(task: Task) -> dict[str, tf.io.FixedLenFeature]:
    """Returns the features of a record as TensorFlow parses them: each has exactly one value."""
    text = [*voxel_features(task), CASE_ID, SOURCE, SPACING_CLASS]
    whole = [PATCH_INDEX]
    whole += [f"{n}_{axis}" for n in _TRIPLES_ZYX for axis in "zyx"]
    for value in range(len(task.class_names)):
        whole += [f"voxels_label_{value}", f"case_voxels_label_{value}"]
    real = [f"spacing_{axis}_mm" for axis in "xyz"] + list(INTENSITY_QUANTILES)
    kinds = [(text, tf.string), (whole, tf.int64), (real, tf.float32)]
    return {name: tf.io.FixedLenFeature((), kind) for names, kind in kinds for name in names}


def _feature(value: bytes | int | float) -> tf.train.Feature:
    if isinstance(value, bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    if isinstance(value, int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
    return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
