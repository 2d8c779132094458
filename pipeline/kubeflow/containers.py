"""A compiled pipeline's containers as processes of this machine, with the inputs that a pod would get."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.kubeflow.compiled import ARGO, CompiledPipeline, Node
from preprocessing.errors import InputError, PipelineError
from preprocessing.files import write_json

# Starts a command, its output in a file, and returns its exit code.
Start = Callable[[list[str], Mapping[str, str], Path], int]

_ROOT_PARAMETER = "{{inputs.parameters.pipeline-root}}"
_EXECUTOR_INPUT = "{{$}}"


@dataclass(frozen=True)
class Surroundings:
    """What a cluster would provide.

    Attributes:
      folder: for logs and what nodes have made.
      run: the run's name; part of the addresses of outputs.
      metadata: host and port of the metadata store, for Argo workflows.
      mounts: folder of this machine by path in the pods.
    """

    folder: Path
    run: str
    metadata: tuple[str, int] | None = None
    mounts: Mapping[str, str] = field(default_factory=dict)

    def log(self, node: str) -> Path:
        """Returns the file that a node's output is written to."""
        return self.folder / "logs" / f"{node}.log"

    def made(self, node: str) -> Path:
        """Returns the file that says which artifacts a node made, for version 2."""
        return self.folder / self.run / f"{node}.json"

    def here(self, text: str) -> str:
        """Returns a text with the pods' paths replaced by this machine's."""
        for path, folder in self.mounts.items():
            text = re.sub(rf"(?<![\w./-]){re.escape(path.rstrip('/'))}(?![\w.-])", folder, text)
        return text


def start_process(command: list[str], environment: Mapping[str, str], log: Path) -> int:
    """Runs a command as a process of its own."""
    with log.open("ab") as output:
        return subprocess.run(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode


def run_node(
    pipeline: CompiledPipeline,
    node: Node,
    surroundings: Surroundings,
    start: Start = start_process,
) -> None:
    """Runs a node's command as its pod would.

    Raises:
      PipelineError: the command failed; with the last line that it printed.
      InputError: a node that it waits for has not run.
    """
    log = surroundings.log(node.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    if pipeline.format == ARGO:
        _execute(_argo_command(pipeline, node, surroundings), node, surroundings, start)
        return
    executor_input = _executor_input(pipeline, node, surroundings)
    for command in filter(None, (node.first, node.command)):
        content = json.dumps(executor_input)
        words = [content if word == _EXECUTOR_INPUT else word for word in command]
        _execute(words, node, surroundings, start)
        _take_over(executor_input)
    write_json(surroundings.made(node.name), executor_input["outputs"]["artifacts"])


def last_line(log: Path) -> str:
    """Returns the last line of a log that says something."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing printed")


def _execute(command: list[str], node: Node, surroundings: Surroundings, start: Start) -> None:
    log = surroundings.log(node.name)
    environment = os.environ | _environment(node, surroundings)
    code = start([surroundings.here(word) for word in command], environment, log)
    if code:
        raise PipelineError(
            f"component {node.name}", "exit code 0", f"{code}: {last_line(log)}", f"See {log}."
        )


def _environment(node: Node, surroundings: Surroundings) -> dict[str, str]:
    variables = {
        # The image has its environment first on the PATH.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "WORKFLOW_ID": surroundings.run,
        "KFP_POD_NAME": f"{surroundings.run}-{node.name.lower()}",
    }
    if surroundings.metadata:
        host, port = surroundings.metadata
        variables["METADATA_GRPC_SERVICE_HOST"] = host
        variables["METADATA_GRPC_SERVICE_PORT"] = str(port)
    return variables


def _argo_command(pipeline: CompiledPipeline, node: Node, surroundings: Surroundings) -> list[str]:
    command = [word.replace(_ROOT_PARAMETER, pipeline.root) for word in node.command]
    place = command.index("--metadata_ui_path") + 1
    # Every pod has a /tmp of its own.
    command[place] = str(surroundings.log(node.name).with_suffix(".ui.json"))
    return command


def _executor_input(
    pipeline: CompiledPipeline, node: Node, surroundings: Surroundings
) -> dict[str, Any]:
    """Returns what an engine of version 2 puts in for {{$}}: the message ExecutorInput as JSON."""
    root = f"{surroundings.here(pipeline.root)}/{surroundings.run}/{node.name}"
    parameters = {
        name: parameter["runtimeValue"]["constant"]
        for name, parameter in node.inputs.get("parameters", {}).items()
    }
    inputs = {}
    for name, source in node.inputs.get("artifacts", {}).items():
        producer = source["taskOutputArtifact"]["producerTask"]
        made = surroundings.made(producer)
        if not made.is_file():
            raise InputError(
                made, f"what {producer} made", "no such file", f"Run {producer} first."
            )
        artifacts = json.loads(made.read_text(encoding="utf-8"))
        inputs[name] = artifacts[source["taskOutputArtifact"]["outputArtifactKey"]]
    outputs = {
        name: {
            "artifacts": [
                {
                    "name": f"{surroundings.run}/{node.name}/{name}",
                    "uri": f"{root}/{name}",
                    "type": output["artifactType"],
                }
            ]
        }
        for name, output in node.outputs.items()
    }
    return {
        "inputs": {"parameterValues": parameters, "artifacts": inputs},
        "outputs": {"artifacts": outputs, "outputFile": f"{root}/executor_output.json"},
    }


def _take_over(executor_input: dict[str, Any]) -> None:
    """Puts what a command says of its outputs among them, as the engine does with its answer."""
    answer = Path(executor_input["outputs"]["outputFile"])
    content = json.loads(answer.read_text(encoding="utf-8"))
    outputs = executor_input["outputs"]["artifacts"]
    for name, artifacts in content.get("artifacts", {}).items():
        # Types are the spec's own and not repeated in answers.
        outputs[name]["artifacts"] = [
            old | new
            for old, new in zip(outputs[name]["artifacts"], artifacts["artifacts"], strict=True)
        ]
