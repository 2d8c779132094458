"""`python -m pipeline.kubeflow_runner`: compiles the pipeline for Kubeflow and Vertex AI.

Also the file for `tfx pipeline compile --engine=kubeflow --pipeline_path=...`.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    # Started by path, as by the tfx command line: make Python find packages from the project's folder.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.configs import PipelineSettings, beam_arguments
from pipeline.kubeflow.cluster import DEFAULT_POD, OBJECT_STORE, KubeflowSettings
from pipeline.local_runner import OPTIONS_VARIABLE
from pipeline.options import add_pipeline_options, pipeline_settings
from preprocessing.cli import make_parser, run_command
from preprocessing.errors import SettingsError
from preprocessing.files import write_json
from preprocessing.settings import check_names, load_settings, one_of, to_dict

ENGINES = ("kubeflow", "vertex")
# Pipeline names that both engines accept.
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

PURPOSE = """\
Compiles the TFX pipeline for a cluster, without running anything or connecting to the cluster.
--engine kubeflow writes OUTPUT/NAME.yaml, an Argo workflow for the v1 API of Kubeflow Pipelines,
with lineage in the cluster's metadata store and caching. --engine vertex writes v2 pipeline specs:
OUTPUT/NAME.json for Vertex AI and OUTPUT/NAME-kfp2.yaml for Kubeflow Pipelines 2.

Image, storage, volumes, secrets, resources and Beam options come from the file --cluster
(docs/kubeflow.md); all other options are those of python -m pipeline.local_runner. --input and
--volumes are addresses as seen by the pods. All settings are recorded beside the specs, in
OUTPUT/pipeline.json and OUTPUT/kubeflow.json."""

EXAMPLES = (
    "python -m pipeline.kubeflow_runner --cluster kubeflow.json --input /mnt/ahnet/records \\",
    "    --task ct_liver --output compiled",
    "python -m pipeline.kubeflow_runner --cluster kubeflow.json --engine vertex \\",
    "    --input gs://bucket/records --task ct_liver --output compiled",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser("pipeline.kubeflow_runner", PURPOSE, EXAMPLES)
    add = parser.add_argument
    add("--cluster", required=True, metavar="FILE", help="settings of the cluster (JSON)")
    engine = "(default: that of the tfx command line, else kubeflow)"
    add("--engine", metavar="|".join(ENGINES), help=engine)
    add("--output", required=True, metavar="DIR", help="folder for the specs")
    add_pipeline_options(parser, on_cluster=True)
    if argv is None and len(sys.argv) == 1 and OPTIONS_VARIABLE in os.environ:
        argv = shlex.split(os.environ[OPTIONS_VARIABLE])
    return run_command(_run, parser.parse_args(argv))


def compile_pipeline(
    pipeline: PipelineSettings, cluster: KubeflowSettings, engine: str, output: Path
) -> list[Path]:
    """Writes the specs of a pipeline for one of `ENGINES` into a folder; returns their paths.

    Raises SettingsError for an unknown engine, an invalid name or address, or settings for a
    component that the pipeline does not have.
    """
    if engine == "local":
        remedy = "On this machine it runs by python -m pipeline.local_runner."
        raise SettingsError("--engine", f"one of {', '.join(ENGINES)}", repr(engine), remedy)
    if engine not in ENGINES:
        raise one_of(*ENGINES).error("--engine", engine)
    if not _NAME.fullmatch(pipeline.name):
        expected = "lower-case letters, digits and hyphens"
        raise SettingsError("--pipeline-name", expected, repr(pipeline.name))
    # Artifacts are folders on a volume in Argo workflows, and bucket addresses in v2 specs.
    if pipeline.output.startswith(OBJECT_STORE) != (engine == "vertex"):
        expected = f"an address {OBJECT_STORE}..." if engine == "vertex" else "a folder on a volume"
        raise SettingsError("storage_root", f"{expected} for --engine {engine}", pipeline.output)
    from pipeline.dag import create_pipeline

    dag = create_pipeline(
        pipeline,
        has_metadata=engine == "kubeflow",
        beam_arguments=beam_arguments(cluster.beam_options),
    )
    check_names(cluster.pods, [DEFAULT_POD, *(node.id for node in dag.components)], "pods")
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "pipeline.json", pipeline.to_dict())
    write_json(output / "kubeflow.json", to_dict(cluster))
    if engine == "kubeflow":
        from pipeline.kubeflow.argo import argo_runner

        argo_runner(cluster, output, f"{pipeline.name}.yaml").run(dag)
        return [output / f"{pipeline.name}.yaml"]

    from pipeline.kubeflow.spec_v2 import V2Runner, set_resources, write_yaml

    set_resources(dag, cluster)
    job = V2Runner(cluster, output, f"{pipeline.name}.json").run(dag)
    if job is not None:
        write_yaml(job, cluster, output / f"{pipeline.name}-kfp2.yaml")
    return [output / f"{pipeline.name}.json", output / f"{pipeline.name}-kfp2.yaml"]


def _run(arguments: argparse.Namespace) -> None:
    engine = arguments.engine or _tfx_engine() or ENGINES[0]
    cluster = load_settings(arguments.cluster, KubeflowSettings)
    pipeline = pipeline_settings(arguments, cluster.storage_root)
    for path in compile_pipeline(pipeline, cluster, engine, Path(arguments.output).resolve()):
        print(path)


def _tfx_engine() -> str | None:
    """Returns the --engine option of the tfx command line if it is running this file."""
    if "tfx.tools.cli.cli_context" not in sys.modules:
        return None
    import click
    from tfx.tools.cli import cli_context, labels

    context = click.get_current_context(silent=True)
    command = context and context.find_object(cli_context.Context)
    return command.flags_dict.get(labels.ENGINE_FLAG) if command else None


if __name__ == "__main__":
    sys.exit(main())
