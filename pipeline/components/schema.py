"""The curated TFDV schema of a task's records, and the options of their statistics.

TFDV sees the scalars of each record, and of the voxels only the number of bytes.
"""

# TFX reads the annotations of `task_schema` at run time: no postponed evaluation here.

import math

import numpy as np
import tensorflow as tf
import tensorflow_data_validation as tfdv
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import standard_artifacts
from tfx.utils import io_utils

from pipeline.components.data_checks import MOST_CASES
from preprocessing.errors import InputError
from preprocessing.records.schema import (
    CASE_ID,
    INTENSITY_QUANTILES,
    PATCH_INDEX,
    SOURCE,
    SPACING_CLASS,
    SPACING_CLASSES_MM,
    scalar_features,
    voxel_features,
)
from preprocessing.tasks import Task
from preprocessing.volumes.intensities import SHARES

Range = tuple[float, float]

# The file name that TFX's components expect.
SCHEMA_FILE = "schema.pbtxt"

# Abdominal CT in HU: air below 0 and tissue above.
# A scan stored without its rescale intercept (-1024) fails on intensity_p01.
_CT: dict[str, Range] = {
    "spacing_x_mm": (0.3, 3.0),
    "spacing_y_mm": (0.3, 3.0),
    "spacing_z_mm": (0.3, 10.0),
    "intensity_p01": (-4096.0, 0.0),
    "intensity_p50": (-4096.0, 300.0),
    "intensity_p99": (0.0, 4096.0),
}
_DBT: dict[str, Range] = {
    "spacing_x_mm": (0.02, 0.5),
    "spacing_y_mm": (0.02, 0.5),
    "spacing_z_mm": (0.5, 2.0),
}
# Any medical volume, for the user's own tasks.
_ANY: dict[str, Range] = {f"spacing_{axis}_mm": (0.01, 20.0) for axis in "xyz"}
# By the names of the presets, without "_small".
CURATED_RANGES = {"ct_liver": _CT, "dbt_lesion": _DBT}

# Relative difference allowed between the spacing of a resampled volume and the task's.
SPACING_TOLERANCE = 0.02


def make_schema(task: Task) -> schema_pb2.Schema:
    """Returns the schema of the records of one task."""
    schema = schema_pb2.Schema()
    voxels = math.prod(task.patch_shape_zyx)
    for name in voxel_features(task):
        _add(schema, name, schema_pb2.BYTES).image_domain.SetInParent()
    for name in (CASE_ID, SOURCE):
        _add(schema, name, schema_pb2.BYTES)
    classes = [name for name, _ in SPACING_CLASSES_MM] + ["thick"]
    _add(schema, SPACING_CLASS, schema_pb2.BYTES).string_domain.value.extend(classes)
    _add_integer(schema, PATCH_INDEX, 0)
    for axis, size in zip("zyx", task.patch_shape_zyx, strict=True):
        _add_integer(schema, f"shape_{axis}", size, size)
        _add_integer(schema, f"valid_{axis}", 1, size)
        _add_integer(schema, f"origin_{axis}")
        _add_integer(schema, f"volume_{axis}", 1)
    for value, _ in enumerate(task.class_names):
        _add_integer(schema, f"voxels_label_{value}", 0, voxels)
        _add_integer(schema, f"case_voxels_label_{value}", 0)
    for name, (low, high) in _float_ranges(task).items():
        domain = _add(schema, name, schema_pb2.FLOAT).float_domain
        domain.min, domain.max = low, high
        domain.disallow_nan = domain.disallow_inf = True
    return schema


def statistics_options(task: Task, *, inferred: bool = False) -> tfdv.StatsOptions:
    """Returns StatisticsGen's options; all case ids are kept, so that splits can be compared.

    Without a schema, which declares the voxel bytes as images, only scalars are included.
    """
    return tfdv.StatsOptions(
        num_rank_histogram_buckets=MOST_CASES,
        feature_allowlist=scalar_features(task) if inferred else None,
    )


def read_schema(path: str, task: Task) -> str:
    """Reads a schema file; raises InputError without one, or if it does not fit a task's records."""
    try:
        text = io_utils.read_string_file(path)
        schema = text_format.Parse(text, schema_pb2.Schema())
    except (OSError, tf.errors.OpError) as error:
        raise InputError(path, "a readable schema", str(error).split("\n")[0]) from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InputError(path, "a schema as text (schema.pbtxt)", error) from None
    named = {feature.name for feature in schema.feature}
    wanted = {*scalar_features(task), *voxel_features(task)}
    odd = sorted(named - wanted) or sorted(set(scalar_features(task)) - named)
    if odd:
        found = f"{'one for' if odd[0] in named else 'none for'} {odd[0]}"
        raise InputError(path, f"entries for the features of task {task.name}", found)
    for axis, size in zip("zyx", task.patch_shape_zyx, strict=True):
        domain = tfdv.get_feature(schema, f"shape_{axis}").int_domain
        if not domain.min <= size <= (domain.max or size):
            expected = f"patches of {size} voxels along {axis}, as task {task.name} has"
            raise InputError(path, expected, f"{domain.min} to {domain.max}")
    return text


def schema_text(task: Task) -> str:
    """Returns the text of a task's curated schema."""
    return text_format.MessageToString(make_schema(task))


@component
def task_schema(text: Parameter[str], schema: OutputArtifact[standard_artifacts.Schema]) -> None:
    """A component that writes a schema for the others.

    The text is a parameter, because a pod of a cluster cannot read files of this machine.
    """
    io_utils.write_string_file(f"{schema.uri}/{SCHEMA_FILE}", text)


def _float_ranges(task: Task) -> dict[str, Range]:
    """Returns the least and largest value of each float feature."""
    stored = np.iinfo(task.image_dtype)
    ranges = dict.fromkeys(INTENSITY_QUANTILES, (float(stored.min), float(stored.max)))
    if task.normalization == "breast":
        # A breast fills at least 2 % of a volume, so intensity_p99 is at least its median. Intensities
        # that were not normalised fail there if they have fewer bits than the window.
        low, high = task.intensity_window
        start, end = (low + share * (high - low) for share in SHARES)
        ranges |= dict(
            zip(INTENSITY_QUANTILES, ((low, end), (low, high), (start, high)), strict=True)
        )
    ranges |= CURATED_RANGES.get(task.name.removesuffix("_small"), _ANY)
    resampled = {"keep": "", "in_plane": "xy", "full": "xyz"}[task.resampling]
    for axis, spacing_mm in zip("xyz", task.spacing_mm or (), strict=False):
        if axis in resampled:
            slack_mm = SPACING_TOLERANCE * spacing_mm
            ranges[f"spacing_{axis}_mm"] = (spacing_mm - slack_mm, spacing_mm + slack_mm)
    return ranges


def _add(schema: schema_pb2.Schema, name: str, kind: int) -> schema_pb2.Feature:
    """Adds a feature that every record has exactly once."""
    feature = schema.feature.add(name=name, type=kind)
    feature.presence.min_fraction = feature.presence.min_count = 1
    feature.shape.dim.add(size=1)
    return feature


def _add_integer(
    schema: schema_pb2.Schema, name: str, least: int | None = None, most: int | None = None
) -> None:
    domain = schema_pb2.IntDomain(min=least, max=most)
    _add(schema, name, schema_pb2.INT).int_domain.MergeFrom(domain)
