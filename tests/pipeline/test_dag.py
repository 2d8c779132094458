"""The DAG that the settings describe, without a run; the digest of its code; the errors of its components."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.io.filesystems import FileSystems
from attrs import evolve
from ml_metadata import MetadataStore
from ml_metadata.proto.metadata_store_pb2 import ConnectionConfig
from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.dsl.compiler.compiler import Compiler
from tfx.dsl.components.base.base_beam_component import BaseBeamComponent
from tfx.dsl.io import fileio
from tfx.types import standard_artifacts

from ahnet_tf.data.records import find_records
from ahnet_tf.presets import run_config
from pipeline.components.evaluator import make_eval_config
from pipeline.components.trainer import tuner_fn
from pipeline.configs import (
    BEAM_ARGUMENTS,
    SERVING_PLATFORMS,
    PipelineSettings,
    beam_arguments,
    own_beam_options,
    pushed_models,
)
from pipeline.dag import ROOT, code_version, create_pipeline, serving_requests, sources
from pipeline.local.dag_runner import _own_error
from pipeline.local.preflight import check_launch
from pipeline.options import add_pipeline_options, pipeline_settings
from preprocessing.errors import InputError, PipelineError, SettingsError
from preprocessing.files import write_json
from preprocessing.records.schema import encode_patch
from preprocessing.tasks import PRESETS


@pytest.fixture
def settings(task, tmp_path):
    return PipelineSettings(
        input=str(tmp_path / "records"),
        output=str(tmp_path / "run"),
        task=task,
        config=run_config(task),
        thresholds={"liver": 0.8},
    )


def names(settings):
    pipeline = create_pipeline(settings)
    Compiler().compile(pipeline)
    return [node.id for node in pipeline.components]


def node(settings, name):
    (found,) = [each for each in create_pipeline(settings).components if each.id == name]
    return found


def test_settings_choose_the_components(settings):
    assert "ConvertVolumes" in names(evolve(settings, from_volumes=True))
    assert "SchemaGen" in names(evolve(settings, schema="inferred"))
    assert {"NewestSpans", "SpansBefore"} <= set(names(evolve(settings, spans=2)))
    warm = names(evolve(settings, warm_start=True, tuner_trials=3))
    assert {"EarlierModel", "Tuner", "Trainer3D"} <= set(warm)
    assert "Trainer2D" not in warm


def test_waivers_of_data_validation_repeat_no_conversion(settings):
    def conversion(*allow):
        changed = evolve(settings, from_volumes=True, allow=allow)
        return node(changed, "ConvertVolumes").exec_properties

    assert conversion("skew", "drift") == conversion()
    allowed = json.loads(conversion("skew", "gaps", "rejected")["settings"])["allow"]
    assert allowed == ["gaps", "rejected"]


def test_allowances_are_read_as_by_the_conversion(records):
    parser = argparse.ArgumentParser()
    add_pipeline_options(parser)
    parser.add_argument("--output", default="run")
    options = ["--input", str(records), "--allow", "drift, skew,,gaps"]
    parsed = pipeline_settings(parser.parse_args(options))
    assert parsed.allow == ("drift", "gaps", "skew")


@pytest.mark.parametrize("platform", SERVING_PLATFORMS)
def test_infra_validator_sends_records_to_tensorflow_serving(settings, platform):
    image = "registry:5000/tensorflow/serving:2.19.0"
    changed = evolve(settings, serving_image=image, serving_platform=platform)
    assert "ServingCheck" not in names(changed)
    validator = node(changed, "InfraValidator")
    assert json.loads(validator.exec_properties["serving_spec"]) == {
        "tensorflow_serving": {
            "image_name": "registry:5000/tensorflow/serving",
            "tags": ["2.19.0"],
        },
        platform: {},
    }
    assert "examples" in validator.inputs
    assert json.loads(validator.exec_properties["request_spec"]) == {
        "tensorflow_serving": {"signature_names": ["serialized_examples"]},
        "split_name": "eval",
        "num_examples": 3,
    }
    with pytest.raises(SettingsError, match="expected an Argo workflow, found another engine"):
        create_pipeline(changed, has_metadata=False)
    with pytest.raises(SettingsError, match="expected REPOSITORY:TAG, found 'tensorflow/serving'"):
        evolve(settings, serving_image="tensorflow/serving")


def test_heat_maps_above_the_limit_of_tfx_are_not_asked_for():
    assert serving_requests(PRESETS["dbt_lesion"]) is None
    small = evolve(PRESETS["dbt_lesion"], patch_shape_zyx=(16, 128, 128))
    assert serving_requests(small).num_examples == 3


def test_models_are_pushed_to_a_folder_of_their_name(settings):
    pusher = node(evolve(settings, name="liver"), "Pusher")
    destination = json.loads(pusher.exec_properties["push_destination"])
    folder = f"{settings.output}/serving_model/liver"
    assert destination == {"filesystem": {"base_directory": folder}}
    assert pushed_models("gs://bucket/run/", "liver") == "gs://bucket/run/serving_model/liver"
    baseline = create_pipeline(evolve(settings, name="liver"), has_metadata=False)
    (last,) = [each for each in baseline.components if each.id == "LastPushedModel"]
    assert last.exec_properties["pushed"] == folder


def test_no_training_before_data_validation(settings):
    for changes in ({}, {"warm_start": True}, {"spans": 3}, {"tuner_trials": 1}):
        pipeline = create_pipeline(evolve(settings, **changes))
        passed = {"AnomalyGate"}
        for each in pipeline.components:
            if passed & {upstream.id for upstream in each.upstream_nodes}:
                passed.add(each.id)
        learning = {"Trainer2D", "Trainer3D", "Tuner"} & {each.id for each in pipeline.components}
        assert learning <= passed


def test_beam_options_reach_every_component_on_beam(settings):
    options = ["--runner=FlinkRunner", "--flink_master=host:8081", "--parallelism=32"]
    pipeline = create_pipeline(
        evolve(settings, from_volumes=True), beam_arguments=beam_arguments(options)
    )
    on_beam = [each for each in pipeline.components if isinstance(each, BaseBeamComponent)]
    assert {each.id for each in on_beam} == {"ConvertVolumes", "StatisticsGen", "Evaluator"}
    assert pipeline.beam_pipeline_args == options
    assert beam_arguments([]) == list(BEAM_ARGUMENTS)
    threads = ["--direct_running_mode=multi_threading", "--direct_num_workers=4"]
    assert own_beam_options(beam_arguments(threads)) == threads
    assert "--direct_num_workers=1" not in beam_arguments(threads)


def test_lesions_are_scored_where_they_are_the_target(settings):
    config = make_eval_config(PRESETS["dbt_lesion"], {"lesion_recall": 0.7, "lesion": 0.2}, 0.01)
    (metrics,) = config.metrics_specs
    assert [metric.class_name for metric in metrics.metrics] == ["DicePerCase", "LesionsPerCase"]
    assert set(metrics.per_slice_thresholds) == {"lesion_recall", "dice_lesion"}
    with pytest.raises(SettingsError, match="names among liver, tumour, found 'lesion_recall'"):
        evolve(settings, thresholds={"lesion_recall": 0.7})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spans": -1}, "spans: expected a whole number of at least 0"),
        ({"tuner_steps": 0}, "tuner_steps: expected a whole number of at least 1"),
        ({"eval_fraction": 1.0}, "between 0 and 1"),
        ({"thresholds": {}}, "one or more of liver, tumour"),
        ({"thresholds": {"liver": 2}}, "a Dice from 0 to 1, found 2"),
    ],
)
def test_impossible_settings_are_refused(settings, change, words):
    with pytest.raises(SettingsError, match=words):
        evolve(settings, **change)


def test_several_workers_are_refused(settings, monkeypatch):
    cluster = {"worker": ["localhost:2222", "localhost:2223"]}
    task = {"type": "worker", "index": 0}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    with pytest.raises(SettingsError, match="pipeline: expected one process, found 2 workers"):
        check_launch(settings, [], [])
    assert not Path(settings.output).exists()
    with pytest.raises(SettingsError, match="Tuner: expected one process, found 2 workers"):
        tuner_fn(FnArgs())


def test_a_warm_start_needs_a_blessed_model_for_the_same_records(settings, records, task, tmp_path):
    run = Path(settings.output)
    run.mkdir()
    connection = ConnectionConfig()
    connection.sqlite.filename_uri = str(run / "metadata.sqlite")
    connection.sqlite.connection_mode = connection.sqlite.READWRITE_OPENCREATE
    store = MetadataStore(connection)

    def stored(kind, **properties) -> int:
        artifact = kind()
        artifact.uri = str(tmp_path)
        for name, value in properties.items():
            artifact.set_int_custom_property(name, value)
        artifact.type_id = store.put_artifact_type(artifact.artifact_type)
        return store.put_artifacts([artifact.mlmd_artifact])[0]

    model = stored(standard_artifacts.Model)
    stored(standard_artifacts.ModelBlessing, blessed=1, current_model_id=model)
    path = tmp_path / "Format-Serving" / "assets.extra" / "ahnet.json"
    path.parent.mkdir(parents=True)
    write_json(path, {"task": task.to_dict()})
    warm = evolve(settings, warm_start=True)
    check_launch(warm, [], [])
    write_json(path, {"task": evolve(task, patch_shape_zyx=(8, 16, 16)).to_dict()})
    with pytest.raises(SettingsError, match="--warm-start: expected a blessed model for records"):
        check_launch(warm, [], [])


RECORD_FILES = ("a.tfrecord", "b.tfrecord.gz", "c.gz", "d.tfrecord-00000-of-00010")


def test_trainings_and_pipelines_take_the_same_record_files(tmp_path, settings):
    others = ("a.tfrecord.0f.unfinished", "a.tfrecord.0f3a.tmp", "._a.tfrecord", ".b.gz", "a.txt")
    for name in (*RECORD_FILES, "task.json", *others):
        (tmp_path / name).touch()
    assert [Path(file).name for file in find_records(tmp_path)] == list(RECORD_FILES)
    source = json.loads(node(settings, "ImportExampleGen").exec_properties["input_config"])
    pattern = source["splits"][0]["pattern"]
    assert pattern.startswith("train/")
    path = f"{tmp_path}/{pattern.removeprefix('train/')}"
    (match,) = FileSystems.match([path])
    assert {Path(found.path).name for found in match.metadata_list} == set(RECORD_FILES)
    assert {Path(found).name for found in fileio.glob(path)} == set(RECORD_FILES)


def _fail(_):
    raise InputError("case 7", "a volume", "a hole")


def test_an_error_in_a_beam_worker_is_shown_as_it_was_raised():
    with (
        pytest.raises(PipelineError) as caught,
        _own_error("Evaluator"),
        beam.Pipeline(argv=list(BEAM_ARGUMENTS)) as pipeline,
    ):
        _ = pipeline | beam.Create([1]) | beam.Map(_fail)
    assert caught.value.found.endswith("InputError: case 7: expected a volume, found a hole")
    assert "Traceback" not in str(caught.value)
    assert str(Path(__file__)) not in str(caught.value)


def test_records_in_the_error_of_a_component_are_not_shown(patch, task):
    """TFMA puts all inputs of a signature that fails into its message."""
    records = [encode_patch(patch, task)] * 2
    with pytest.raises(PipelineError) as caught, _own_error("Evaluator"):
        raise ValueError(f"it failed; the inputs are: {records}, {'of this shape ' * 100}")
    assert caught.value.found.startswith("ValueError: it failed; the inputs are: [b'...', b'...'],")
    assert len(caught.value.found) < 510


def test_code_version_covers_what_a_training_imports_and_nothing_else():
    names = set(sources("pipeline.components.trainer"))
    needed = {
        "pipeline.components.trainer",
        "ahnet_tf.training.losses",
        "ahnet_tf.networks.ahnet",
        "serving.export.signatures",
    }
    assert needed | {"ahnet_tf", "ahnet_tf.networks", "preprocessing.records.schema"} <= names
    idle = {
        "preprocessing.convert",
        "ahnet_tf.evaluate",
        "serving.server",
        "pipeline.components.evaluator",
    }
    assert not idle & names


def test_other_code_scores_and_serves_again(settings, monkeypatch):
    """TFX does not execute a component again whose parameters are the same."""
    for version in "12":
        monkeypatch.setattr("pipeline.dag.code_version", lambda name, v=version: f"{name}:{v}")
        config = node(settings, "Evaluator").exec_properties["eval_config"]
        assert f"lesion_metrics:{version}" in config
        code = f"pipeline.components.serving_check:{version} serving.server:{version}"
        assert node(settings, "ServingCheck").exec_properties["code_version"] == code
    scored = {"pipeline.components.evaluator", "ahnet_tf.evaluation.froc"}
    assert scored <= set(sources("pipeline.components.lesion_metrics"))
    served = {"serving.embedded.batching", "serving.embedded.grpc_service"}
    assert served <= set(sources("serving.server"))


def test_code_version_is_stable_and_differs_between_modules():
    assert code_version("pipeline.components.trainer") == code_version(
        "pipeline.components.trainer"
    )
    assert code_version("pipeline.components.trainer") != code_version("ahnet_tf.training.losses")


def test_code_version_covers_the_template_of_the_model_card(monkeypatch):
    report = {"pipeline.components.report": ROOT / "pipeline" / "components" / "report.py"}
    monkeypatch.setattr("pipeline.dag.sources", lambda module: report)
    digest = code_version.__wrapped__
    before = digest("pipeline.components.report")
    read = Path.read_bytes

    def changed(path: Path) -> bytes:
        return read(path) + (b"changed" if path.suffix == ".jinja" else b"")

    monkeypatch.setattr(Path, "read_bytes", changed)
    assert digest("pipeline.components.report") != before
