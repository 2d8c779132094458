"""Resolvers of the spans to train on, and of earlier statistics and models.

Each takes `current`, an artifact of this run, and all artifacts of the kinds in its INPUTS.
`last_pushed_model` is for engines without metadata.
"""

# TFX reads the annotations of `last_pushed_model` at run time: no postponed evaluation here.

import json
import sys
from collections.abc import Callable, Collection, Iterable
from typing import Any, ClassVar, TypeVar

from ml_metadata import MetadataStore
from ml_metadata.proto.metadata_store_pb2 import Event, Execution
from tfx import components
from tfx.components.evaluator import executor
from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.components.base.executor_spec import BeamExecutorSpec
from tfx.dsl.components.common.resolver import ResolverStrategy
from tfx.dsl.input_resolution.strategies.latest_blessed_model_strategy import (
    LatestBlessedModelStrategy,
)
from tfx.dsl.io import fileio
from tfx.types import Artifact, standard_artifacts
from tfx.types.standard_component_specs import BASELINE_MODEL_KEY
from tfx.utils import io_utils, path_utils

from ahnet_tf.inference.predictor import SETTINGS_FILE
from pipeline.components.anomaly_gate import stop_on_anomalies

ArtifactsByKey = dict[str, list[Artifact]]
AnyModel = TypeVar("AnyModel")
MODELS = {"model": standard_artifacts.Model, "model_blessing": standard_artifacts.ModelBlessing}
# The settings of a task on which it depends whether a model reads and scores its records.
RECORD_SETTINGS = ("class_names", "image_dtype", "patch_shape_zyx", "target")


class NewestSpans(ResolverStrategy):
    """Resolves the examples of up to `spans` newest spans including the current one, newest first.

    If a span was imported several times, its latest import counts. Examples that failed data
    validation are left out.
    """

    INPUTS: ClassVar = {"examples": standard_artifacts.Examples}

    def __init__(self, spans: int):
        self._spans = spans

    def resolve_artifacts(self, store: MetadataStore, input_dict: ArtifactsByKey) -> ArtifactsByKey:
        (current,) = input_dict["current"]
        earlier = _earlier_spans(input_dict, passed_validation(store))
        by_span = {span_of(examples): examples for examples in [*earlier, current]}
        newest = sorted(by_span, reverse=True)[: self._spans]
        return {"current": [current], "examples": [by_span[span] for span in newest]}


class SpansBefore(ResolverStrategy):
    """Resolves the statistics of spans before the current one that passed validation.

    `statistics` is that of the newest of them, `together` those of the spans that the run trains and
    evaluates on beside the current one, of which there are up to `spans`, and `learned` with a
    `warm_start` those of all spans that its start model may have learned.
    """

    INPUTS: ClassVar = {
        "examples": standard_artifacts.Examples,
        **dict.fromkeys(
            ("statistics", "together", "learned"), standard_artifacts.ExampleStatistics
        ),
    }

    def __init__(self, spans: int, warm_start: int):
        self._spans, self._warm_start = spans, warm_start

    def resolve_artifacts(self, store: MetadataStore, input_dict: ArtifactsByKey) -> ArtifactsByKey:
        passed = passed_validation(store)
        # If a span was imported several times, its latest import counts.
        by_span = {span_of(each): passed[each.id] for each in _earlier_spans(input_dict, passed)}
        newest = [by_span[span] for span in sorted(by_span, reverse=True)]
        wanted = {
            "statistics": newest[:1],
            "together": newest[: self._spans - 1],
            "learned": newest if self._warm_start else [],
        }
        return input_dict | {
            key: [statistics for statistics in input_dict[key] if statistics.id in found]
            for key, found in wanted.items()
        }


class UnseenByModel(ResolverStrategy):
    """Resolves the latest blessed model of a task's records not trained on the current examples.

    A warm start begins from it. The run's own model does not qualify, so that the same run starts
    from the same model again and executes nothing. `task` is `Task.to_dict()` as JSON.
    """

    INPUTS: ClassVar = MODELS

    def __init__(self, task: str):
        self._task = json.loads(task)

    def resolve_artifacts(self, store: MetadataStore, input_dict: ArtifactsByKey) -> ArtifactsByKey:
        (current,) = input_dict["current"]

        def is_unseen(model: Artifact) -> bool:
            events = store.get_events_by_artifact_ids([model.id])
            makers = [event.execution_id for event in events if event.type == Event.OUTPUT]
            return current.id not in {artifact for _, artifact in _inputs(store, makers)}

        return _latest_blessed(store, input_dict, is_unseen, self._task, "continued")


class EarlierBlessedModel(ResolverStrategy):
    """Resolves the latest blessed model of a task's records other than the current one.

    TFX's LatestBlessedModelStrategy returns the run's own model once that is blessed: the same run
    would then evaluate it again, against itself. `task` is `Task.to_dict()` as JSON.
    """

    INPUTS: ClassVar = MODELS

    def __init__(self, task: str):
        self._task = json.loads(task)

    def resolve_artifacts(self, store: MetadataStore, input_dict: ArtifactsByKey) -> ArtifactsByKey:
        (current,) = input_dict["current"]

        def is_other(model: Artifact) -> bool:
            return model.id != current.id

        return _latest_blessed(store, input_dict, is_other, self._task, "compared")


@component
def last_pushed_model(
    pushed: Parameter[str], task: Parameter[str], model: OutputArtifact[standard_artifacts.Model]
) -> None:
    """A component that copies the newest version for a task's records from Pusher's folder, if any.

    It replaces `EarlierBlessedModel`, because only blessed models are pushed. `task` is
    `Task.to_dict()` as JSON.
    """
    names = fileio.listdir(pushed) if fileio.exists(pushed) else []
    versions = [int(name.rstrip("/")) for name in names if name.rstrip("/").isdigit()]
    exports = [(f"{pushed}/{version}",) * 2 for version in sorted(versions, reverse=True)]
    newest = _first_for(json.loads(task), exports, "compared")
    fileio.makedirs(model.uri)
    if newest:
        io_utils.copy_dir(newest, path_utils.serving_model_dir(model.uri))


class _AgainstPushed(executor.Executor):
    """Evaluates without a baseline if `last_pushed_model` found none."""

    def Do(  # noqa: N802, TFX's name
        self,
        input_dict: ArtifactsByKey,
        output_dict: ArtifactsByKey,
        exec_properties: dict[str, Any],
    ) -> None:
        (model,) = input_dict[BASELINE_MODEL_KEY]
        if not fileio.exists(path_utils.serving_model_dir(model.uri)):
            input_dict = input_dict | {BASELINE_MODEL_KEY: []}
        super().Do(input_dict, output_dict, exec_properties)


class EvaluatorAgainstPushed(components.Evaluator):
    """TFX's Evaluator with a baseline from `last_pushed_model`."""

    EXECUTOR_SPEC = BeamExecutorSpec(_AgainstPushed)


def span_of(artifact: Artifact) -> int:
    """Returns the span number of examples; 0 for data without spans."""
    return artifact.get_int_custom_property("span")


def passed_validation(store: MetadataStore) -> dict[int, int]:
    """Returns by the ids of examples that passed the anomaly gate those of their statistics."""
    # By the function's name alone: its module has been renamed since the first runs.
    gate = f".{stop_on_anomalies.__name__}"
    kinds = [kind.name for kind in store.get_execution_types() if kind.name.endswith(gate)]
    passed = {}
    for execution in [each for kind in kinds for each in store.get_executions_by_type(kind)]:
        if execution.last_known_state in (Execution.COMPLETE, Execution.CACHED):
            inputs = dict(_inputs(store, [execution.id]))
            passed[inputs["examples"]] = inputs["statistics"]
    return passed


def _inputs(store: MetadataStore, executions: list[int]) -> list[tuple[str, int]]:
    """Returns name and artifact id of every input of some executions."""
    events = store.get_events_by_execution_ids(executions)
    inputs = [event for event in events if event.type == Event.INPUT]
    return [(event.path.steps[0].key, event.artifact_id) for event in inputs]


def _earlier_spans(input_dict: ArtifactsByKey, passed: Collection[int]) -> list[Artifact]:
    """Returns the examples of spans before the current one that passed, the newest last."""
    (current,) = input_dict["current"]
    known = [examples for examples in input_dict["examples"] if examples.id in passed]
    earlier = [examples for examples in known if span_of(examples) < span_of(current)]
    return sorted(earlier, key=lambda examples: (span_of(examples), examples.id))


def _latest_blessed(
    store: MetadataStore,
    input_dict: ArtifactsByKey,
    qualifies: Callable[[Artifact], bool],
    task: dict[str, Any],
    use: str,
) -> ArtifactsByKey:
    """Returns the inputs with only the latest blessed model that qualifies, and its blessing."""
    blessings = input_dict["model_blessing"]
    blessed = {
        blessing.get_int_custom_property("current_model_id")
        for blessing in blessings
        if blessing.get_int_custom_property("blessed") == 1
    }
    models = [each for each in input_dict["model"] if each.id in blessed and qualifies(each)]
    models.sort(key=lambda model: model.id, reverse=True)
    exports = ((model, path_utils.serving_model_path(model.uri)) for model in models)
    latest = _first_for(task, exports, use)
    given = {"model": [latest] if latest else [], "model_blessing": blessings}
    return input_dict | LatestBlessedModelStrategy().resolve_artifacts(store, given)


def _first_for(
    task: dict[str, Any], exports: Iterable[tuple[AnyModel, str]], use: str
) -> AnyModel | None:
    """Returns the first model, given with its export, for a task's records; None if there is none.

    If that is not the first of all, a line is printed: that one is not put to its `use`.
    """
    for number, (model, export) in enumerate(exports):
        other = other_records(export, task)
        if not other:
            return model
        if not number:
            line = f"the last blessed model, {export}, is not {use}: it is for {other}"
            print(f"warning: {line}", file=sys.stderr)
    return None


def other_records(export: str, task: dict[str, Any]) -> str:
    """Returns in which way an export is for other records than a task's; empty if it is not.

    `task` is `Task.to_dict()`.
    """
    path = f"{export}/{SETTINGS_FILE}"
    if not fileio.exists(path):
        return f"unknown records, without {SETTINGS_FILE}"
    with fileio.open(path) as file:
        found = json.load(file)["task"]
    return ", ".join(
        f"{name} {found.get(name)} instead of {task[name]}"
        for name in RECORD_SETTINGS
        if found.get(name) != task[name]
    )
