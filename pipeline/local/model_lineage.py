"""The executions behind a pushed model, read from the pipeline's metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_metadata import MetadataStore
from ml_metadata.proto.metadata_store_pb2 import Event, Execution

from preprocessing.errors import InputError


@dataclass(frozen=True)
class Step:
    """One execution in the lineage of a model, with ids and addresses of its artifacts by name."""

    name: str
    execution: int
    state: str
    parameters: dict[str, Any]
    inputs: dict[str, list[tuple[int, str]]]
    outputs: dict[str, list[tuple[int, str]]]


def lineage_of(store: MetadataStore, model: Path) -> list[Step]:
    """Returns all executions that produced, validated or reported on a pushed model, oldest first.

    Raises:
      InputError: the model is not in the metadata.
    """
    pushed = {
        artifact.id
        for artifact in store.get_artifacts_by_type("PushedModel")
        if artifact.custom_properties["pushed_destination"].string_value == str(model)
    }
    if not pushed:
        raise InputError(model, "a model that this pipeline pushed", "none in its metadata")
    executions = {
        each.id: each
        for each in store.get_executions()
        # Cached ones have the same outputs as one that ran to completion.
        if each.last_known_state == Execution.COMPLETE
    }
    events = store.get_events_by_execution_ids(list(executions))
    inputs = [event for event in events if event.type == Event.INPUT]

    def judges(function: str, artifacts: set[int]) -> set[int]:
        """Returns the executions of one of this project's components with any of `artifacts` as input.

        Data validation and the report have no outputs upstream of a model.
        """
        takers = {event.execution_id for event in inputs if event.artifact_id in artifacts}
        return {each for each in takers if executions[each].type.rpartition(".")[2] == function}

    found, artifacts = _upstream(events, pushed)
    judging = judges("stop_on_anomalies", artifacts) | judges("write_report", pushed)
    judged = {event.artifact_id for event in inputs if event.execution_id in judging}
    found |= judging | _upstream(events, judged)[0]
    return [_step(store, executions[each], events) for each in sorted(found)]


def _upstream(events: Sequence[Event], artifacts: set[int]) -> tuple[set[int], set[int]]:
    """Returns the executions upstream of `artifacts`, and all artifacts between them.

    The lineage of a baseline model is not followed.
    """
    executions: set[int] = set()
    waiting, seen = artifacts, set(artifacts)
    while waiting:
        made = [
            each for each in events if each.type == Event.OUTPUT and each.artifact_id in waiting
        ]
        new = {event.execution_id for event in made} - executions
        executions |= new
        taken = [each for each in events if each.type == Event.INPUT and each.execution_id in new]
        waiting = {each.artifact_id for each in taken if _name(each) != "baseline_model"} - seen
        seen |= waiting
    return executions, seen


def _name(event: Event) -> str:
    """Returns the name of the input or output that an artifact was."""
    return event.path.steps[0].key


def _step(store: MetadataStore, execution: Execution, events: Sequence[Event]) -> Step:
    sides: dict[int, dict[str, list[tuple[int, str]]]] = {Event.INPUT: {}, Event.OUTPUT: {}}
    for event in events:
        if event.execution_id == execution.id:
            (artifact,) = store.get_artifacts_by_id([event.artifact_id])
            side = sides.setdefault(event.type, {})
            side.setdefault(_name(event), []).append((artifact.id, artifact.uri))
    contexts = {each.type: each.name for each in store.get_contexts_by_execution(execution.id)}
    return Step(
        # The context of a node is called PIPELINE.NODE.
        contexts.get("node", "").removeprefix(contexts.get("pipeline", "") + "."),
        execution.id,
        Execution.State.Name(execution.last_known_state),
        dict(_parameters(execution)),
        sides[Event.INPUT],
        sides[Event.OUTPUT],
    )


def _parameters(execution: Execution) -> Iterator[tuple[str, Any]]:
    for name, value in execution.custom_properties.items():
        kind = value.WhichOneof("value")
        if kind and not name.startswith("__"):
            content = getattr(value, kind)
            try:
                yield name, json.loads(content)
            except (TypeError, ValueError):
                yield name, content
