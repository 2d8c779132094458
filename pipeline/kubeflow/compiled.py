"""Compiled pipelines as plain data: each node's command and what it waits for, whatever the format."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from preprocessing.errors import InputError

ARGO = "argo"
V2 = "v2"


@dataclass(frozen=True)
class Node:
    """One container of a compiled pipeline.

    Attributes:
      name: the component's id.
      needs: ids of those that it waits for.
      image: the image that it runs in.
      command: its command with all arguments; placeholders stand as they were compiled.
      first: a command that the engine runs before it (example generators in version 2); may be empty.
      inputs: parameters and artifacts as version 2 describes them.
      outputs: the same of what it makes.
    """

    name: str
    needs: tuple[str, ...]
    image: str
    command: tuple[str, ...]
    first: tuple[str, ...] = ()
    inputs: Mapping[str, Any] | None = None
    outputs: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class CompiledPipeline:
    """A compiled pipeline.

    Attributes:
      format: `ARGO` or `V2`.
      name: the pipeline's name.
      root: where its outputs lie, as the pods see it.
      nodes: in an order in which they can run.
    """

    format: str
    name: str
    root: str
    nodes: tuple[Node, ...]

    def node(self, name: str) -> Node:
        """Returns the node of a name."""
        return next(node for node in self.nodes if node.name == name)


def read_compiled(path: str | Path) -> CompiledPipeline:
    """Reads an Argo workflow (YAML, or within a .tar.gz) or a pipeline spec of version 2.

    Raises:
      InputError: no such file, or none of these.
    """
    expected = "an Argo workflow or a pipeline spec that python -m pipeline.kubeflow_runner wrote"
    try:
        if str(path).endswith((".tar.gz", ".tgz")):
            with tarfile.open(path) as archive:
                text = archive.extractfile("pipeline.yaml").read().decode()
        else:
            text = Path(path).read_text(encoding="utf-8")
        documents = [json.loads(text)] if text.startswith("{") else list(yaml.safe_load_all(text))
    except OSError as error:
        raise InputError(path, expected, error.strerror or error) from None
    except (ValueError, KeyError, tarfile.TarError, yaml.YAMLError) as error:
        raise InputError(path, expected, f"{type(error).__name__}: {error}") from None
    content = documents[0] if documents and isinstance(documents[0], dict) else {}
    try:
        if content.get("kind") == "Workflow":
            return _from_argo(content)
        specification = content.get("pipelineSpec", content)
        if "deploymentSpec" in specification:
            job = content.get("runtimeConfig", {})
            root = job.get("gcsOutputDirectory") or specification["defaultPipelineRoot"]
            return _from_v2(specification, root)
    except (KeyError, TypeError, ValueError, StopIteration, CycleError) as error:
        raise InputError(path, expected, f"{type(error).__name__}: {error}") from None
    raise InputError(path, expected, "neither")


def _from_argo(workflow: Mapping[str, Any]) -> CompiledPipeline:
    specification = workflow["spec"]
    templates = {template["name"]: template for template in specification["templates"]}
    tasks = templates[specification["entrypoint"]]["dag"]["tasks"]
    ids = {task["name"]: _argument(templates[task["template"]], "--node_id") for task in tasks}
    nodes = {}
    for task in tasks:
        container = templates[task["template"]]["container"]
        name = ids[task["name"]]
        nodes[name] = Node(
            name=name,
            needs=tuple(ids[needed] for needed in task.get("dependencies", ())),
            image=container["image"],
            command=(*container["command"], *container["args"]),
        )
    parameters = {
        parameter["name"]: parameter["value"]
        for parameter in specification["arguments"]["parameters"]
    }
    name = workflow["metadata"]["generateName"].rstrip("-")
    return CompiledPipeline(ARGO, name, parameters["pipeline-root"], _sorted(nodes))


def _from_v2(specification: Mapping[str, Any], root: str) -> CompiledPipeline:
    nodes = {}
    for name, task in specification["root"]["dag"]["tasks"].items():
        component = specification["components"][task["componentRef"]["name"]]
        executor = specification["deploymentSpec"]["executors"][component["executorLabel"]]
        container = executor["container"]
        first = container.get("lifecycle", {}).get("preCacheCheck")
        nodes[name] = Node(
            name=name,
            needs=tuple(task.get("dependentTasks", ())),
            image=container["image"],
            command=(*container["command"], *container["args"]),
            first=(*first["command"], *first["args"]) if first else (),
            inputs=task.get("inputs", {}),
            outputs=component.get("outputDefinitions", {}).get("artifacts", {}),
        )
    return CompiledPipeline(V2, specification["pipelineInfo"]["name"], root, _sorted(nodes))


def _sorted(nodes: Mapping[str, Node]) -> tuple[Node, ...]:
    graph = {name: nodes[name].needs for name in nodes}
    return tuple(nodes[name] for name in TopologicalSorter(graph).static_order())


def _argument(template: Mapping[str, Any], option: str) -> str:
    arguments = template["container"]["args"]
    return arguments[arguments.index(option) + 1]
