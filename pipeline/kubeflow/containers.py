"""Runs the container commands of a compiled pipeline as local processes, with the inputs of their pods."""

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

# Runs a command with an environment, appends its output to a file, and returns its exit code.
Start = Callable[[list[str], Mapping[str, str], Path], int]

_ROOT_PARAMETER = "{{inputs.parameters.pipeline-root}}"
_EXECUTOR_INPUT = "{{$}}"


@dataclass(frozen=True)
class RunContext:
    """Run name, mounts and metadata store of one local run.

    Attributes:
      folder: folder for logs and the records of finished nodes.
      run: name of the run, part of the addresses of outputs.
      metadata: host and port, for Argo workflows.
      mounts: local folder by path in the pods.
    """

    folder: Path
    run: str
    metadata: tuple[str, int] | None = None
    mounts: Mapping[str, str] = field(default_factory=dict)

    def log(self, node: str) -> Path:
        """Returns the log file of a node."""
        return self.folder / "logs" / f"{node}.log"

    def artifacts(self, node: str) -> Path:
        """Returns the file with the output artifacts of a finished node (v2 specs)."""
        return self.folder / self.run / f"{node}.json"

    def local(self, text: str) -> str:
        """Returns `text` with paths in the pods replaced by local paths."""
        for path, folder in self.mounts.items():
            text = re.sub(rf"(?<![\w./-]){re.escape(path.rstrip('/'))}(?![\w.-])", folder, text)
        return text


def start_process(command: list[str], environment: Mapping[str, str], log: Path) -> int:
    """Runs a command as a process; the default `Start`."""
    with log.open("ab") as output:
        return subprocess.run(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode


def run_node(
    pipeline: CompiledPipeline, node: Node, context: RunContext, start: Start = start_process
) -> None:
    """Runs a node's command as its pod would.

    Raises:
      PipelineError: the command failed; quotes the last line of its output.
      InputError: a node that it depends on has not run.
    """
    log = context.log(node.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    if pipeline.format == ARGO:
        command = [word.replace(_ROOT_PARAMETER, pipeline.root) for word in node.command]
        # Every pod has a /tmp of its own; local processes share one.
        command[command.index("--metadata_ui_path") + 1] = str(log.with_suffix(".ui.json"))
        _execute(command, node, context, start)
        return
    executor_input = _executor_input(pipeline, node, context)
    for compiled in filter(None, (node.driver, node.command)):
        content = json.dumps(executor_input)
        words = [content if word == _EXECUTOR_INPUT else word for word in compiled]
        _execute(words, node, context, start)
        # What an executor wrote about its outputs, without the types of the spec.
        answer = Path(executor_input["outputs"]["outputFile"])
        written = json.loads(answer.read_text(encoding="utf-8")).get("artifacts", {})
        for name, each in written.items():
            outputs = executor_input["outputs"]["artifacts"][name]
            pairs = zip(outputs["artifacts"], each["artifacts"], strict=True)
            outputs["artifacts"] = [old | new for old, new in pairs]
    write_json(context.artifacts(node.name), executor_input["outputs"]["artifacts"])


def _execute(command: list[str], node: Node, context: RunContext, start: Start) -> None:
    environment = os.environ | {
        # The image has its environment first on the PATH.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "WORKFLOW_ID": context.run,
        "KFP_POD_NAME": f"{context.run}-{node.name.lower()}",
    }
    if context.metadata:
        host, port = context.metadata
        environment["METADATA_GRPC_SERVICE_HOST"] = host
        environment["METADATA_GRPC_SERVICE_PORT"] = str(port)
    log = context.log(node.name)
    code = start([context.local(word) for word in command], environment, log)
    if code:
        output = log.read_text(encoding="utf-8", errors="replace").strip() or "no output"
        found = f"{code}: {output.splitlines()[-1].strip()}"
        raise PipelineError(f"component {node.name}", "exit code 0", found, f"See {log}.")


def _executor_input(pipeline: CompiledPipeline, node: Node, context: RunContext) -> dict[str, Any]:
    """Returns what a v2 engine substitutes for {{$}}: the message ExecutorInput as JSON."""
    root = f"{context.local(pipeline.root)}/{context.run}/{node.name}"
    parameters = {
        name: parameter["runtimeValue"]["constant"]
        for name, parameter in node.inputs.get("parameters", {}).items()
    }
    inputs = {}
    for name, source in node.inputs.get("artifacts", {}).items():
        producer = source["taskOutputArtifact"]["producerTask"]
        file = context.artifacts(producer)
        if not file.is_file():
            raise InputError(file, f"artifacts of {producer}", "no such file", f"Run {producer}.")
        artifacts = json.loads(file.read_text(encoding="utf-8"))
        inputs[name] = artifacts[source["taskOutputArtifact"]["outputArtifactKey"]]
    outputs = {}
    for name, output in node.outputs.items():
        artifact = {"name": f"{context.run}/{node.name}/{name}", "uri": f"{root}/{name}"}
        outputs[name] = {"artifacts": [artifact | {"type": output["artifactType"]}]}
    return {
        "inputs": {"parameterValues": parameters, "artifacts": inputs},
        "outputs": {"artifacts": outputs, "outputFile": f"{root}/executor_output.json"},
    }
