"""Entry point of v2 pods: TFX's executor with the inputs that Kubeflow Pipelines 2 really passes.

TFX's own entry point expects more than the engine's launcher gives. Here artifact addresses become the
folders that the launcher copies to and from, and missing types come from the component's inputs spec.
"""

from __future__ import annotations

import json
import logging
import os
import runpy
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from tfx.dsl.io import fileio

from pipeline.kubeflow.cluster import ARTIFACT_FOLDERS, ROOT_VARIABLE
from preprocessing.errors import PipelineError

EXECUTOR = "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor"
INPUT_OPTION = "--json_serialized_invocation_args"
SPEC_OPTION = "--json_serialized_inputs_spec_args"
# By field of the message Value, in which specs of version 2.0 pass parameters.
_VALUES = {"intValue": int, "doubleValue": float, "stringValue": str}


def main(arguments: list[str]) -> None:
    """Runs TFX's executor with the arguments of a container.

    With mapped addresses, code that reads and writes artifacts needs no client of an object store.
    Parameters are not mapped: the folders of records and of pushed models are not artifacts. Raises
    PipelineError for an input artifact of unknown type, and what the executor raises.
    """
    root = os.environ.get(ROOT_VARIABLE, "")
    folders = {scheme: f"{root}{folder}" for scheme, folder in ARTIFACT_FOLDERS.items()}
    place = arguments.index(INPUT_OPTION) + 1
    executor_input = json.loads(arguments[place])
    inputs, outputs = executor_input.setdefault("inputs", {}), executor_input["outputs"]
    spec = None
    if SPEC_OPTION in arguments:
        spec = json.loads(arguments[arguments.index(SPEC_OPTION) + 1])
    _set_parameters(inputs, with_spec=spec is not None)
    _set_types(inputs.get("artifacts", {}), (spec or {}).get("artifacts", {}))
    # The engine adds outputs of its own, such as the log, which it writes itself.
    outputs["artifacts"] = {
        name: artifacts
        for name, artifacts in outputs.get("artifacts", {}).items()
        if not any(_title(each).startswith("system.") for each in artifacts["artifacts"])
    }
    for direction in (inputs, outputs):
        for scheme, folder in folders.items():
            mapped = _replaced(direction.get("artifacts", {}), scheme, folder)
            direction["artifacts"] = mapped
            _make_folders(mapped.values(), folder)

    sys.argv = [EXECUTOR, *arguments]
    sys.argv[place + 1] = json.dumps(executor_input)
    try:
        runpy.run_module(EXECUTOR, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code:
            raise

    # On Vertex AI it may be in the bucket.
    with fileio.open(outputs["outputFile"], "r") as file:
        content = json.loads(file.read())
    for scheme, folder in folders.items():
        content = _replaced(content, folder, scheme)
    with fileio.open(outputs["outputFile"], "w") as file:
        file.write(json.dumps(content))


def leave(code: int) -> None:
    """Ends the process at once, with all output written.

    TensorFlow's and Beam's destructors may abort the interpreter at its regular end ("pure virtual
    method called"), and so fail a pod whose work is done.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _set_parameters(inputs: dict[str, Any], *, with_spec: bool) -> None:
    """Gives the parameters in the form that TFX reads.

    That is `parameterValues` (version 2.1) if there is an inputs spec, else `parameters` (2.0).
    """
    if with_spec and "parameters" in inputs:
        inputs["parameterValues"] = {
            name: _VALUES[field](text)
            for name, value in inputs.pop("parameters").items()
            for field, text in value.items()
        } | inputs.get("parameterValues", {})
    elif not with_spec and "parameterValues" in inputs:
        inputs["parameters"] = {
            name: _value(value) for name, value in inputs.pop("parameterValues").items()
        } | inputs.get("parameters", {})


def _value(value: Any) -> dict[str, Any]:
    """Returns a parameter as the message Value, which has no other types."""
    if isinstance(value, float) and not value.is_integer():
        return {"doubleValue": value}
    if isinstance(value, int | float):
        return {"intValue": str(int(value))}
    return {"stringValue": value if isinstance(value, str) else json.dumps(value)}


def _set_types(inputs: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    """Gives every input artifact the type that the component declares for it.

    Kubeflow Pipelines hands artifacts over with an empty schema (tensorflow/tfx#7768) or with one of
    its own types, such as system.Model.
    """
    for name, artifacts in inputs.items():
        for artifact in artifacts.get("artifacts", []):
            if name in spec:
                artifact["type"] = spec[name]["artifactType"]
            elif not _title(artifact) or _title(artifact).startswith("system."):
                expected = f"an artifact type of TFX, from the engine or in {SPEC_OPTION}"
                raise PipelineError(f"input {name}", expected, repr(artifact.get("type")))


def _title(artifact: Mapping[str, Any]) -> str:
    """Returns the title of an artifact's type; empty if it has none."""
    kind = artifact.get("type", {})
    schema = yaml.safe_load(kind.get("instanceSchema", "")) or {}
    return kind.get("schemaTitle") or schema.get("title", "")


def _make_folders(lists: Iterable[Mapping[str, Any]], parent: str) -> None:
    """Makes the folders of artifacts below `parent`.

    An object store has no empty folders, so that the launcher copies none. What some file systems
    leave there for an empty one is an object without content, which it copies as a file.
    """
    for artifact in (each for artifacts in lists for each in artifacts.get("artifacts", [])):
        path = Path(artifact["uri"])
        if not artifact["uri"].startswith(parent):
            continue
        if path.is_file() and not path.stat().st_size:
            path.unlink()
        path.mkdir(parents=True, exist_ok=True)


def _replaced(content: Any, old: str, new: str) -> Any:
    """Returns nested content with the prefix `old` of every string replaced by `new`."""
    if isinstance(content, dict):
        return {name: _replaced(value, old, new) for name, value in content.items()}
    if isinstance(content, list):
        return [_replaced(value, old, new) for value in content]
    if isinstance(content, str) and content.startswith(old):
        return new + content.removeprefix(old)
    return content


if __name__ == "__main__":
    status = 0
    try:
        main(sys.argv[1:])
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    leave(status)
