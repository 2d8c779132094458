"""Data sets with something wrong in them are stopped, and the sentence names what is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow_data_validation as tfdv
from apache_beam.options.pipeline_options import PipelineOptions
from tfx.types import standard_artifacts
from tfx.utils import io_utils

from pipeline.schema import SCHEMA_FILE, make_schema, make_validations, schema_text, task_schema
from pipeline.validation import check_anomalies
from preprocessing.errors import PipelineError
from preprocessing.records import scalar_features, voxel_features
from preprocessing.tasks import PRESETS


@pytest.fixture
def anomalies_of(tmp_path, task, write_records):
    """Finds the anomalies of patches as StatisticsGen and ExampleValidator do."""

    def find(patches, written_for=task):
        path = write_records(tmp_path / "split", patches, written_for)
        schema = make_schema(task)
        statistics = tfdv.generate_statistics_from_tfrecord(
            str(path),
            stats_options=tfdv.StatsOptions(schema=schema),
            pipeline_options=PipelineOptions(["--direct_running_mode=in_memory"]),
        )
        return tfdv.validate_statistics(
            statistics, schema, custom_validation_config=make_validations(task)
        )

    return find


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_schema_holds_every_feature_of_a_record_once(name):
    names = [feature.name for feature in make_schema(PRESETS[name]).feature]
    expected = [*voxel_features(PRESETS[name]), *scalar_features(PRESETS[name])]
    assert sorted(names) == sorted(expected)


def test_the_schema_component_writes_what_make_schema_gives(tmp_path, task):
    artifact = standard_artifacts.Schema()
    artifact.uri = str(tmp_path / "schema")
    executor = task_schema(text=schema_text(task)).executor_spec.executor_class
    executor().Do({}, {"schema": [artifact]}, {"text": schema_text(task)})
    assert io_utils.SchemaReader().read(f"{artifact.uri}/{SCHEMA_FILE}") == make_schema(task)


def test_a_sound_data_set_passes(anomalies_of, patch, capsys):
    check_anomalies({"train": anomalies_of([patch, replace(patch, index=1)])})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "feature", "words"),
    [
        ({"spacing_mm": (10.0, 10.0, 25.0)}, "spacing_z_mm", "25"),
        ({"intensity_quantiles": (np.nan, 0.0, 1.0)}, "intensity_p01", "NaN"),
        ({"valid_zyx": (9, 32, 32)}, "valid_z", "9"),
        ({"case_label_voxels": (900, 100, 0)}, "case_voxels_label_2", "tumour"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_bad_case_among_good_ones_stops_the_run(anomalies_of, patch, change, feature, words):
    bad = replace(patch, **change)
    # A label that is missing must be missing in every case.
    others = [] if "label" in feature else [patch] * 3
    with pytest.raises(PipelineError, match=f"{feature}: .*{words}.*train split"):
        check_anomalies({"train": anomalies_of([bad, *others])})


def test_records_of_another_patch_size_are_stopped(anomalies_of, patch, task):
    half = (4, 32, 32)
    other = replace(
        patch, image_zyx=patch.image_zyx[:4], label_zyx=patch.label_zyx[:4], valid_zyx=half
    )
    found = anomalies_of([other], written_for=replace(task, patch_shape_zyx=half))
    with pytest.raises(
        PipelineError, match="image: not 16384 bytes long, as patches of 8 x 32 x 32"
    ):
        check_anomalies({"eval": found})


def test_a_label_that_is_missing_in_the_evaluation_split_alone_is_a_warning(
    anomalies_of, patch, capsys
):
    healthy = replace(patch, case_label_voxels=(900, 100, 0))
    check_anomalies({"train": anomalies_of([patch]), "eval": anomalies_of([healthy])})
    assert "case_voxels_label_2: label 2 (tumour) is present in no case (eval split)" in (
        capsys.readouterr().err
    )
