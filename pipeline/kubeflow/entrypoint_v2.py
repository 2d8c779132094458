"""Entry point of v2 pods: TFX's executor, with artifact addresses mapped to mounted folders."""

from __future__ import annotations

import json
import runpy
import sys
from typing import Any

from tfx.dsl.io import fileio

EXECUTOR = "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor"
INPUT_OPTION = "--json_serialized_invocation_args"
# Vertex AI mounts every bucket here; Kubeflow Pipelines 2 copies inputs to and outputs from it.
ADDRESS, FOLDER = "gs://", "/gcs/"


def main(arguments: list[str], folder: str = FOLDER) -> None:
    """Runs TFX's executor with the arguments of a container.

    With mapped addresses, code that reads and writes artifacts needs no client of an object store.
    Parameters are not mapped: the folders of records and of pushed models are not artifacts.
    `folder` is where the pod mounts buckets.
    """
    place = arguments.index(INPUT_OPTION) + 1
    executor_input = json.loads(arguments[place])
    for way in ("inputs", "outputs"):
        found = executor_input.get(way, {}).get("artifacts", {})
        executor_input[way]["artifacts"] = _replaced(found, ADDRESS, folder)
    for artifacts in executor_input["outputs"]["artifacts"].values():
        for artifact in artifacts["artifacts"]:
            fileio.makedirs(artifact["uri"])
    sys.argv = [EXECUTOR, *arguments]
    sys.argv[place + 1] = json.dumps(executor_input)
    try:
        runpy.run_module(EXECUTOR, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code:
            raise

    answer = executor_input["outputs"]["outputFile"]
    with fileio.open(answer, "r") as file:
        content = json.loads(file.read())
    with fileio.open(answer, "w") as file:
        file.write(json.dumps(_replaced(content, folder, ADDRESS)))


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
    main(sys.argv[1:])
