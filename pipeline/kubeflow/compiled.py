"""Parses Argo workflows and Kubeflow v2 pipeline specs into nodes with commands and dependencies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from pipeline.kubeflow.cluster import DEFAULT_PIPELINE_ROOT
from preprocessing.errors import InputError

ARGO = "argo"
V2 = "v2"


@dataclass(frozen=True)
class Node:
    """One container of a compiled pipeline.

    Attributes:
      name: id of the component.
      needs: ids of the components that it depends on.
      command: command with all arguments; placeholders are left as compiled.
      inputs: parameters and artifacts, as in the v2 spec.
      outputs: output artifacts, as in the v2 spec.
    """

    name: str
    needs: tuple[str, ...]
    command: tuple[str, ...]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CompiledPipeline:
    """A compiled pipeline.

    Attributes:
      format: `ARGO` or `V2`.
      root: folder or address of its outputs, as seen by the pods.
      nodes: in topological order.
    """

    format: str
    name: str
    root: str
    nodes: tuple[Node, ...]


def read_compiled(path: str | Path) -> CompiledPipeline:
    """Reads an Argo workflow (YAML) or a v2 spec (JSON or YAML); raises InputError for all else."""
    expected = "an Argo workflow or a pipeline spec written by python -m pipeline.kubeflow_runner"
    try:
        text = Path(path).read_text(encoding="utf-8")
        documents = [json.loads(text)] if text.startswith("{") else list(yaml.safe_load_all(text))
    except OSError as error:
        raise InputError(path, expected, error.strerror or error) from None
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(path, expected, f"{type(error).__name__}: {error}") from None
    content = documents[0] if documents and isinstance(documents[0], dict) else {}
    try:
        if content.get("kind") == "Workflow":
            return _from_argo(content)
        spec = content.get("pipelineSpec", content)
        if "deploymentSpec" in spec:
            job = content.get("runtimeConfig", {})
            root = job.get("gcsOutputDirectory") or spec.get("defaultPipelineRoot")
            return _from_v2(spec, root or DEFAULT_PIPELINE_ROOT)
    except (KeyError, TypeError, ValueError, StopIteration, CycleError) as error:
        raise InputError(path, expected, f"{type(error).__name__}: {error}") from None
    raise InputError(path, expected, "neither")


def _from_argo(workflow: Mapping[str, Any]) -> CompiledPipeline:
    spec = workflow["spec"]
    templates = {template["name"]: template for template in spec["templates"]}
    tasks = templates[spec["entrypoint"]]["dag"]["tasks"]
    ids = {task["name"]: _argument(templates[task["template"]], "--node_id") for task in tasks}
    nodes = {}
    for task in tasks:
        container = templates[task["template"]]["container"]
        name = ids[task["name"]]
        nodes[name] = Node(
            name=name,
            needs=tuple(ids[needed] for needed in task.get("dependencies", ())),
            command=(*container["command"], *container["args"]),
        )
    parameters = {each["name"]: each["value"] for each in spec["arguments"]["parameters"]}
    name = workflow["metadata"]["generateName"].rstrip("-")
    return CompiledPipeline(ARGO, name, parameters["pipeline-root"], _sorted(nodes))


def _from_v2(spec: Mapping[str, Any], root: str) -> CompiledPipeline:
    nodes = {}
    for name, task in spec["root"]["dag"]["tasks"].items():
        component = spec["components"][task["componentRef"]["name"]]
        executor = spec["deploymentSpec"]["executors"][component["executorLabel"]]
        container = executor["container"]
        nodes[name] = Node(
            name=name,
            needs=tuple(task.get("dependentTasks", ())),
            command=(*container["command"], *container["args"]),
            inputs=task.get("inputs", {}),
            outputs=component.get("outputDefinitions", {}).get("artifacts", {}),
        )
    return CompiledPipeline(V2, spec["pipelineInfo"]["name"], root, _sorted(nodes))


def _sorted(nodes: Mapping[str, Node]) -> tuple[Node, ...]:
    graph = {name: node.needs for name, node in nodes.items()}
    return tuple(nodes[name] for name in TopologicalSorter(graph).static_order())


def _argument(template: Mapping[str, Any], option: str) -> str:
    arguments = template["container"]["args"]
    return arguments[arguments.index(option) + 1]
