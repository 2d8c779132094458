"""Faulty data sets are stopped with a sentence that names the fault."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow_data_validation as tfdv
from attrs import evolve
from tfx.types import standard_artifacts
from tfx.utils import io_utils

from pipeline.components.anomaly_gate import find_faults
from pipeline.components.schema import (
    SCHEMA_FILE,
    make_schema,
    read_schema,
    schema_text,
    task_schema,
)
from preprocessing.errors import InputError
from preprocessing.records.schema import encode_patch, scalar_features, voxel_features
from preprocessing.tasks import PRESETS


@pytest.fixture
def statistics_of(task, statistics_of_records):
    """Gathers the statistics of patches as StatisticsGen does."""

    def gather(patches, written_for=task):
        return statistics_of_records([encode_patch(each, written_for) for each in patches], task)

    return gather


@pytest.fixture
def faults_of(statistics_of, task):
    """Finds what would stop a run of some splits, as ExampleValidator and the gate do."""

    def gathered(spans):
        return [
            {split: statistics_of(each).datasets[0] for split, each in span.items()}
            for span in spans
        ]

    def find(before=(), allow=(), written_for=task, together=(), learned=(), **patches_by_split):
        lists = {k: statistics_of(v, written_for) for k, v in patches_by_split.items()}
        faults = find_faults(
            {s: tfdv.validate_statistics(each, make_schema(task)) for s, each in lists.items()},
            {split: each.datasets[0] for split, each in lists.items()},
            {"train": statistics_of(before).datasets[0]} if before else {},
            task,
            allow,
            gathered(together),
            gathered(learned),
        )
        return list(faults)

    return find


def moved(patch, first, count, **changes):
    """Returns as many cases, numbered from `first` on, with something changed."""
    return [replace(patch, case_id=f"case-{first + n}", **changes) for n in range(count)]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_schema_holds_every_feature_of_a_record_once(name):
    names = [feature.name for feature in make_schema(PRESETS[name]).feature]
    expected = [*voxel_features(PRESETS[name]), *scalar_features(PRESETS[name])]
    assert sorted(names) == sorted(expected)


def test_intensities_of_normalised_tasks_lie_on_the_window():
    def ranges(task):
        domains = {each.name: each.float_domain for each in make_schema(task).feature}
        named = (domains[f"intensity_p{quantile}"] for quantile in ("01", "50", "99"))
        return [(domain.min, domain.max) for domain in named]

    low, high = 0.2 * 16383, 0.8 * 16383
    found = ranges(PRESETS["dbt_lesion"])
    np.testing.assert_allclose(found, [(0, high), (0, 16383), (low, 16383)], rtol=1e-6)
    # Records of before normalisation, whose brightest voxels were 1023 of 10 bits.
    assert ranges(evolve(PRESETS["dbt_lesion"], normalization="none")) == [(0, 65535)] * 3


def test_the_schema_component_writes_what_make_schema_gives(tmp_path, task):
    artifact = standard_artifacts.Schema()
    artifact.uri = str(tmp_path / "schema")
    executor = task_schema(text=schema_text(task)).executor_spec.executor_class
    executor().Do({}, {"schema": [artifact]}, {"text": schema_text(task)})
    assert io_utils.SchemaReader().read(f"{artifact.uri}/{SCHEMA_FILE}") == make_schema(task)


def test_a_sound_data_set_passes(faults_of, patch, capsys):
    assert faults_of(train=[patch, replace(patch, index=1)], eval=moved(patch, 1, 1)) == []
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
def test_one_bad_case_among_good_ones_stops_the_run(faults_of, patch, change, feature, words):
    bad = replace(patch, **change)
    # A label that is missing must be missing in every case.
    others = [] if "label" in feature else [patch] * 3
    found = [line for line in faults_of(train=[bad, *others]) if line.startswith(f"{feature}: ")]
    assert len(found) == 1
    assert words in found[0]
    assert found[0].endswith("(train split)")


def test_records_of_another_patch_size_are_stopped(faults_of, patch, task):
    half = (4, 32, 32)
    other = replace(
        patch, image_zyx=patch.image_zyx[:4], label_zyx=patch.label_zyx[:4], valid_zyx=half
    )
    found = faults_of(eval=[other], written_for=evolve(task, patch_shape_zyx=half))
    patch = "as patches of 8 x 32 x 32 voxels (z, y, x) are (eval split)"
    assert f"image: 8192 bytes long, not 16384, {patch}" in found
    assert f"label: 4096 bytes long, not 8192, {patch}" in found


def test_a_label_that_is_missing_in_the_evaluation_split_alone_is_a_warning(
    faults_of, patch, capsys
):
    healthy = moved(patch, 1, 1, case_label_voxels=(900, 100, 0))
    assert faults_of(train=[patch], eval=healthy) == []
    assert "case_voxels_label_2: label 2 (tumour) is present in no case (eval split)" in (
        capsys.readouterr().err
    )


def test_a_patient_in_both_splits_is_stopped_and_named(faults_of, patch):
    both = [*moved(patch, 0, 3), *moved(patch, 3, 2)]
    (found,) = faults_of(train=both, eval=moved(patch, 3, 4))
    assert found == "case_id: 2 cases are in both eval and train (case-3, case-4)"


def test_a_case_of_an_earlier_span_is_stopped_and_named(faults_of, patch):
    """Cases 0 and 1 were trained on in the span before, and 2 evaluated on."""
    earlier = [{"train": moved(patch, 0, 2), "eval": moved(patch, 2, 1)}]

    def found(train, evaluated, **spans):
        return faults_of(train=moved(patch, *train), eval=moved(patch, *evaluated), **spans)

    before = "of a span before"
    assert found((3, 2), (1, 1), together=earlier) == [
        f"case_id: 1 cases are in eval and in train {before} (case-1)"
    ]
    assert found((2, 2), (4, 1), together=earlier) == [
        f"case_id: 1 cases are in train and in eval {before} (case-2)"
    ]
    assert found((3, 2), (2, 1), together=earlier) == [
        f"case_id: 1 cases are in eval and in eval {before} (case-2)"
    ]
    assert found((0, 1), (3, 1), together=earlier) == []
    # A start model has learned from the cases of training; this run evaluates none of the others.
    assert found((3, 2), (1, 1), learned=earlier) == [
        f"case_id: 1 cases are in eval and in train {before} (case-1)"
    ]
    assert found((3, 2), (2, 1), learned=earlier) == []


@pytest.mark.parametrize(
    ("voxels", "words"),
    [
        ((7168, 32, 992), "992 voxels per case are tumour and only 32 other liver"),
        ((992, 7168, 32), "88 % of the voxels are not background"),
    ],
)
def test_swapped_labels_are_stopped(faults_of, patch, voxels, words):
    (found,) = faults_of(train=moved(patch, 0, 2, case_label_voxels=voxels))
    assert words in found


def test_drift_of_a_new_span_is_stopped_unless_it_is_allowed(faults_of, patch, capsys):
    """A scan stored without its rescale intercept: 1024 HU too bright."""
    before = moved(patch, 0, 8)
    brighter = moved(patch, 8, 8, intensity_quantiles=(-100.0, 924.0, 1134.0))
    found = faults_of(train=brighter, before=before)
    assert [line.partition(":")[0] for line in found] == ["intensity_p50", "intensity_p99"]
    assert "mean 924 over 8 cases against -100 over 8" in found[0]
    assert faults_of(train=brighter, before=before, allow=["drift"]) == []
    assert "warning: intensity_p50" in capsys.readouterr().err


def test_skew_between_training_and_evaluation_is_stopped(faults_of, patch):
    thin = moved(patch, 8, 8, spacing_mm=(10.0, 10.0, 9.81))
    shifted = moved(patch, 8, 8, intensity_quantiles=(-100.0, -100.0, 160.0))
    assert faults_of(train=moved(patch, 0, 8), eval=thin) == []
    (found,) = faults_of(train=moved(patch, 0, 8), eval=shifted)
    assert found.startswith("intensity_p99: ")
    assert "skew" in found


@pytest.mark.parametrize(("cases", "stopped"), [(2, False), (40, True)])
def test_a_difference_that_chance_explains_is_no_skew(faults_of, patch, cases, stopped):
    """A median of 0 or 200 HU by turns, once about 0 and once about 130: s = 100, 1.3 s apart.

    By Student's t with 2 and 78 degrees of freedom 19.2 and 3.1 standard errors are chance: 19.2 s of
    two cases each, and 0.69 s of forty each.
    """

    def around(first, centre):
        return [
            replace(each, intensity_quantiles=(-100.0, centre + 100 * (-1) ** number, 400.0))
            for number, each in enumerate(moved(patch, first, cases))
        ]

    found = faults_of(train=around(0, 0.0), eval=around(cases, 130.0))
    assert bool(found) is stopped


def test_a_schema_for_another_task_is_refused(tmp_path, task):
    path = tmp_path / "schema.pbtxt"
    path.write_text(schema_text(task), encoding="utf-8")
    assert read_schema(str(path), task) == schema_text(task)
    for other, words in (
        (evolve(task, class_names=("background", "liver")), "one for case_voxels_label_2"),
        (evolve(task, class_names=("background", *"abc")), "none for case_voxels_label_3"),
        (evolve(task, patch_shape_zyx=(4, 32, 32)), "found 8 to 8"),
    ):
        with pytest.raises(InputError, match=words):
            read_schema(str(path), other)
    path.write_text("feature: oh", encoding="utf-8")
    with pytest.raises(InputError, match="a schema as text"):
        read_schema(str(path), task)
    with pytest.raises(InputError, match="a readable schema"):
        read_schema(str(tmp_path / "none.pbtxt"), task)
