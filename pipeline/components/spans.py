"""Which data a run learns from and compares with: the newest spans that passed data validation."""

from __future__ import annotations

from ml_metadata import MetadataStore
from ml_metadata.proto import metadata_store_pb2
from tfx.dsl.components.common.resolver import ResolverStrategy
from tfx.types import Artifact

from pipeline.components.anomaly_gate import stop_on_anomalies
from pipeline.components.baseline import blessings_by_model

Resolved = dict[str, list[Artifact]]

_Event = metadata_store_pb2.Event
_Execution = metadata_store_pb2.Execution


class NewestSpans(ResolverStrategy):
    """Resolves the examples of the newest spans up to the current one, which comes first.

    Of a span that was imported more than once the latest import counts. Examples that data validation
    stopped are left out. Inputs: `current`, the examples of this run, and `examples`, all there are.

    Args:
      spans: how many.
    """

    def __init__(self, spans: int):
        self._spans = spans

    def resolve_artifacts(self, store: MetadataStore, input_dict: Resolved) -> Resolved:
        """Returns `examples` with up to `spans` artifacts."""
        (current,) = input_dict["current"]
        passed = {examples for examples, _ in passed_validation(store)}
        by_span = {
            span_of(artifact): artifact
            for artifact in sorted(input_dict["examples"], key=lambda each: each.id)
            if artifact.id in passed and span_of(artifact) < span_of(current)
        }
        by_span[span_of(current)] = current
        newest = sorted(by_span, reverse=True)[: self._spans]
        return {"current": [current], "examples": [by_span[span] for span in newest]}


class SpanBefore(ResolverStrategy):
    """Resolves the statistics of the newest span before the current one that passed validation.

    Inputs: `current`, the examples of this run; `examples` and `statistics`, all there are.
    """

    def resolve_artifacts(self, store: MetadataStore, input_dict: Resolved) -> Resolved:
        """Returns `statistics` with one artifact, or none."""
        (current,) = input_dict["current"]
        examples = {artifact.id: artifact for artifact in input_dict["examples"]}
        statistics = {artifact.id: artifact for artifact in input_dict["statistics"]}
        earlier = [
            (span_of(examples[one]), other)
            for one, other in passed_validation(store)
            if one in examples and other in statistics
        ]
        earlier = [each for each in earlier if each[0] < span_of(current)]
        found = [statistics[max(earlier)[1]]] if earlier else []
        return {**input_dict, "statistics": found}


class UnseenByModel(ResolverStrategy):
    """Resolves the last blessed model that has not seen the current examples, to go on from.

    Once the run's own model is blessed it is not resolved: the next run with nothing changed goes on
    from the same model as this one, and so finds nothing to do. Inputs: `current`, the examples of
    this run; `model` and `model_blessing`, all there are.
    """

    def resolve_artifacts(self, store: MetadataStore, input_dict: Resolved) -> Resolved:
        """Returns `model` with one artifact, or none."""
        (current,) = input_dict["current"]
        blessed = blessings_by_model(input_dict["model_blessing"])
        candidates = [
            model
            for model in input_dict["model"]
            if model.id in blessed and current.id not in learned_from(store, model.id)
        ]
        latest = max(candidates, key=lambda model: model.id, default=None)
        return {**input_dict, "model": [latest] if latest else []}


def span_of(artifact: Artifact) -> int:
    """Returns the number of the span that examples are; 0 where there are no spans."""
    return artifact.get_int_custom_property("span")


def passed_validation(store: MetadataStore) -> list[tuple[int, int]]:
    """Returns the ids of examples and their statistics that the gate let through, oldest first."""
    passed = []
    for execution in store.get_executions_by_type(stop_on_anomalies.get_class_type()):
        if execution.last_known_state not in (_Execution.COMPLETE, _Execution.CACHED):
            continue
        inputs = {
            event.path.steps[0].key: event.artifact_id
            for event in store.get_events_by_execution_ids([execution.id])
            if event.type == _Event.INPUT
        }
        passed.append((inputs["examples"], inputs["statistics"]))
    return passed


def learned_from(store: MetadataStore, model: int) -> set[int]:
    """Returns the ids of all artifacts that the execution which made a model took."""
    makers = [
        event.execution_id
        for event in store.get_events_by_artifact_ids([model])
        if event.type == _Event.OUTPUT
    ]
    events = store.get_events_by_execution_ids(makers)
    return {event.artifact_id for event in events if event.type == _Event.INPUT}
