"""`python -m pipeline.kubeflow_runner`: compiles the pipeline for Kubeflow and Vertex AI.

Also the file for `tfx pipeline compile --engine=kubeflow|vertex --pipeline_path=...`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
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

# By engine, what a pipeline's spec is called.
ENGINES = {"kubeflow-v2": "{}-kfp2.yaml", "kubeflow": "{}.yaml", "vertex": "{}.json"}

PURPOSE = """\
Compiles the TFX pipeline for a cluster, without running anything or connecting to the cluster.
--engine kubeflow-v2 writes OUTPUT/NAME-kfp2.yaml for Kubeflow Pipelines 2, and --engine vertex
OUTPUT/NAME.json for Vertex AI. --engine kubeflow writes OUTPUT/NAME.yaml, an Argo workflow for the
v1 API of Kubeflow Pipelines: with caching and comparison by the cluster's metadata store, but newer
clusters may refuse it, and it takes the stack of TensorFlow 2.15 (make env STACK=2.15).

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
    engine = "(default: that of the tfx command line, else kubeflow-v2)"
    add("--engine", metavar="|".join(ENGINES), help=engine)
    add("--output", required=True, metavar="DIR", help="folder for the specs")
    add_pipeline_options(parser, on_cluster=True)
    if argv is None and len(sys.argv) == 1 and OPTIONS_VARIABLE in os.environ:
        argv = shlex.split(os.environ[OPTIONS_VARIABLE])
    return run_command(_run, parser.parse_args(argv))


def compile_pipeline(
    pipeline: PipelineSettings, cluster: KubeflowSettings, engine: str, output: Path
) -> Path:
    """Writes the spec of a pipeline for one of `ENGINES` into a folder; returns its path.

    Raises SettingsError for an engine that is unknown or that the installed TFX can't write for, an
    invalid address, or settings for a component that the pipeline does not have.
    """
    if engine == "local":
        remedy = "On this machine it runs by python -m pipeline.local_runner."
        raise SettingsError("--engine", f"one of {', '.join(ENGINES)}", repr(engine), remedy)
    if engine not in ENGINES:
        raise one_of(*ENGINES).error("--engine", engine)
    _check_storage(pipeline.output, cluster, engine)
    if engine == "kubeflow" and not has_argo_runner():
        expected = " or ".join(name for name in ENGINES if name != engine)
        remedy = f"TFX {importlib.metadata.version('tfx')} writes no Argo workflows: use kubeflow-v2, or the "
        remedy += "stack of TensorFlow 2.15 (make env STACK=2.15)."
        raise SettingsError("--engine", expected, repr(engine), remedy)
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
    name = ENGINES[engine].format(pipeline.name)
    if engine == "kubeflow":
        from pipeline.kubeflow.argo import ArgoRunner

        ArgoRunner(cluster, output, name).run(dag)
    else:
        from pipeline.kubeflow.spec_v2 import V2Runner

        V2Runner(cluster, output, name).run(dag)
    return output / name


def has_argo_runner() -> bool:
    """Returns whether the installed TFX writes Argo workflows: 1.15 does, later releases do not."""
    return importlib.util.find_spec("tfx.orchestration.kubeflow.kubeflow_dag_runner") is not None


def _check_storage(root: str, cluster: KubeflowSettings, engine: str) -> None:
    """Raises SettingsError if the pods of an engine can't write to a place of the settings."""
    in_bucket = root.startswith(OBJECT_STORE)
    if engine == "kubeflow" and in_bucket:
        expected = f"a folder on a volume for --engine {engine}"
        raise SettingsError("storage_root", expected, root)
    if engine == "vertex":
        if not in_bucket:
            expected = f"an address {OBJECT_STORE}... for --engine {engine}"
            raise SettingsError("storage_root", expected, root)
        if not cluster.artifacts().startswith(OBJECT_STORE):
            expected = f"an address {OBJECT_STORE}... for --engine {engine}"
            raise SettingsError("artifact_root", expected, cluster.artifact_root)


def _run(arguments: argparse.Namespace) -> None:
    engine = arguments.engine or _tfx_engine() or next(iter(ENGINES))
    cluster = load_settings(arguments.cluster, KubeflowSettings)
    pipeline = pipeline_settings(arguments, cluster.storage_root)
    output = Path(arguments.output).resolve()
    path = compile_pipeline(pipeline, cluster, engine, output)
    print(path)
    if engine == "kubeflow-v2":
        # TFX 1.15 can't be installed beside kfp 2.
        own = importlib.metadata.version("kfp").startswith("1.")
        where = ", with kfp 2 in an environment of its own" if own else ""
        print(f"to run it{where}: {_submission(cluster, pipeline, path)}")


def _submission(cluster: KubeflowSettings, pipeline: PipelineSettings, path: Path) -> str:
    """Returns the command that runs a spec where the settings say, by kfp 2."""
    options = {
        "experiment_name": cluster.experiment or pipeline.name,
        "namespace": cluster.namespace,
        "service_account": cluster.service_account,
    }
    words = [repr(str(path)), *(f"{name}={text!r}" for name, text in options.items() if text)]
    call = f"kfp.Client().create_run_from_pipeline_package({', '.join(words)})"
    return shlex.join(["python", "-c", f"import kfp; {call}"])


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
