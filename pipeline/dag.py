"""The one DAG: data -> checked records -> 2D network -> 3D network -> scores -> pushed model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ml_metadata.proto.metadata_store_pb2 import ConnectionConfig
from tfx import components
from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.components.common.resolver import Resolver
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import example_gen_pb2, infra_validator_pb2, pusher_pb2, trainer_pb2
from tfx.types import Channel, standard_artifacts

from pipeline.beam_options import BEAM_ARGUMENTS
from pipeline.code_version import code_version
from pipeline.components.anomaly_gate import stop_on_anomalies
from pipeline.components.baseline import EarlierBlessedModel
from pipeline.components.convert_volumes import ConvertVolumes
from pipeline.components.evaluator import make_eval_config
from pipeline.components.example_validator import ExampleValidator
from pipeline.components.last_pushed import EvaluatorAgainstPushed, last_pushed_model
from pipeline.components.report import write_report
from pipeline.components.schema import (
    data_schema,
    make_validations,
    statistics_options,
    task_schema,
)
from pipeline.components.serving_check import answer_requests
from pipeline.components.spans import NewestSpans, SpanBefore, UnseenByModel
from pipeline.configs import RECORD_PATTERN, SPAN_FOLDER, PipelineSettings
from preprocessing.errors import SettingsError
from preprocessing.records.splits import SPLITS

# Patches that a served model has to answer, each of another case.
SERVING_REQUESTS = 3


def create_pipeline(
    settings: PipelineSettings,
    *,
    metadata: ConnectionConfig | None = None,
    has_metadata: bool = True,
    beam_arguments: Sequence[str] = BEAM_ARGUMENTS,
) -> Pipeline:
    """Returns the pipeline of one task; nothing runs and nothing is written yet.

    Args:
      settings: data and output may lie on another machine or in an object store.
      metadata: where the lineage is kept; None where the engine brings its own store.
      has_metadata: components can ask a store. Where they can't, a new model is compared with the one
        pushed last instead of the one blessed last, and nothing is cached.
      beam_arguments: Beam's command line for every component that runs on Beam.

    Raises:
      SettingsError: spans, a warm start or volumes without a store of metadata, which tells the earlier
        ones and what has been converted.
    """
    if not has_metadata and (settings.spans or settings.warm_start or settings.from_volumes):
        raise SettingsError(
            "--spans, --warm-start, --volumes",
            "an engine with a store of metadata",
            "one without",
            "With --engine kubeflow they work.",
        )
    source = _examples(settings)
    examples = source.outputs["examples"]
    checks, statistics = _checks(settings, examples)
    gate = checks[-1]
    # What is learned from and scored on: the newest data, with spans before it where there are any.
    learned, chosen = [], examples
    if settings.spans:
        newest = Resolver(
            strategy_class=NewestSpans,
            config={"spans": settings.spans},
            current=examples,
            examples=Channel(type=standard_artifacts.Examples),
        ).with_id("NewestSpans")
        newest.add_upstream_node(gate)
        learned, chosen = [newest], newest.outputs["examples"]
    trainers = _trainers(settings, examples, chosen, gate)
    model = trainers[-1].outputs["model"]
    serving_models = f"{_output(settings)}/serving_model"
    if has_metadata:
        evaluator_class = components.Evaluator
        baseline = Resolver(
            strategy_class=EarlierBlessedModel,
            current=model,
            model=Channel(type=standard_artifacts.Model),
            model_blessing=Channel(type=standard_artifacts.ModelBlessing),
        ).with_id("LatestBlessedModel")
    else:
        evaluator_class = EvaluatorAgainstPushed
        baseline = last_pushed_model(pushed=serving_models).with_id("LastPushedModel")
    evaluator = evaluator_class(
        examples=chosen,
        model=model,
        baseline_model=baseline.outputs["model"],
        eval_config=make_eval_config(settings.task, settings.thresholds, settings.largest_loss),
        example_splits=["eval"],
    ).with_id("Evaluator")
    serving = _serving_check(settings, model, examples)
    pusher = components.Pusher(
        model=model,
        model_blessing=evaluator.outputs["blessing"],
        infra_blessing=serving.outputs["blessing"],
        push_destination=pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=serving_models)
        ),
    )
    report = write_report(
        examples=examples,
        statistics=statistics,
        model=model,
        evaluation=evaluator.outputs["evaluation"],
        blessing=evaluator.outputs["blessing"],
        serving=serving.outputs["blessing"],
        pushed_model=pusher.outputs["pushed_model"],
        manifest=source.outputs.get("manifest"),
        settings=_report_settings(settings),
    ).with_id("Report")
    nodes = [*learned, *trainers, baseline, evaluator, serving, pusher, report]
    return Pipeline(
        pipeline_name=settings.name,
        pipeline_root=f"{_output(settings)}/artifacts",
        components=[source, *checks, *nodes],
        enable_cache=has_metadata,
        metadata_connection_config=metadata,
        beam_pipeline_args=list(beam_arguments),
    )


def _output(settings: PipelineSettings) -> str:
    return settings.output.rstrip("/")


def _examples(settings: PipelineSettings) -> BaseNode:
    """Returns the component that brings the records: their conversion, or their import."""
    if settings.from_volumes:
        conversion = {
            "task": settings.task.to_dict(),
            "seed": settings.config.stages["2d"].training.seed,
            "eval_fraction": settings.eval_fraction,
            "allow": list(settings.allow),
            "code_version": code_version("preprocessing.convert"),
        }
        return ConvertVolumes(settings.input, conversion, settings.spans)
    folder = f"{SPAN_FOLDER}/" if settings.spans else ""
    return components.ImportExampleGen(
        input_base=settings.input,
        input_config=example_gen_pb2.Input(
            splits=[
                example_gen_pb2.Input.Split(name=split, pattern=f"{folder}{split}/{RECORD_PATTERN}")
                for split in SPLITS
            ]
        ),
    )


def _checks(settings: PipelineSettings, examples: Channel) -> tuple[list[BaseNode], Channel]:
    """Returns the components of data validation, the gate last, and the channel of statistics."""
    if settings.schema == "inferred":
        statistics = components.StatisticsGen(
            examples=examples, stats_options=statistics_options(settings.task, inferred=True)
        )
        schema = components.SchemaGen(
            statistics=statistics.outputs["statistics"], infer_feature_shape=True
        )
        first = [statistics, schema]
    else:
        schema = task_schema(text=data_schema(settings)).with_id("TaskSchema")
        statistics = components.StatisticsGen(
            examples=examples,
            schema=schema.outputs["schema"],
            stats_options=statistics_options(settings.task),
        )
        first = [schema, statistics]
    found = statistics.outputs["statistics"]
    validator = ExampleValidator(
        statistics=found,
        schema=schema.outputs["schema"],
        custom_validation_config=make_validations(
            settings.task, with_voxels=settings.schema != "inferred"
        ),
    )
    before = []
    if settings.spans:
        before = [
            Resolver(
                strategy_class=SpanBefore,
                current=examples,
                examples=Channel(type=standard_artifacts.Examples),
                statistics=Channel(type=standard_artifacts.ExampleStatistics),
            ).with_id("SpanBefore")
        ]
    content = {"task": settings.task.to_dict(), "allow": list(settings.allow)}
    gate = stop_on_anomalies(
        examples=examples,
        statistics=found,
        anomalies=validator.outputs["anomalies"],
        baseline=before[0].outputs["statistics"] if before else None,
        settings=json.dumps(
            content | {"code_version": code_version("pipeline.components.anomaly_gate")}
        ),
    ).with_id("AnomalyGate")
    return [*first, validator, *before, gate], found


def _trainers(
    settings: PipelineSettings, examples: Channel, chosen: Channel, gate: BaseNode
) -> list[BaseNode]:
    """Returns what leads to the 3D network, whose Trainer is the last."""
    if settings.warm_start:
        start = Resolver(
            strategy_class=UnseenByModel,
            current=examples,
            model=Channel(type=standard_artifacts.Model),
            model_blessing=Channel(type=standard_artifacts.ModelBlessing),
        ).with_id("EarlierModel")
    else:
        start = _trainer(settings, "2d", chosen)
    start.add_upstream_node(gate)
    base = start.outputs["model"]
    if not settings.tuner_trials:
        return [start, _trainer(settings, "3d", chosen, base)]
    tuner = _tuner(settings, chosen, base)
    best = tuner.outputs["best_hyperparameters"]
    return [start, tuner, _trainer(settings, "3d", chosen, base, best)]


def _trainer(
    settings: PipelineSettings,
    stage: str,
    examples: Channel,
    base_model: Channel | None = None,
    hyperparameters: Channel | None = None,
) -> components.Trainer:
    config = settings.config.to_dict()[stage]
    context = {
        "task": settings.task.to_dict(),
        "code_version": code_version("pipeline.components.trainer"),
    }
    return components.Trainer(
        run_fn=f"pipeline.components.trainer.run_fn_{stage}",
        examples=examples,
        base_model=base_model,
        hyperparameters=hyperparameters,
        train_args=trainer_pb2.TrainArgs(splits=["train"], num_steps=config["training"]["steps"]),
        eval_args=trainer_pb2.EvalArgs(splits=["eval"]),
        custom_config=config | context,
    ).with_id(f"Trainer{stage.upper()}")


def _tuner(settings: PipelineSettings, examples: Channel, base_model: Channel) -> components.Tuner:
    config = settings.config.to_dict()["3d"]
    steps = settings.tuner_steps
    short = {
        "steps": steps,
        "evaluate_every": steps,
        "warmup_steps": min(config["training"]["warmup_steps"], steps // 10),
    }
    return components.Tuner(
        tuner_fn="pipeline.components.tuner.tuner_fn",
        examples=examples,
        base_model=base_model,
        train_args=trainer_pb2.TrainArgs(splits=["train"], num_steps=steps),
        eval_args=trainer_pb2.EvalArgs(splits=["eval"]),
        custom_config=config
        | {
            "training": config["training"] | short,
            "task": settings.task.to_dict(),
            "trials": settings.tuner_trials,
            "code_version": code_version("pipeline.components.tuner"),
        },
    )


def _serving_check(settings: PipelineSettings, model: Channel, examples: Channel) -> BaseNode:
    """Returns what tries to serve the model: TensorFlow Serving's container, or our own server."""
    if not settings.serving_image:
        return answer_requests(model=model, examples=examples, requests=SERVING_REQUESTS).with_id(
            "ServingCheck"
        )
    repository, _, tag = settings.serving_image.rpartition(":")
    return components.InfraValidator(
        model=model,
        serving_spec=infra_validator_pb2.ServingSpec(
            tensorflow_serving=infra_validator_pb2.TensorFlowServing(
                image_name=repository, tags=[tag]
            ),
            local_docker=infra_validator_pb2.LocalDockerConfig(),
        ),
        validation_spec=infra_validator_pb2.ValidationSpec(
            max_loading_time_seconds=300, num_tries=2
        ),
    )


def _report_settings(settings: PipelineSettings) -> str:
    start = "the encoder of the 2D network"
    if settings.warm_start:
        start = "the last blessed model that had not seen this data"
    content: dict[str, Any] = {
        "name": settings.name,
        "task": settings.task.to_dict(),
        "config": settings.config.to_dict(),
        "thresholds": settings.score_thresholds(),
        "start": start,
        "code_version": code_version("pipeline.components.trainer"),
        "report_code": code_version("pipeline.components.report"),
    }
    if settings.warm_start:
        content["config"].pop("2d")
    return json.dumps(content, sort_keys=True)
