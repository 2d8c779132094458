"""Runs a container of a v2 spec with what the driver and launcher of Kubeflow Pipelines 2 give it.

That is an ExecutorInput, copies of the input artifacts in a folder of the pod, and nothing else: no
artifact types, no hooks, no shared folder. After kubeflow/pipelines' backend/src/v2: driver/container.go,
component/launcher_v2.go, metadata/converter.go and objectstore/object_store.go.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.kubeflow.cluster import ARTIFACT_FOLDERS, ROOT_VARIABLE
from pipeline.kubeflow.compiled import CompiledPipeline, Node
from pipeline.kubeflow.containers import RunContext, Start, execute
from preprocessing.errors import InputError, PipelineError
from preprocessing.files import write_json

# In the pod, where every process has a /tmp of its own.
OUTPUT_FILE = "/tmp/kfp_outputs/output_metadata.json"
_EXECUTOR_INPUT = "{{$}}"
# How the launcher reached the bucket, which it records with every artifact.
SESSION = '{"Provider":"minio","Params":{"fromEnv":"true"}}'

Artifacts = Mapping[str, Any]


def run_v2_node(pipeline: CompiledPipeline, node: Node, context: RunContext, start: Start) -> None:
    """Runs a node's command as the pod of a v2 spec would.

    Raises:
      PipelineError: the command failed, or its outputs are not what the engine can record.
      InputError: a node that it depends on has not run.
    """
    content = executor_input(pipeline, node, context)
    pod = context.folder / context.run / node.name
    shutil.rmtree(pod, ignore_errors=True)
    inputs, outputs = (content[way].get("artifacts", {}) for way in ("inputs", "outputs"))
    for artifact in _each(inputs):
        _copy(context.stored(artifact["uri"]), _in_pod(pod, artifact["uri"]))
    for artifact in _each(outputs):
        _in_pod(pod, artifact["uri"]).parent.mkdir(parents=True, exist_ok=True)
    answer = pod / OUTPUT_FILE[1:]
    text = json.dumps(content).replace(OUTPUT_FILE, str(answer))
    words = [text if word == _EXECUTOR_INPUT else context.local(word) for word in node.command]
    execute(words, node, context, start, {ROOT_VARIABLE: str(pod)})

    written = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {}
    records = {}
    for name, artifacts in outputs.items():
        (artifact,) = artifacts["artifacts"]
        (made,) = written.get("artifacts", {}).get(name, {}).get("artifacts") or [{}]
        uri = made.get("uri") or artifact["uri"]
        # Of the node's last run: the engine would give each its own address.
        shutil.rmtree(context.stored(uri), ignore_errors=True)
        _copy(_in_pod(pod, uri), context.stored(uri))
        metadata = artifact.get("metadata", {}) | made.get("metadata", {})
        records[name] = {"uri": uri, "metadata": _recorded(metadata, node, name)}
    write_json(context.artifacts(node.name), records)


def executor_input(pipeline: CompiledPipeline, node: Node, context: RunContext) -> dict[str, Any]:
    """Returns what the launcher substitutes for {{$}}: the message ExecutorInput as JSON.

    Raises InputError if a node that it depends on has not run.
    """
    inputs: dict[str, Any] = {}
    # TensorFlow reads buckets in parameters by itself; here there are none.
    values = {
        name: parameter["runtimeValue"]["constant"]
        for name, parameter in node.inputs.get("parameters", {}).items()
    }
    if values:
        inputs["parameterValues"] = json.loads(context.local(json.dumps(values)))
    order = {each.name: number for number, each in enumerate(pipeline.nodes, start=1)}
    for name, source in node.inputs.get("artifacts", {}).items():
        producer = source["taskOutputArtifact"]["producerTask"]
        key = source["taskOutputArtifact"]["outputArtifactKey"]
        file = context.artifacts(producer)
        if not file.is_file():
            raise InputError(file, f"artifacts of {producer}", "no such file", f"Run {producer}.")
        records = json.loads(file.read_text(encoding="utf-8"))
        # The id in the metadata store. The store's client returns no schema.
        identity = str(100 * order[producer] + [*records].index(key))
        artifact = {"name": identity, "type": {"instanceSchema": ""}, **records[key]}
        inputs.setdefault("artifacts", {})[name] = {"artifacts": [artifact]}
    salt = uuid.uuid5(uuid.NAMESPACE_URL, f"{context.run}/{node.name}")
    root = f"{pipeline.root}/{pipeline.name}/{context.run}/{node.name}/{salt}"
    outputs: dict[str, Any] = {"outputFile": OUTPUT_FILE}
    for name, output in node.outputs.items():
        artifact = {"uri": f"{root}/{name}", "type": output["artifactType"]}
        if "metadata" in output:
            artifact["metadata"] = output["metadata"]
        outputs.setdefault("artifacts", {})[name] = {"artifacts": [artifact]}
    return {"inputs": inputs, "outputs": outputs}


def _each(artifacts: Artifacts) -> Iterator[dict[str, Any]]:
    return (artifact for each in artifacts.values() for artifact in each["artifacts"])


def _in_pod(pod: Path, address: str) -> Path:
    """Returns where a pod's launcher has the files of an artifact."""
    for scheme, place in ARTIFACT_FOLDERS.items():
        if address.startswith(scheme):
            return pod / (place[1:] + address.removeprefix(scheme))
    raise PipelineError(address, f"an address {', '.join(ARTIFACT_FOLDERS)}...", "another")


def _copy(source: Path, target: Path) -> None:
    """Copies the files of an artifact; an object store has no folders, so empty ones are lost."""
    for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
        if path.is_file():
            to = target / path.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)


def _recorded(metadata: Mapping[str, Any], node: Node, output: str) -> dict[str, Any]:
    """Returns metadata as it comes back from the metadata store.

    Raises PipelineError for null, which the engine can't record.
    """
    convert: dict[type, Callable] = {
        bool: int,
        list: lambda value: {"list": value},
        dict: lambda value: {"struct": value},
    }
    for name, value in metadata.items():
        if value is None:
            where = f"component {node.name}, output {output}"
            raise PipelineError(where, f"a value of {name} in the metadata", "null")
    recorded = {
        name: convert.get(type(value), lambda v: v)(value) for name, value in metadata.items()
    }
    return {"display_name": output, "store_session_info": SESSION, **recorded}
