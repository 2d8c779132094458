"""`python -m pipeline.kubeflow_runner`: the pipeline compiled for Kubeflow and Vertex AI.

The same file is what `tfx pipeline compile --engine=kubeflow --pipeline_path=...` takes.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    # Started by its path, as the tfx command line does: Python then looks for modules in this
    # folder first, where `pipeline` would be pipeline.py instead of the package.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.beam_options import beam_arguments
from pipeline.configs import PipelineSettings
from pipeline.kubeflow.cluster import OBJECT_STORE, KubeflowSettings, read_settings
from pipeline.local_runner import OPTIONS_VARIABLE
from pipeline.options import add_pipeline_options, pipeline_settings
from preprocessing.cli import make_parser, run_command
from preprocessing.errors import SettingsError
from preprocessing.files import write_json

ENGINES = ("kubeflow", "vertex")
# What both engines take as a pipeline's name.
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

PURPOSE = """\
Compiles the TFX pipeline for a cluster. Nothing is run and no cluster is asked.
--engine kubeflow writes OUTPUT/NAME.yaml, an Argo workflow for the first API of Kubeflow Pipelines:
components keep their lineage in the cluster's metadata store, and what hasn't changed is not
executed again. --engine vertex writes pipeline specs of version 2: OUTPUT/NAME.json for Vertex AI
and OUTPUT/NAME-kfp2.yaml for Kubeflow Pipelines 2.

Image, storage, volumes, secrets, resources and Beam's options come from the file --cluster
(docs/kubeflow.md explains each); what is computed, from the other options, as for
python -m pipeline.local_runner. --input and --volumes are addresses as the pods see them.
Beside the specs stand OUTPUT/pipeline.json and OUTPUT/kubeflow.json: all settings."""

EXAMPLES = (
    "python -m pipeline.kubeflow_runner --cluster kubeflow.json --input /mnt/ahnet/records \\",
    "    --task ct_liver --output compiled",
    "python -m pipeline.kubeflow_runner --cluster kubeflow.json --engine vertex \\",
    "    --input gs://bucket/records --task ct_liver --output compiled",
    "",
    "the same by the tfx command line, which takes the options from the environment:",
    f"  export {OPTIONS_VARIABLE}='--cluster kubeflow.json --input ... --output compiled'",
    "  tfx pipeline compile --engine=kubeflow --pipeline_path=pipeline/kubeflow_runner.py",
    "",
    "every command of a compiled pipeline, run on this machine:",
    "  python -m pipeline.kubeflow.rehearsal compiled/ahnet.yaml --output rehearsal",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser("pipeline.kubeflow_runner", PURPOSE, EXAMPLES)
    parser.add_argument(
        "--cluster", required=True, metavar="FILE", help="what is to be known about the cluster"
    )
    parser.add_argument(
        "--engine",
        metavar="|".join(ENGINES),
        help="(default: that of the tfx command line, else kubeflow)",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the specs")
    add_pipeline_options(parser, on_cluster=True)
    if argv is None and len(sys.argv) == 1 and OPTIONS_VARIABLE in os.environ:
        argv = shlex.split(os.environ[OPTIONS_VARIABLE])
    return run_command(_run, parser.parse_args(argv))


def compile_pipeline(
    pipeline: PipelineSettings, cluster: KubeflowSettings, engine: str, output: Path
) -> list[Path]:
    """Writes the specs of a pipeline for one of `ENGINES` into a folder; returns their paths.

    Raises:
      SettingsError: an unknown engine, a name or an address that it does not take, or settings for
        a component that the pipeline has not.
    """
    check_engine(engine)
    if not _NAME.fullmatch(pipeline.name):
        expected = "lower-case letters, digits and hyphens"
        raise SettingsError("--pipeline-name", expected, repr(pipeline.name))
    # Artifacts are folders of a volume in workflows, and addresses of buckets in version 2.
    if pipeline.output.startswith(OBJECT_STORE) != (engine == "vertex"):
        expected = f"an address {OBJECT_STORE}..." if engine == "vertex" else "a folder on a volume"
        raise SettingsError("storage_root", f"{expected} for --engine {engine}", pipeline.output)
    from pipeline.dag import create_pipeline

    dag = create_pipeline(
        pipeline,
        has_metadata=engine == "kubeflow",
        beam_arguments=beam_arguments(cluster.beam_options),
    )
    cluster.check_components([node.id for node in dag.components])
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "pipeline.json", pipeline.to_dict())
    write_json(output / "kubeflow.json", cluster.to_dict())
    if engine == "kubeflow":
        from pipeline.kubeflow.argo import argo_runner

        argo_runner(cluster, output, f"{pipeline.name}.yaml").run(dag)
        return [output / f"{pipeline.name}.yaml"]

    from pipeline.kubeflow.spec_v2 import set_resources, v2_runner, write_yaml

    set_resources(dag, cluster)
    job = v2_runner(cluster, output, f"{pipeline.name}.json").run(dag)
    write_yaml(job, cluster, output / f"{pipeline.name}-kfp2.yaml")
    return [output / f"{pipeline.name}.json", output / f"{pipeline.name}-kfp2.yaml"]


def check_engine(engine: str) -> None:
    """Refuses what is none of `ENGINES`.

    Raises:
      SettingsError: names the nearest one.
    """
    if engine not in ENGINES:
        near = difflib.get_close_matches(engine, [*ENGINES, "local"], n=1)
        remedy = f"Did you mean {near[0]!r}?" if near else ""
        if near == ["local"]:
            remedy = "On this machine it runs by python -m pipeline.local_runner."
        raise SettingsError("--engine", f"one of {', '.join(ENGINES)}", repr(engine), remedy)


def _run(arguments: argparse.Namespace) -> None:
    engine = arguments.engine or _tfx_engine() or ENGINES[0]
    check_engine(engine)
    cluster = read_settings(arguments.cluster)
    pipeline = pipeline_settings(arguments, cluster.storage_root)
    for path in compile_pipeline(pipeline, cluster, engine, Path(arguments.output).resolve()):
        print(path)


def _tfx_engine() -> str | None:
    """Returns the --engine of the tfx command line, if it runs this file."""
    if "tfx.tools.cli.cli_context" not in sys.modules:
        return None
    import click
    from tfx.tools.cli import cli_context, labels

    context = click.get_current_context(silent=True)
    command = context and context.find_object(cli_context.Context)
    return command.flags_dict.get(labels.ENGINE_FLAG) if command else None


if __name__ == "__main__":
    sys.exit(main())
