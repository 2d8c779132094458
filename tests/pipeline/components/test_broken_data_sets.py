"""Broken data sets, each stopped by ExampleValidator and the gate with sentences of its own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_data_validation as tfdv
from apache_beam.options.pipeline_options import PipelineOptions
from tfx.components.example_validator.executor import Executor as ExampleValidator
from tfx.components.schema_gen.executor import Executor as SchemaGen
from tfx.types import standard_artifacts

from pipeline.components.anomaly_gate import (
    COMPARE,
    CONVERT,
    CORRECT,
    MOST_FAULTS,
    SEPARATE,
    stop_on_anomalies,
)
from pipeline.components.schema import (
    SCHEMA_FILE,
    make_schema,
    schema_text,
    statistics_options,
)
from preprocessing.errors import PipelineError
from preprocessing.records.schema import scalar_features

FIRST, ALL = slice(1), slice(None)


@pytest.fixture(scope="module")
def sound(phantom_records):
    """The records of converted phantoms by split: two cases each, 8 and 6 patches."""
    return {
        split: [
            record.numpy()
            for path in sorted((phantom_records / split).iterdir())
            for record in tf.data.TFRecordDataset(str(path))
        ]
        for split in ("train", "eval")
    }


@pytest.fixture
def refusal(tmp_path, task, statistics_of_records):
    """Returns the error about a data set; the components get artifacts as a pipeline gives them."""

    def made(kind, name):
        artifact = kind()
        artifact.uri = str(tmp_path / name)
        artifact.split_names = '["train", "eval"]'
        return artifact

    def validate(records, *, allow=(), inferred=False) -> PipelineError | None:
        statistics = made(standard_artifacts.ExampleStatistics, "statistics")
        for split, each in records.items():
            folder = tmp_path / "statistics" / f"Split-{split}"
            folder.mkdir(parents=True)
            found = statistics_of_records(each, task, inferred=inferred)
            (folder / "FeatureStats.pb").write_bytes(found.SerializeToString())
        schema = standard_artifacts.Schema()
        schema.uri = str(tmp_path / "schema")
        (tmp_path / "schema").mkdir()
        if inferred:
            how = {"infer_feature_shape": 1, "exclude_splits": "[]"}
            SchemaGen().Do({"statistics": [statistics]}, {"schema": [schema]}, how)
        else:
            (tmp_path / "schema" / SCHEMA_FILE).write_text(schema_text(task), encoding="utf-8")
        anomalies = made(standard_artifacts.ExampleAnomalies, "anomalies")
        ExampleValidator().Do(
            {"statistics": [statistics], "schema": [schema]},
            {"anomalies": [anomalies]},
            {"exclude_splits": "[]"},
        )
        inputs = {
            "examples": [made(standard_artifacts.Examples, "examples")],
            "statistics": [statistics],
            "anomalies": [anomalies],
        }
        settings = json.dumps({"task": task.to_dict(), "allow": list(allow)})
        try:
            stop_on_anomalies.EXECUTOR_SPEC.executor_class().Do(inputs, {}, {"settings": settings})
        except PipelineError as error:
            return error
        return None

    return validate


def changed(change, which):
    """Returns a function that changes some records."""

    def change_records(records):
        examples = [tf.train.Example.FromString(record) for record in records]
        for example in examples[which]:
            change(example.features.feature)
        return [example.SerializeToString() for example in examples]

    return change_records


def without(*names, which=ALL):
    def change(features):
        for name in names:
            del features[name]

    return changed(change, which)


def with_values(name, *values, kind, which=ALL):
    def change(features):
        features[name].Clear()
        getattr(features[name], f"{kind}_list").value.extend(values)

    return changed(change, which)


def several(*changes):
    def change_records(records):
        for change in changes:
            records = change(records)
        return records

    return change_records


def nothing(records):
    return []


def bare(records):
    return [tf.train.Example().SerializeToString() for _ in records]


IN_MM = "spacing_z_mm"
PATCH = "as patches of 8 x 32 x 32 voxels (z, y, x) are"
# What was done to the training or evaluation split, the sentences about it, and what to do.
BROKEN = {
    "no records to train on": (
        {"train": nothing},
        "no records (train split)",
        CORRECT,
    ),
    "no records to evaluate on": (
        {"eval": nothing},
        "no records (eval split)",
        CORRECT,
    ),
    "a spacing is missing": (
        {"train": without(IN_MM)},
        "spacing_z_mm: missing in all 8 records (train split)",
        CONVERT,
    ),
    "an intensity quantile is missing in the other split": (
        {"eval": without("intensity_p50")},
        "intensity_p50: missing in all 6 records (eval split)",
        CONVERT,
    ),
    "case ids are missing": (
        {"train": without("case_id")},
        "case_id: missing in all 8 records (train split)",
        CONVERT,
    ),
    "the case id of one record is missing": (
        {"eval": without("case_id", which=FIRST)},
        "case_id: missing in 1 of 6 records (eval split)",
        CONVERT,
    ),
    "counts of the background and of the tumour are missing": (
        {"train": without("case_voxels_label_0", "case_voxels_label_2")},
        "case_voxels_label_0: missing in all 8 records (train split); "
        "case_voxels_label_2: missing in all 8 records (train split)",
        CONVERT,
    ),
    "images are missing": (
        {"train": without("image")},
        "image: missing in all 8 records (train split)",
        CONVERT,
    ),
    "image and label are missing": (
        {"train": without("image", "label")},
        "image: Column is completely missing (train split); "
        "label: Column is completely missing (train split)",
        CONVERT,
    ),
    "a feature more": (
        {"eval": with_values("patient_age", 63, kind="int64")},
        "patient_age: no feature of task tiny_ct (eval split)",
        CONVERT,
    ),
    "case ids are numbers": (
        {"train": with_values("case_id", 7, kind="int64")},
        "case_id: int64 values instead of bytes (train split)",
        CONVERT,
    ),
    "case ids are empty": (
        {"train": with_values("case_id", b"", kind="bytes", which=FIRST)},
        "case_id: empty or no UTF-8 in some records (train split)",
        CONVERT,
    ),
    "case ids are no UTF-8": (
        {"eval": with_values("case_id", b"\xff\xfe", kind="bytes")},
        "case_id: empty or no UTF-8 in some records (eval split)",
        CONVERT,
    ),
    "a spacing is text": (
        {"train": with_values(IN_MM, b"10", kind="bytes")},
        "spacing_z_mm: bytes values instead of float (train split)",
        CONVERT,
    ),
    "a count is no whole number": (
        {"train": with_values("case_voxels_label_2", 0.0, kind="float")},
        "case_voxels_label_2: float values instead of int64 (train split)",
        CONVERT,
    ),
    "images are lists of numbers": (
        {"train": with_values("image", *range(10), kind="int64")},
        "image: int64 values instead of bytes (train split)",
        CONVERT,
    ),
    "two spacings": (
        {"eval": with_values(IN_MM, 10.0, 10.0, kind="float")},
        "spacing_z_mm: 2 values in a record instead of 1 (eval split)",
        CONVERT,
    ),
    "one image is cut off": (
        {"train": with_values("image", bytes(9), kind="bytes", which=FIRST)},
        f"image: 9 to 16384 bytes long, not 16384, {PATCH} (train split)",
        CONVERT,
    ),
    "label maps of two bytes a voxel": (
        {"eval": with_values("label", bytes(2 * 8192), kind="bytes")},
        f"label: 16384 bytes long, not 8192, {PATCH} (eval split)",
        CONVERT,
    ),
    "a spacing far from the task's": (
        {"train": with_values(IN_MM, 25.0, kind="float", which=FIRST)},
        "spacing_z_mm: Unexpectedly high value: 25>10.2(upto six significant digits) (train split)",
        CORRECT,
    ),
    "an intensity is not a number": (
        {"train": with_values("intensity_p01", np.nan, kind="float", which=FIRST)},
        "intensity_p01: Float feature has NaN values (train split)",
        CORRECT,
    ),
    "a patch larger than the task's": (
        {"train": with_values("valid_x", 33, kind="int64", which=FIRST)},
        "valid_x: Unexpectedly large value: 33 (train split)",
        CORRECT,
    ),
    "an unknown class of spacings": (
        {"eval": with_values("spacing_class", b"huge", kind="bytes")},
        "spacing_class: Examples contain values missing from the schema: huge (~100%) (eval split)",
        CORRECT,
    ),
    "nobody has a tumour": (
        {"train": with_values("case_voxels_label_2", 0, kind="int64")},
        "case_voxels_label_2: label 2 (tumour) is present in no case (train split)",
        CORRECT,
    ),
    "liver and tumour are swapped": (
        {
            "train": several(
                with_values("case_voxels_label_1", 10, kind="int64"),
                with_values("case_voxels_label_2", 900, kind="int64"),
            )
        },
        "labels: 900 voxels per case are tumour and only 10 other liver; the two may be swapped "
        "(train split)",
        CORRECT,
    ),
    "one case only, in both splits": (
        dict.fromkeys(("train", "eval"), with_values("case_id", b"only", kind="bytes")),
        "case_id: 1 cases are in both eval and train (only)",
        SEPARATE,
    ),
    "evaluation cases are brighter": (
        {
            "train": with_values("intensity_p99", 200.0, kind="float"),
            "eval": with_values("intensity_p99", 800.0, kind="float"),
        },
        "intensity_p99: mean 800 over 2 cases against 200 over 2 (at most 432 apart) "
        "(skew: eval split against train; --allow skew ignores it)",
        COMPARE,
    ),
    "two faults at once": (
        {
            "train": without("case_id"),
            "eval": with_values("valid_y", 99, kind="int64", which=FIRST),
        },
        "case_id: missing in all 8 records (train split); "
        "valid_y: Unexpectedly large value: 99 (eval split)",
        f"{CONVERT} {CORRECT}",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_data_set_ends_with_its_sentences(name, sound, refusal):
    changes, sentences, remedy = BROKEN[name]
    error = refusal({s: changes[s](each) if s in changes else each for s, each in sound.items()})
    assert error is not None
    assert error.where == "data validation"
    assert error.found == sentences
    assert error.remedy == remedy


def test_sound_records_pass(sound, refusal):
    assert refusal(sound) is None


def test_records_without_any_feature_give_a_message_of_limited_length(sound, refusal, task):
    error = refusal(sound | {"train": bare(sound["train"])})
    count = len(scalar_features(task)) + 2
    assert error.found.startswith("case_id: missing in all 8 records (train split); case_voxels_")
    assert error.found.endswith(f"(train split); and {count - MOST_FAULTS} more")
    assert error.found.count(";") == MOST_FAULTS


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("case_id"), "case_id: missing in all 8 records"),
        (without("source", which=FIRST), "source: missing in 1 of 8 records"),
        (without(IN_MM), "spacing_z_mm: missing in all 8 records"),
        (with_values(IN_MM, b"10", kind="bytes"), "spacing_z_mm: bytes values instead of float"),
    ],
)
def test_an_inferred_schema_does_not_excuse_the_features(sound, refusal, change, sentence):
    """SchemaGen takes what is there for right."""
    error = refusal(sound | {"train": change(sound["train"])}, inferred=True, allow=["skew"])
    assert f"{sentence} (train split)" in error.found.split("; ")


def test_sound_records_pass_with_an_inferred_schema(sound, refusal):
    assert refusal(sound, inferred=True, allow=["skew"]) is None


@pytest.mark.slow
def test_the_statistics_are_those_of_beam(sound, tmp_path, task, statistics_of_records):
    """The statistics of these tests come without a Beam job, which StatisticsGen runs."""
    options = statistics_options(task)
    options.schema = make_schema(task)
    path = str(tmp_path / "train.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for record in sound["train"]:
            writer.write(record)
    by_beam = tfdv.generate_statistics_from_tfrecord(
        path,
        stats_options=options,
        pipeline_options=PipelineOptions(["--direct_running_mode=in_memory"]),
    )
    assert statistics_of_records(sound["train"], task) == by_beam
