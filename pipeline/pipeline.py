"""The one DAG: records -> checked records -> 2D network -> 3D network -> scores -> pushed model."""

from __future__ import annotations

from collections.abc import Sequence

from ml_metadata.proto.metadata_store_pb2 import ConnectionConfig
from tfx import components
from tfx.dsl.components.common.resolver import Resolver
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import example_gen_pb2, pusher_pb2, trainer_pb2
from tfx.types import Channel, standard_artifacts

from pipeline.baseline import EarlierBlessedModel
from pipeline.code_version import code_version
from pipeline.evaluation import make_eval_config
from pipeline.example_validator import ExampleValidator
from pipeline.last_pushed import EvaluatorAgainstPushed, last_pushed_model
from pipeline.schema import make_validations, schema_text, task_schema
from pipeline.settings import RECORD_PATTERN, PipelineSettings
from pipeline.validation import stop_on_anomalies
from preprocessing.splits import SPLITS

# Named in full: Beam's default would look for a runner to download first.
BEAM_ARGUMENTS = (
    "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner",
    "--direct_running_mode=in_memory",
    "--direct_num_workers=1",
)


def create_pipeline(
    settings: PipelineSettings,
    *,
    metadata: ConnectionConfig | None = None,
    has_metadata: bool = True,
    beam_arguments: Sequence[str] = BEAM_ARGUMENTS,
) -> Pipeline:
    """Returns the pipeline of one task; nothing runs and nothing is written yet.

    Args:
      settings: records and output may lie on another machine or in an object store.
      metadata: where the lineage is kept; None where the engine brings its own store.
      has_metadata: components can ask a store. Where they can't, a new model is compared with the one
        pushed last instead of the one blessed last, and nothing is cached.
      beam_arguments: Beam's command line for every component that runs on Beam.
    """
    output = settings.output.rstrip("/")
    examples = components.ImportExampleGen(
        input_base=settings.input,
        input_config=example_gen_pb2.Input(
            splits=[
                example_gen_pb2.Input.Split(name=split, pattern=f"{split}/{RECORD_PATTERN}")
                for split in SPLITS
            ]
        ),
    )
    schema = task_schema(text=schema_text(settings.task)).with_id("TaskSchema")
    statistics = components.StatisticsGen(
        examples=examples.outputs["examples"], schema=schema.outputs["schema"]
    )
    validator = ExampleValidator(
        statistics=statistics.outputs["statistics"],
        schema=schema.outputs["schema"],
        custom_validation_config=make_validations(settings.task),
    )
    gate = stop_on_anomalies(anomalies=validator.outputs["anomalies"]).with_id("AnomalyGate")
    trainer_2d = _trainer(settings, "2d", examples)
    trainer_2d.add_upstream_node(gate)
    trainer_3d = _trainer(settings, "3d", examples, base_model=trainer_2d.outputs["model"])
    serving_models = f"{output}/serving_model"
    if has_metadata:
        evaluator_class = components.Evaluator
        baseline = Resolver(
            strategy_class=EarlierBlessedModel,
            current=trainer_3d.outputs["model"],
            model=Channel(type=standard_artifacts.Model),
            model_blessing=Channel(type=standard_artifacts.ModelBlessing),
        ).with_id("LatestBlessedModel")
    else:
        evaluator_class = EvaluatorAgainstPushed
        baseline = last_pushed_model(pushed=serving_models).with_id("LastPushedModel")
    evaluator = evaluator_class(
        examples=examples.outputs["examples"],
        model=trainer_3d.outputs["model"],
        baseline_model=baseline.outputs["model"],
        eval_config=make_eval_config(settings.task, settings.thresholds, settings.largest_loss),
        example_splits=["eval"],
    ).with_id("Evaluator")
    pusher = components.Pusher(
        model=trainer_3d.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        push_destination=pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=serving_models)
        ),
    )
    return Pipeline(
        pipeline_name=settings.name,
        pipeline_root=f"{output}/artifacts",
        components=[
            examples,
            schema,
            statistics,
            validator,
            gate,
            trainer_2d,
            trainer_3d,
            baseline,
            evaluator,
            pusher,
        ],
        enable_cache=has_metadata,
        metadata_connection_config=metadata,
        beam_pipeline_args=list(beam_arguments),
    )


def _trainer(
    settings: PipelineSettings,
    stage: str,
    examples: components.ImportExampleGen,
    base_model: Channel | None = None,
) -> components.Trainer:
    config = settings.config.to_dict()[stage]
    context = {"task": settings.task.to_dict(), "code_version": code_version("pipeline.trainer")}
    return components.Trainer(
        run_fn=f"pipeline.trainer.run_fn_{stage}",
        examples=examples.outputs["examples"],
        base_model=base_model,
        train_args=trainer_pb2.TrainArgs(splits=["train"], num_steps=config["training"]["steps"]),
        eval_args=trainer_pb2.EvalArgs(splits=["eval"]),
        custom_config=config | context,
    ).with_id(f"Trainer{stage.upper()}")
