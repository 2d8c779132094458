"""The command `python -m serving.export`, which exports a checkpoint for TF Serving."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from preprocessing.cli import make_parser, run_command
from preprocessing.errors import SettingsError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "serving.export",
        "Exports a trained network as a SavedModel for TF Serving and python -m serving.server.",
        [
            "python -m serving.export --model run/ahnet --output models/ahnet",
            "python -m serving.export --model run/ahnet --output models/ahnet --version 7",
            "python -m serving.export --model run/ahnet --output models/fast --precision bfloat16",
            "python -m serving.export --model run/ahnet --output models/ahnet --onnx ahnet.onnx",
        ],
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="checkpoint folder (with model.json)")
    add("--output", required=True, metavar="DIR", help="folder of versions; writes DIR/N")
    version = "version number (default: one above the newest)"
    add("--version", type=int, metavar="N", help=version)
    add(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="precision of computation and weights; bfloat16 needs less time and memory and is less "
        "accurate (default: %(default)s)",
    )
    onnx = "also write the network for ONNX runtimes; float32 only"
    add("--onnx", metavar="FILE", help=onnx)
    return run_command(_run, parser.parse_args(argv))


def next_version(folder: str | Path) -> int:
    """Returns the lowest version number above all numbered folders in `folder`, from 1."""
    path = Path(folder)
    children = path.iterdir() if path.is_dir() else ()
    return max((int(child.name) for child in children if child.name.isdigit()), default=0) + 1


def _run(arguments: argparse.Namespace) -> None:
    from ahnet_tf.inference.predictor import load_checkpoint
    from serving.export.exporter import export_model

    free = next_version(arguments.output)
    version = free if arguments.version is None else arguments.version
    if version < 1:
        raise SettingsError("--version", "a whole number from 1", version)
    output = Path(arguments.output) / str(version)
    if output.exists():
        remedy = f"Servers only load new numbers: use --version {free}."
        expected = "a version that does not exist yet"
        raise SettingsError(output, expected, f"version {version}", remedy)
    if arguments.onnx is not None and arguments.precision != "float32":
        raise SettingsError("--onnx", "--precision float32 with it", arguments.precision)
    model, settings = load_checkpoint(arguments.model)
    print(export_model(model, settings, output, precision=arguments.precision, onnx=arguments.onnx))
    if arguments.onnx is not None:
        print(arguments.onnx)


if __name__ == "__main__":
    sys.exit(main())
