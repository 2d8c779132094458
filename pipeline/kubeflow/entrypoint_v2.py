"""What a pod of version 2 runs: TFX's executor, which sees artifacts as folders of the pod."""

from __future__ import annotations

import json
import runpy
import sys
from typing import Any

from tfx.dsl.io import fileio

EXECUTOR = "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor"
INPUT_OPTION = "--json_serialized_invocation_args"
# Vertex AI mounts every bucket here; Kubeflow Pipelines 2 puts inputs here and fetches outputs.
ADDRESS, FOLDER = "gs://", "/gcs/"


def main(arguments: list[str], folder: str = FOLDER) -> None:
    """Runs TFX's executor on the arguments of a container.

    Code that reads and writes artifacts then needs no client of an object store. Parameters stay as
    they are: the folder of records and that of pushed models are no artifacts.

    Args:
      arguments: as the engine hands them over.
      folder: where the pod sees the buckets.
    """
    place = arguments.index(INPUT_OPTION) + 1
    executor_input = json.loads(arguments[place])
    for way in ("inputs", "outputs"):
        found = executor_input.get(way, {}).get("artifacts", {})
        executor_input[way]["artifacts"] = _replaced(found, ADDRESS, folder)
    for artifacts in executor_input["outputs"]["artifacts"].values():
        for artifact in artifacts["artifacts"]:
            fileio.makedirs(artifact["uri"])
    arguments = [*arguments]
    arguments[place] = json.dumps(executor_input)
    run_module(EXECUTOR, arguments)

    answer = executor_input["outputs"]["outputFile"]
    with fileio.open(answer, "r") as file:
        content = json.loads(file.read())
    with fileio.open(answer, "w") as file:
        file.write(json.dumps(_replaced(content, folder, ADDRESS)))


def run_module(name: str, arguments: list[str]) -> None:
    """Runs `python -m NAME ARGUMENTS` in this process; ends it if that fails."""
    sys.argv = [name, *arguments]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code:
            raise


def _replaced(content: Any, old: str, new: str) -> Any:
    """Returns nested content with another beginning for every text that begins with `old`."""
    if isinstance(content, dict):
        return {name: _replaced(value, old, new) for name, value in content.items()}
    if isinstance(content, list):
        return [_replaced(value, old, new) for value in content]
    if isinstance(content, str) and content.startswith(old):
        return new + content.removeprefix(old)
    return content


if __name__ == "__main__":
    main(sys.argv[1:])
