"""The pipeline's DAG: data, validation, 2D network, 3D network, evaluation, pushed model."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
from collections.abc import Sequence
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

from ml_metadata.proto.metadata_store_pb2 import ConnectionConfig
from tfx import components
from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.components.common.resolver import Resolver, ResolverStrategy
from tfx.orchestration.pipeline import Pipeline
from tfx.proto.infra_validator_pb2 import RequestSpec, ServingSpec, ValidationSpec
from tfx.proto.pusher_pb2 import PushDestination
from tfx.proto.trainer_pb2 import EvalArgs, TrainArgs
from tfx.types import Channel

from pipeline.components import resolvers, schema
from pipeline.components.anomaly_gate import stop_on_anomalies
from pipeline.components.convert_volumes import REJECTED, ConvertVolumes
from pipeline.components.evaluator import make_eval_config
from pipeline.components.import_records import import_records
from pipeline.components.report import write_report
from pipeline.components.serving_check import answer_requests
from pipeline.configs import BEAM_ARGUMENTS, PipelineSettings, pushed_models
from preprocessing.errors import ALLOWANCES, SettingsError
from preprocessing.tasks import Task
from serving.protocol import SERIALIZED_EXAMPLES

# Patches that a served model must answer.
SERVING_REQUESTS = 3
# What TFX's client of InfraValidator receives: gRPC's default of 4 MiB, less a margin for the rest.
LARGEST_ANSWER_BYTES = 4 * 2**20 - 2**16

ROOT = Path(__file__).parents[1]
PACKAGES = ("preprocessing", "ahnet_tf", "serving", "pipeline")


def create_pipeline(
    settings: PipelineSettings,
    *,
    metadata: ConnectionConfig | None = None,
    has_metadata: bool = True,
    beam_arguments: Sequence[str] = BEAM_ARGUMENTS,
) -> Pipeline:
    """Returns the pipeline of one task, without running anything.

    Data and output of `settings` may lie on another machine or in an object store. `metadata` is
    None if the engine brings its own store. Without `has_metadata` components can't query a store:
    a new model is compared with the one pushed last instead of the one blessed last, and nothing is
    cached. Raises SettingsError for spans, a warm start or volumes without the metadata they need, and
    for InfraValidator in a cluster that starts pods without TFX's own launcher.
    """
    if not has_metadata and (settings.spans or settings.warm_start or settings.from_volumes):
        options, expected = "--spans, --warm-start, --volumes", "an engine with a metadata store"
        remedy = "They work with --engine kubeflow, on the stack of TensorFlow 2.15."
        raise SettingsError(options, expected, "one without", remedy)
    if not has_metadata and settings.serving_image:
        remedy = "TFX starts the server's pod from a pod of an Argo workflow: --engine kubeflow."
        raise SettingsError("--serving-image", "an Argo workflow", "another engine", remedy)
    output = settings.output.rstrip("/")
    source = _source(settings)
    examples = source.outputs["examples"]
    checks, statistics = _checks(settings, examples)
    gate = checks[-1]
    nodes = [source, *checks]
    learned = examples
    if settings.spans:
        newest = _resolver("NewestSpans", resolvers.NewestSpans, examples, spans=settings.spans)
        newest.add_upstream_node(gate)
        nodes.append(newest)
        learned = newest.outputs["examples"]
    trainers = _trainers(settings, examples, learned, gate)
    model = trainers[-1].outputs["model"]
    pushed = pushed_models(output, settings.name)
    task = json.dumps(settings.task.to_dict())
    if has_metadata:
        evaluator_class = components.Evaluator
        earlier = resolvers.EarlierBlessedModel
        baseline = _resolver("LatestBlessedModel", earlier, model, task=task)
    else:
        evaluator_class = resolvers.EvaluatorAgainstPushed
        baseline = resolvers.last_pushed_model(pushed=pushed, task=task).with_id("LastPushedModel")
    evaluator = evaluator_class(
        examples=learned,
        model=model,
        baseline_model=baseline.outputs["model"],
        eval_config=make_eval_config(
            settings.task,
            settings.thresholds,
            settings.largest_loss,
            # It imports the Evaluator's code as well.
            code_version("pipeline.components.lesion_metrics"),
        ),
        example_splits=["eval"],
    ).with_id("Evaluator")
    serving = _serving_check(settings, model, examples)
    pusher = components.Pusher(
        model=model,
        model_blessing=evaluator.outputs["blessing"],
        infra_blessing=serving.outputs["blessing"],
        push_destination=PushDestination(filesystem={"base_directory": pushed}),
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
    return Pipeline(
        pipeline_name=settings.name,
        pipeline_root=f"{output}/artifacts",
        components=[*nodes, *trainers, baseline, evaluator, serving, pusher, report],
        enable_cache=has_metadata,
        metadata_connection_config=metadata,
        beam_pipeline_args=list(beam_arguments),
    )


def _source(settings: PipelineSettings) -> BaseNode:
    """Returns the component that converts volumes or imports records."""
    if settings.from_volumes:
        # The waivers of data validation do not change a conversion.
        known = {*ALLOWANCES, REJECTED}
        conversion = {
            "task": settings.task.to_dict(),
            "seed": settings.config.stages["2d"].training.seed,
            "eval_fraction": settings.eval_fraction,
            "allow": [name for name in settings.allow if name in known],
            "code_version": code_version("preprocessing.convert"),
        }
        return ConvertVolumes(settings.input, conversion, settings.spans)
    return import_records(settings.input, in_spans=bool(settings.spans))


def _checks(settings: PipelineSettings, examples: Channel) -> tuple[list[BaseNode], Channel]:
    """Returns the components of data validation, the gate last, and the channel of statistics."""
    task, inferred = settings.task, settings.schema == "inferred"
    options = schema.statistics_options(task, inferred=inferred)
    if inferred:
        gather = components.StatisticsGen(examples, stats_options=options)
        statistics = gather.outputs["statistics"]
        source = components.SchemaGen(statistics, infer_feature_shape=True)
        first = [gather, source]
    else:
        curated = settings.schema == "curated"
        text = schema.schema_text(task) if curated else schema.read_schema(settings.schema, task)
        source = schema.task_schema(text=text).with_id("TaskSchema")
        gather = components.StatisticsGen(examples, source.outputs["schema"], options)
        statistics = gather.outputs["statistics"]
        first = [source, gather]
    validator = components.ExampleValidator(statistics=statistics, schema=source.outputs["schema"])
    before = []
    if settings.spans:
        options = {"spans": settings.spans, "warm_start": int(settings.warm_start)}
        before = [_resolver("SpansBefore", resolvers.SpansBefore, examples, **options)]
    content = {
        "task": task.to_dict(),
        "allow": list(settings.allow),
        "code_version": code_version("pipeline.components.anomaly_gate"),
    }
    gate = stop_on_anomalies(
        examples=examples,
        statistics=statistics,
        anomalies=validator.outputs["anomalies"],
        baseline=before[0].outputs["statistics"] if before else None,
        together=before[0].outputs["together"] if before else None,
        learned=before[0].outputs["learned"] if before else None,
        settings=json.dumps(content),
    ).with_id("AnomalyGate")
    return [*first, validator, *before, gate], statistics


def _trainers(
    settings: PipelineSettings, examples: Channel, learned: Channel, gate: BaseNode
) -> list[BaseNode]:
    """Returns the components from the start model to the 3D network's Trainer, in order."""
    if settings.warm_start:
        task = json.dumps(settings.task.to_dict())
        start = _resolver("EarlierModel", resolvers.UnseenByModel, examples, task=task)
    else:
        start = components.Trainer(
            run_fn="pipeline.components.trainer.run_fn_2d", **_training(settings, "2d", learned)
        ).with_id("Trainer2D")
    start.add_upstream_node(gate)
    base = start.outputs["model"]
    tuners = []
    if settings.tuner_trials:
        common = _training(settings, "3d", learned, base, settings.tuner_trials)
        tuners = [components.Tuner(tuner_fn="pipeline.components.trainer.tuner_fn", **common)]
    trainer = components.Trainer(
        run_fn="pipeline.components.trainer.run_fn_3d",
        hyperparameters=tuners[0].outputs["best_hyperparameters"] if tuners else None,
        **_training(settings, "3d", learned, base),
    )
    return [start, *tuners, trainer.with_id("Trainer3D")]


def _training(
    settings: PipelineSettings,
    stage: str,
    examples: Channel,
    base_model: Channel | None = None,
    trials: int = 0,
) -> dict[str, Any]:
    """Returns the arguments that a Trainer and the Tuner, which has `trials`, have in common."""
    config = settings.config.to_dict()[stage] | {
        "task": settings.task.to_dict(),
        "code_version": code_version("pipeline.components.trainer"),
    }
    training = config["training"]
    if trials:
        steps = settings.tuner_steps
        training |= {"steps": steps, "evaluate_every": steps}
        training["warmup_steps"] = min(training["warmup_steps"], steps // 10)
        config["trials"] = trials
    return {
        "examples": examples,
        "base_model": base_model,
        "train_args": TrainArgs(splits=["train"], num_steps=training["steps"]),
        "eval_args": EvalArgs(splits=["eval"]),
        "custom_config": config,
    }


def _serving_check(settings: PipelineSettings, model: Channel, examples: Channel) -> BaseNode:
    """Returns the component that serves the model: TensorFlow Serving's image or the embedded server."""
    if not settings.serving_image:
        code = [
            code_version(name) for name in ("pipeline.components.serving_check", "serving.server")
        ]
        check = answer_requests(
            model=model, examples=examples, requests=SERVING_REQUESTS, code_version=" ".join(code)
        )
        return check.with_id("ServingCheck")
    repository, _, tag = settings.serving_image.rpartition(":")
    requests = serving_requests(settings.task)
    return components.InfraValidator(
        model=model,
        serving_spec=ServingSpec(
            tensorflow_serving={"image_name": repository, "tags": [tag]},
            **{settings.serving_platform: {}},
        ),
        examples=examples if requests else None,
        request_spec=requests,
        validation_spec=ValidationSpec(max_loading_time_seconds=300, num_tries=2),
    )


def serving_requests(task: Task) -> RequestSpec | None:
    """Returns the requests that InfraValidator sends: records, to the signature that evaluates them.

    None if the answer, which for heat maps has one for each voxel of a patch, is more than TFX's client
    receives. The server then answers the model's warm-up requests only, which it does as it loads.
    """
    if task.target == "heat_map" and 4 * math.prod(task.patch_shape_zyx) > LARGEST_ANSWER_BYTES:
        return None
    return RequestSpec(
        tensorflow_serving={"signature_names": [SERIALIZED_EXAMPLES]},
        split_name="eval",
        num_examples=SERVING_REQUESTS,
    )


def _resolver(
    name: str, strategy: type[ResolverStrategy], current: Channel, **config: int | str
) -> Resolver:
    """Returns a resolver of `pipeline.components.resolvers` over all artifacts of its inputs."""
    inputs = {key: Channel(type=kind) for key, kind in strategy.INPUTS.items()}
    return Resolver(strategy, config, current=current, **inputs).with_id(name)


def _report_settings(settings: PipelineSettings) -> str:
    stages = settings.config.to_dict()
    start = "the encoder of the 2D network"
    if settings.warm_start:
        stages.pop("2d")
        start = "the last blessed model that had not seen this data"
    content = {
        "name": settings.name,
        "task": settings.task.to_dict(),
        "config": stages,
        "thresholds": settings.score_thresholds(),
        "start": start,
        "code_version": code_version("pipeline.components.trainer"),
        "report_code": code_version("pipeline.components.report"),
    }
    return json.dumps(content, sort_keys=True)


@functools.cache
def code_version(module: str) -> str:
    """Returns a digest of a module and of all modules of this project that it imports.

    As a parameter of a component, it makes TFX run the component again when its code has changed.
    The module is read, not imported. Imports inside functions count, and so do Jinja templates
    named after a module. Other packages do not: their versions are locked.
    """
    digest = hashlib.sha256()
    for name, path in sorted(sources(module).items()):
        for file in (path, *sorted(path.parent.glob(f"{path.stem}.*.jinja"))):
            digest.update(name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def sources(module: str) -> dict[str, Path]:
    """Returns the project's files that importing a module runs, by module name."""
    finder = _OwnModules(path=[str(ROOT)])
    finder.import_hook(module)
    files = {name: vars(found)["__file__"] for name, found in finder.modules.items()}
    return {name: Path(file) for name, file in files.items() if file}


class _OwnModules(ModuleFinder):
    """Ignores imports for type checkers, which do not run, and the packages of others.

    Those share the folder with an installed project.
    """

    def find_module(self, name: str, path: Any, parent: Any = None) -> Any:
        if path is None and name not in PACKAGES:
            raise ImportError(name)
        return super().find_module(name, path, parent)

    def load_module(self, fqname: str, fp: Any, pathname: str, file_info: Any) -> Any:
        if fp is not None:
            # The compiler drops a constant's block.
            fp = io.BytesIO(fp.read().replace(b"if TYPE_CHECKING:", b"if False:"))
        return super().load_module(fqname, fp, pathname, file_info)
