"""`python -m pipeline.lineage MODEL`: data, settings, scores and code behind a pushed model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_metadata import MetadataStore
from ml_metadata.proto import metadata_store_pb2

from pipeline.local.metadata_store import METADATA_FILE, open_store
from preprocessing.cli import make_parser, run_command
from preprocessing.errors import InputError

PURPOSE = """\
Shows the lineage of a pushed model from the pipeline's metadata: its training data, the results of
data validation, the settings of every training, the scores that blessed it, and the code version."""
EXAMPLES = (
    "python -m pipeline.lineage run/serving_model/1732600000",
    "python -m pipeline.lineage run/serving_model      (the newest version)",
    "python -m pipeline.lineage run/serving_model/1732600000 --json",
)
_INPUT, _OUTPUT = metadata_store_pb2.Event.INPUT, metadata_store_pb2.Event.OUTPUT
_COMPLETE = metadata_store_pb2.Execution.COMPLETE
# Parameters to show; those of TFX's own components are long and redundant.
_SHOWN = ("span", "fingerprint", "input_fingerprint", "volumes", "input_base", "run_fn", "requests")


@dataclass(frozen=True)
class Step:
    """One execution in the lineage of a model.

    Attributes:
      name: id of the component.
      execution: id of the execution in the metadata.
      state: COMPLETE, CACHED, ...
      parameters: execution parameters.
      inputs: ids and addresses of the input artifacts, by name.
      outputs: ids and addresses of the output artifacts, by name.
    """

    name: str
    execution: int
    state: str
    parameters: dict[str, Any]
    inputs: dict[str, list[tuple[int, str]]]
    outputs: dict[str, list[tuple[int, str]]]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m pipeline.lineage`."""
    parser = make_parser("pipeline.lineage", PURPOSE, EXAMPLES)
    parser.add_argument(
        "model", metavar="MODEL", help="a pushed version, or the folder with all versions (newest)"
    )
    parser.add_argument(
        "--metadata",
        metavar="FILE",
        help=f"the pipeline's metadata (default: {METADATA_FILE} beside the folder of versions)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return run_command(_run, parser.parse_args(argv))


def lineage_of(store: MetadataStore, model: Path) -> list[Step]:
    """Returns all executions that produced, validated or reported on a pushed model, oldest first.

    Args:
      store: the pipeline's metadata.
      model: folder of the pushed version.

    Raises:
      InputError: the model is not in the metadata.
    """
    pushed = [
        artifact.id
        for artifact in store.get_artifacts_by_type("PushedModel")
        if artifact.custom_properties["pushed_destination"].string_value == str(model)
    ]
    if not pushed:
        raise InputError(model, "a model that this pipeline pushed", "none in its metadata")
    makers, artifacts = _makers(store, set(pushed))
    judges = _takers(store, artifacts, "stop_on_anomalies") | _takers(store, pushed, "write_report")
    validated = {artifact for artifact, _ in _sides(store, judges, _INPUT)}
    return _steps(store, sorted(makers | judges | _makers(store, validated)[0]))


def _makers(store: MetadataStore, artifacts: set[int]) -> tuple[set[int], set[int]]:
    """Returns the executions upstream of `artifacts`, and all artifacts between them.

    The lineage of a baseline model is not followed.
    """
    executions: set[int] = set()
    waiting, seen = set(artifacts), set(artifacts)
    while waiting:
        events = store.get_events_by_artifact_ids(list(waiting))
        makers = {event.execution_id for event in events if event.type == _OUTPUT} - executions
        makers = set(_finished(store, makers))
        executions |= makers
        inputs = _sides(store, makers, _INPUT)
        waiting = {artifact for artifact, name in inputs if name != "baseline_model"} - seen
        seen |= waiting
    return executions, seen


def _takers(store: MetadataStore, artifacts: Iterable[int], function: str) -> set[int]:
    """Returns the finished executions of one of our components with any of `artifacts` as input.

    Data validation and the report have no outputs upstream of a model, so `_makers` misses them.
    """
    takers = {
        event.execution_id
        for event in store.get_events_by_artifact_ids(list(artifacts))
        if event.type == _INPUT
    }
    types = {kind.id: kind.name for kind in store.get_execution_types()}
    return {
        number
        for number, kind in _finished(store, takers).items()
        if types[kind].rpartition(".")[2] == function
    }


def _finished(store: MetadataStore, executions: Iterable[int]) -> dict[int, int]:
    """Returns id and type of those executions that ran to completion.

    Cached executions of later runs have the same output artifacts.
    """
    return {
        execution.id: execution.type_id
        for execution in store.get_executions_by_id(list(executions))
        if execution.last_known_state == _COMPLETE
    }


def _sides(store: MetadataStore, executions: set[int], kind: int) -> Iterator[tuple[int, str]]:
    """Yields id and name of every input (or output) artifact of `executions`."""
    for event in store.get_events_by_execution_ids(list(executions)):
        if event.type == kind:
            yield event.artifact_id, event.path.steps[0].key


def _steps(store: MetadataStore, executions: Sequence[int]) -> list[Step]:
    events = store.get_events_by_execution_ids(list(executions))
    addresses = {
        artifact.id: artifact.uri
        for artifact in store.get_artifacts_by_id(list({event.artifact_id for event in events}))
    }
    steps = []
    for execution in store.get_executions_by_id(list(executions)):
        sides: dict[int, dict[str, list[tuple[int, str]]]] = {}
        for event in events:
            if event.execution_id == execution.id:
                side = sides.setdefault(event.type, {})
                found = (event.artifact_id, addresses[event.artifact_id])
                side.setdefault(event.path.steps[0].key, []).append(found)
        steps.append(
            Step(
                _component(store, execution),
                execution.id,
                metadata_store_pb2.Execution.State.Name(execution.last_known_state),
                dict(_parameters(execution)),
                sides.get(metadata_store_pb2.Event.INPUT, {}),
                sides.get(metadata_store_pb2.Event.OUTPUT, {}),
            )
        )
    return sorted(steps, key=lambda step: step.execution)


def _component(store: MetadataStore, execution: metadata_store_pb2.Execution) -> str:
    """Returns the id of an execution's component: its node context without the pipeline's name."""
    names = {
        context.type: context.name for context in store.get_contexts_by_execution(execution.id)
    }
    return names.get("node", "").removeprefix(names.get("pipeline", "") + ".")


def _parameters(execution: metadata_store_pb2.Execution) -> Iterator[tuple[str, Any]]:
    for name, value in execution.custom_properties.items():
        kind = value.WhichOneof("value")
        if kind and not name.startswith("__"):
            content = getattr(value, kind)
            try:
                yield name, json.loads(content)
            except (TypeError, ValueError):
                yield name, content


def _run(arguments: argparse.Namespace) -> None:
    model = _version(Path(arguments.model).resolve())
    metadata = Path(arguments.metadata or model.parent.parent / METADATA_FILE)
    steps = lineage_of(open_store(metadata), model)
    if arguments.json:
        print(json.dumps([vars(step) for step in steps], indent=2))
    else:
        print("\n".join(_lines(model, steps)))


def _version(model: Path) -> Path:
    if not model.is_dir():
        raise InputError(model, "a pushed model", "no such folder")
    if model.name.isdigit():
        return model
    versions = [int(child.name) for child in model.iterdir() if child.name.isdigit()]
    if not versions:
        raise InputError(model, "a folder of pushed versions", "none")
    return model / str(max(versions))


def _lines(model: Path, steps: Sequence[Step]) -> Iterator[str]:
    """Yields the lines of the printed report, starting with the model card of the run."""
    from pipeline.components.model_card import model_card

    reports = [address for step in steps for _, address in step.outputs.get("report", [])]
    facts = Path(reports[-1]) / "facts.json" if reports else None
    if facts is not None and facts.is_file():
        yield model_card(json.loads(facts.read_text(encoding="utf-8")))
    yield f"## Lineage of {model}"
    for step in steps:
        yield f"\n{step.name} (execution {step.execution}, {step.state.lower()})"
        for name, value in step.parameters.items():
            yield from _parameter_lines(name, value)
        for arrow, side in (("<-", step.inputs), ("->", step.outputs)):
            for name, artifacts in sorted(side.items()):
                for number, address in artifacts:
                    yield f"  {arrow} {name}: artifact {number}, {address}"


def _parameter_lines(name: str, value: Any) -> Iterator[str]:
    if name == "custom_config" and value and "training" in value:
        yield f"  code version {value['code_version']}"
        for section in ("model", "training"):
            settings = ", ".join(f"{key}={each}" for key, each in value[section].items())
            yield f"  {section}: {settings}"
    elif name in _SHOWN:
        yield f"  {name}: {value}"


if __name__ == "__main__":
    sys.exit(main())
