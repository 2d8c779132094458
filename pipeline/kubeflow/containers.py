"""Runs the container commands of a compiled pipeline as local processes, in the surroundings of their pods."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.kubeflow.cluster import ARTIFACT_FOLDERS
from pipeline.kubeflow.compiled import CompiledPipeline, Node
from preprocessing.errors import PipelineError

# Runs a command with an environment, appends its output to a file, and returns its exit code.
Start = Callable[[list[str], Mapping[str, str], Path], int]

_ROOT_PARAMETER = "{{inputs.parameters.pipeline-root}}"


@dataclass(frozen=True)
class RunContext:
    """Run name, mounts and metadata store of one local run.

    Attributes:
      folder: folder for logs and the records of finished nodes.
      run: name of the run, part of the addresses of outputs.
      metadata: host and port, for Argo workflows.
      mounts: local folder by path in the pods; for a bucket, of the folder of its artifacts.
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
        """Returns `text` with paths in the pods, and addresses of mounted buckets, replaced."""
        for path, folder in self.mounts.items():
            names = [path.rstrip("/")]
            for scheme, place in ARTIFACT_FOLDERS.items():
                if path.startswith(place):
                    names.append(scheme + names[0].removeprefix(place))
            for name in names:
                text = re.sub(rf"(?<![\w./-]){re.escape(name)}(?![\w.-])", folder, text)
        return text

    def stored(self, address: str) -> Path:
        """Returns the local path that stands for an address in an object store."""
        for scheme, place in ARTIFACT_FOLDERS.items():
            if address.startswith(scheme):
                path = place + address.removeprefix(scheme)
                local = self.local(path)
                return Path(local) if local != path else self.folder / "store" / path[1:]
        raise PipelineError(address, f"an address {', '.join(ARTIFACT_FOLDERS)}...", "another")


def start_process(command: list[str], environment: Mapping[str, str], log: Path) -> int:
    """Runs a command as a process; the default `Start`."""
    with log.open("ab") as output:
        return subprocess.run(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode


def run_argo_node(
    pipeline: CompiledPipeline, node: Node, context: RunContext, start: Start
) -> None:
    """Runs a node's command as the pod of an Argo workflow would; raises PipelineError if it failed."""
    command = [word.replace(_ROOT_PARAMETER, pipeline.root) for word in node.command]
    # Every pod has a /tmp of its own; local processes share one.
    ui = context.log(node.name).with_suffix(".ui.json")
    command[command.index("--metadata_ui_path") + 1] = str(ui)
    environment = {
        "WORKFLOW_ID": context.run,
        "KFP_POD_NAME": f"{context.run}-{node.name.lower()}",
    }
    if context.metadata:
        host, port = context.metadata
        environment["METADATA_GRPC_SERVICE_HOST"] = host
        environment["METADATA_GRPC_SERVICE_PORT"] = str(port)
    execute([context.local(word) for word in command], node, context, start, environment)


def execute(
    command: list[str],
    node: Node,
    context: RunContext,
    start: Start,
    environment: Mapping[str, str],
) -> None:
    """Runs a command, its output going to the node's log.

    Raises PipelineError with the last line of the output if the command failed.
    """
    # The image has its environment first on the PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    log = context.log(node.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    code = start(command, {**os.environ, "PATH": path, **environment}, log)
    if code:
        output = log.read_text(encoding="utf-8", errors="replace").strip() or "no output"
        found = f"{code}: {output.splitlines()[-1].strip()}"
        raise PipelineError(f"component {node.name}", "exit code 0", found, f"See {log}.")
