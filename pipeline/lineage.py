"""`python -m pipeline.lineage MODEL`: data, settings, scores and code behind a pushed model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_metadata import MetadataStore
from ml_metadata.proto.metadata_store_pb2 import Event, Execution

from pipeline.local.preflight import METADATA_FILE, open_store
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
# Parameters to show; those of TFX's own components are long and redundant.
_SHOWN = ("span", "fingerprint", "input_fingerprint", "volumes", "input_base", "run_fn", "requests")


@dataclass(frozen=True)
class Step:
    """One execution in the lineage of a model, with ids and addresses of its artifacts by name."""

    name: str
    execution: int
    state: str
    parameters: dict[str, Any]
    inputs: dict[str, list[tuple[int, str]]]
    outputs: dict[str, list[tuple[int, str]]]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m pipeline.lineage`."""
    parser = make_parser("pipeline.lineage", PURPOSE, EXAMPLES)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a pushed version, or the folder of all versions (newest)")
    add(
        "--metadata",
        metavar="FILE",
        help=f"the pipeline's metadata (default: {METADATA_FILE} beside the folder of versions)",
    )
    add("--json", action="store_true", help="print everything as JSON")
    return run_command(_run, parser.parse_args(argv))


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
        """Returns the executions of one of our components with any of `artifacts` as input.

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
    reports = [address for step in steps for _, address in step.outputs.get("report", [])]
    card = Path(reports[-1]) / "model_card.md" if reports else None
    if card is not None and card.is_file():
        yield card.read_text(encoding="utf-8")
    yield f"## Lineage of {model}"
    for step in steps:
        yield f"\n{step.name} (execution {step.execution}, {step.state.lower()})"
        for name, value in step.parameters.items():
            if name == "custom_config" and value and "training" in value:
                yield f"  code version {value['code_version']}"
                for section in ("model", "training"):
                    settings = ", ".join(f"{key}={each}" for key, each in value[section].items())
                    yield f"  {section}: {settings}"
            elif name in _SHOWN:
                yield f"  {name}: {value}"
        for arrow, side in (("<-", step.inputs), ("->", step.outputs)):
            for name, artifacts in sorted(side.items()):
                for number, address in artifacts:
                    yield f"  {arrow} {name}: artifact {number}, {address}"


if __name__ == "__main__":
    sys.exit(main())
