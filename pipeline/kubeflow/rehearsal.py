"""`python -m pipeline.kubeflow.rehearsal`: runs the containers of a compiled pipeline locally."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.kubeflow.compiled import ARGO, CompiledPipeline, read_compiled
from pipeline.kubeflow.containers import RunContext, Start, run_argo_node, start_process
from pipeline.kubeflow.launcher_v2 import run_v2_node
from preprocessing.cli import make_parser, run_command
from preprocessing.errors import PipelineError, SettingsError
from preprocessing.files import write_json
from preprocessing.settings import one_of

RUN_FILE = "run.json"

PURPOSE = """\
Runs a pipeline compiled by python -m pipeline.kubeflow_runner on this machine: every container's
command as a local process, in the order of the graph and with the inputs of its pod. Use it to
rehearse a pipeline before uploading it, or to debug a failed pod with --node.
For a v2 spec, containers get what the launcher of Kubeflow Pipelines 2 gives them: its JSON, and copies
of the input artifacts below a folder of their own; artifacts are kept below OUTPUT/store, or in the
folder that --mount names for their bucket.
For an Argo workflow, lineage goes to OUTPUT/metadata.sqlite, served by the protocol of the cluster's
metadata store, or with --metadata to that store itself.

Writes OUTPUT/logs/NODE.log and OUTPUT/run.json (seconds per node); the pipeline's outputs go to its
storage root. The container image is not used: the commands run in this environment."""

EXAMPLES = (
    "python -m pipeline.kubeflow.rehearsal compiled/ahnet-kfp2.yaml --output rehearsal \\",
    "    --mount /mnt/ahnet=volume",
    "python -m pipeline.kubeflow.rehearsal compiled/ahnet-kfp2.yaml --output rehearsal --node Trainer3D",
    "one node of a run in the cluster: see docs/kubeflow.md",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser("pipeline.kubeflow.rehearsal", PURPOSE, EXAMPLES)
    add = parser.add_argument
    add("spec", metavar="SPEC", help="compiled pipeline, .yaml or .json")
    add("--output", required=True, metavar="DIR", help="folder for logs")
    add("--node", metavar="NAME", help="run only this node, of the last run or of --run")
    add(
        "--mount",
        action="append",
        default=[],
        metavar="PATH=FOLDER",
        help="a folder of this machine for what the pods see at PATH: a volume's path, or for a bucket "
        "/gcs/BUCKET, /minio/BUCKET or /s3/BUCKET; repeatable",
    )
    add("--metadata", metavar="HOST:PORT", help="a cluster's metadata store (Argo workflows)")
    add("--run", metavar="NAME", help="the run's name; of a cluster's run, its workflow's")
    return run_command(_run, parser.parse_args(argv))


def run_compiled(
    pipeline: CompiledPipeline,
    context: RunContext,
    *,
    only: str | None = None,
    start: Start = start_process,
) -> dict[str, float]:
    """Runs the nodes of a compiled pipeline in order, or only one; returns the seconds of each.

    Raises:
      SettingsError: there is no node called `only`.
      PipelineError: a node failed.
    """
    names = [node.name for node in pipeline.nodes]
    if only is not None and only not in names:
        raise one_of(*names).error("--node", only)
    run = run_argo_node if pipeline.format == ARGO else run_v2_node
    seconds = {}
    for number, node in enumerate(pipeline.nodes, start=1):
        if only not in (None, node.name):
            continue
        print(f"[{number}/{len(names)}] {node.name}: started", flush=True)
        begun = time.monotonic()
        run(pipeline, node, context, start)
        seconds[node.name] = round(time.monotonic() - begun, 1)
        print(f"[{number}/{len(names)}] {node.name}: finished, {seconds[node.name]} s", flush=True)
    return seconds


def _run(arguments: argparse.Namespace) -> None:
    pipeline = read_compiled(arguments.spec)
    folder = Path(arguments.output).resolve()
    run = arguments.run or f"{pipeline.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if arguments.node and not arguments.run and (folder / RUN_FILE).is_file():
        run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["run"]
    mounts = dict(_mount(text) for text in arguments.mount)
    with _metadata(pipeline, folder, arguments.metadata) as address:
        context = RunContext(folder, run, address, mounts)
        record = {"spec": str(Path(arguments.spec).resolve()), "run": run}
        write_json(folder / RUN_FILE, record)
        try:
            seconds = run_compiled(pipeline, context, only=arguments.node)
        except PipelineError as error:
            name = error.where.removeprefix("component ")
            print(f"to run it again: {_again(arguments, run, name)}", file=sys.stderr)
            raise
    write_json(folder / RUN_FILE, record | {"seconds": seconds})
    root = pipeline.root
    print(
        f"outputs below {context.local(root) if pipeline.format == ARGO else context.stored(root)}"
    )


def _again(arguments: argparse.Namespace, run: str, node: str) -> str:
    """Returns the command that runs a failed node again."""
    words = [arguments.spec, "--output", arguments.output]
    for mount in arguments.mount:
        words += ["--mount", mount]
    if arguments.metadata:
        words += ["--metadata", arguments.metadata, "--run", run]
    return shlex.join(["python", "-m", "pipeline.kubeflow.rehearsal", *words, "--node", node])


def _mount(text: str) -> tuple[str, str]:
    path, _, folder = text.partition("=")
    if not path.startswith("/") or not folder or set(folder) & set("\"'\\"):
        expected = "PATH=FOLDER, with an absolute path in the pods, and no quotes"
        raise SettingsError("--mount", expected, repr(text))
    return path, str(Path(folder).resolve())


@contextlib.contextmanager
def _metadata(
    pipeline: CompiledPipeline, folder: Path, address: str | None
) -> Iterator[tuple[str, int] | None]:
    """Yields the address of the metadata store; None for v2 specs, which have none."""
    if address is not None:
        host, _, digits = address.rpartition(":")
        if not host or not digits.isdigit():
            raise SettingsError("--metadata", "HOST:PORT", repr(address))
        yield host, int(digits)
    elif pipeline.format == ARGO:
        from pipeline.kubeflow.metadata_server import serve_metadata

        folder.mkdir(parents=True, exist_ok=True)
        with serve_metadata(folder / "metadata.sqlite") as port:
            yield "127.0.0.1", port
    else:
        yield None


if __name__ == "__main__":
    sys.exit(main())
